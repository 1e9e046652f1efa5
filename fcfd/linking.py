"""Link networks: their columns, the bridges that some paths need, and the three dicts that a walk takes."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ._text import check_integer, check_mapping, check_type, listing, table
from ._tree import cast, flatten, map_tensors, shape, tensors, unflatten
from .bridging import Builder, build, by_builder, column_of, layouts_of, needed, places_read
from .layouts import into_form
from .matching import match
from .paths import bridged, crosses, crossings, depth, expand, is_bridged, listed, plan, pure
from .splitting import Boundary, Network
from .stages import Column, frozen
from .transforms import joined, laid_out
from .walking import Columns, walk

T = TypeVar("T")


class Linked(NamedTuple):
    """Networks and the bridges between them, ready to walk.

    Args:
        stages: The columns: `{"s": ..., "t": ..., "s>t": ..., "t>s": ...}`. Where no bridge was needed a
            column of bridges holds `None`.
        params: A flat dict of parameters for each column. The student's and the bridges' are the modules'
            own; every other network's are detached.
        buffers: The same of buffers.
        bridges: All bridges as one module, for the optimizer, `.to` and `state_dict`: the bridge after
            stage 1 from the student to the teacher is `bridges["s>t"]["1"]`.
        crossings: The paths to draw from.
        names: Where each stage of each network ends, side by side: what was matched with what.
    """

    stages: dict[str, Column]
    params: dict[str, dict[str, Tensor]]
    buffers: dict[str, dict[str, Tensor]]
    bridges: nn.ModuleDict
    crossings: tuple[str, ...]
    names: dict[str, tuple[Boundary, ...]]

    @property
    def columns(self) -> Columns:
        """Stages, params and buffers together: `losses.fcfd(*nets.columns, images, labels, ...)`."""
        return Columns(self.stages, self.params, self.buffers)

    def __repr__(self) -> str:
        """The networks side by side, the bridges between them, and the paths to draw from."""
        letters = list(self.names)
        rows = []
        for at, ends in enumerate(zip(*self.names.values(), strict=True)):
            bridges = [
                column for column, built in self.bridges.items() if str(at) in dict(built.named_children())
            ]
            rows.append((str(at + 1), *map(str, ends), ", ".join(bridges)))
        header = ("depth", *(f"{letter} ends at" for letter in letters), "bridges")
        return f"{table(header, rows)}\ncrossings: {listing(self.crossings)}"


def link(
    networks: Mapping[str, Network],
    *,
    example: Any,
    student: str = "s",
    teacher: str = "t",
    first: int = 1,
    paths: Iterable[str] | None = None,
    bridges: Mapping[str, nn.Module] | Builder | None = None,
    layouts: Mapping[str, str] | None = None,
) -> Linked:
    """Link networks by the bridges that the given paths need.

    The networks run once on the example, without gradient, as stages run always: no statistic, flag or
    random state changes. It shows the features' shapes, and whether they are taken after a ReLU (then none
    is negative), which decides the bridges' last layer. Features of several tensors, such as pyramids, are
    bridged tensor by tensor where both have as many, and every one to every one where one of them has one.
    What the next stage does not read, and no path asks for, has no bridge.

    Link after `.to(device)`: buffers are held by reference, and a module that moves gets new ones.

    Args:
        networks: What `fcfd.split` returned, by letter. Where one has more stages than another, those are
            joined that end nowhere near a stage of the other (`fcfd.match`): `names` says how. To choose for
            yourself, cut both into the same number of stages.
        example: A batch that all networks can read, or one for each, `{"s": ..., "t": ...}`; two examples
            are enough.
        student: The letter of the network that learns. Every other network is frozen.
        teacher: The letter of the network that it learns from.
        first: The earliest depth that is bridged. Where the first stage is a stem alone, as in the
            published networks, 2.
        paths: Every path that will be walked. By default FCFD's: all crossings in both directions, and
            every student's feature bridged into the teacher.
        bridges: Modules of your own by the path of what they return: `{"ss>t": module}`. A bridge that sees
            the target's feature, `{"ss&t": module}`, reads the pair `(feature, seen)`. Or a function that is
            given both features of the example, `builder(source, target)`, and returns a module, or None for
            the usual bridge: `fcfd.bridges.identity` builds none where the shapes agree.
        layouts: The axes of features as `fcfd.layouts` says, of all of a network's or of one:
            `{"s": "b c t", "tt": "b (1 + h=14 w) c"}`. Not needed where `split` saw them, or one reading
            alone fits. Features are handed out in the form that losses read: `"b c t"` as `"b c 1 t"`.

    Returns:
        A `Linked`.

    Raises:
        ValueError: A network is missing, a path does not fit the networks, a bridge of your own returns the
            wrong shape or is needed by no path, or no bridge fits the shapes.

    Example:
        >>> import fcfd
        >>> from torch.nn import Linear
        >>> networks = {
        ...     "t": fcfd.split([Linear(8, 6), Linear(6, 6), Linear(6, 3)]),
        ...     "s": fcfd.split([Linear(8, 4), Linear(4, 4), Linear(4, 3)]),
        ... }
        >>> nets = link(networks, example=torch.randn(2, 8))
        >>> nets.crossings
        ('stt', 'tss')
        >>> [name for name, _ in nets.bridges.named_parameters()][0]
        's>t.0.linear.weight'
    """
    _check_networks(networks, student, teacher)
    for tensor in tensors(example):
        if tensor.numel() == 0:
            raise ValueError(f"link: the example {shape(tensor)} is empty; give a batch of two examples.")
        if tensor.is_meta:
            raise ValueError("link: the example is on meta, so its features show no ReLU. Give a real one.")
    networks, values = _alike(networks, example)
    count = len(networks[student].stages)
    if paths is None:
        if check_integer("link", "first", first, least=1) >= max(count, 2):
            raise ValueError(
                f"link: first is {first}; networks of {count} stages have features at 1 to {count - 1}."
            )
        between = (student + teacher, teacher + student)
        paths = crossings(count, between, first=first) + bridged(count, between[:1], first=first)
    paths = listed("link", paths)
    _check_paths(paths, networks, count)
    wanted, stated = needed(plan(paths)), _by_path("layouts", layouts, str)
    if callable(bridges) and not isinstance(bridges, nn.Module):
        own = by_builder(bridges, wanted, values)
    else:
        own = _by_path("bridges", bridges, nn.Module)
    places = places_read(wanted, paths, _read(networks, values, example))
    read = layouts_of(wanted, networks, values, stated, own)
    for path, layout in read.items():
        values[path] = map_tensors(partial(into_form, layout=layout), values[path])
    modules = build(wanted, values, read, own, places)
    columns = {}
    for letter, network in networks.items():
        columns[letter] = laid_out(network.stages, [read.get(pure(letter, at)) for at in range(1, count)])
    params = {letter: frozen(network.params) for letter, network in networks.items()}
    params[student] = dict(networks[student].params)
    buffers = {letter: dict(network.buffers) for letter, network in networks.items()}
    for column, built in modules.items():
        columns[column] = column_of(column, built, count - 1, values, own)
        params[column] = dict(built.named_parameters())
        buffers[column] = dict(built.named_buffers())
    return Linked(
        stages=columns,
        params=params,
        buffers=buffers,
        bridges=nn.ModuleDict(modules),
        crossings=tuple(
            [path for path in paths if crosses(path) and not is_bridged(path) and depth(path) == count]
        ),
        names={letter: network.names for letter, network in networks.items()},
    )


def _by_path(name: str, given: Any, kind: type[T]) -> dict[str, T]:
    """What the caller gives by path, checked, under the long form of each path."""
    found = {} if given is None else given
    check_mapping("link", name, found, f"a dict of {kind.__name__} by path")
    for path, value in found.items():
        check_type("link", f"{name}[{path!r}]", value, kind, f"a {kind.__name__}")
    return {expand(path): value for path, value in found.items()}


def _check_networks(networks: Mapping[str, Network], student: str, teacher: str) -> None:
    check_mapping("link", "networks", networks, "a dict by letter: {'t': fcfd.split(teacher), ...}")
    if not networks:
        raise ValueError(
            "link: networks is empty; give {'t': fcfd.split(teacher), 's': fcfd.split(student)}."
        )
    for letter, network in networks.items():
        if not isinstance(network, Network):
            raise TypeError(
                f"link: networks[{letter!r}] is a {type(network).__name__}; split it first: "
                f"{{{letter!r}: fcfd.split(model)}}."
            )
        pure(letter, 1)
    for letter in (student, teacher):
        if letter not in networks:
            raise ValueError(f"link: there is no network {letter!r}, only {', '.join(map(repr, networks))}.")
    if student == teacher:
        raise ValueError(f"link: student and teacher are both {student!r}; link a network to another one.")


def _alike(networks: Mapping[str, Network], example: Any) -> tuple[dict[str, Network], dict[str, Any]]:
    """The networks with as many stages as the one that has fewest, and their features on the example."""
    features = {letter: _features(letter, networks, example) for letter in networks}
    least = min(features.values(), key=len)
    alike, values = {}, {"": example}
    for letter, network in networks.items():
        depths: Sequence[int] = range(1, len(least) + 1)
        if len(features[letter]) > len(least):
            depths = match([_size(value) for value in features[letter]], [_size(value) for value in least])
        ends = (*depths, len(network.stages))
        alike[letter] = network._replace(
            stages=joined(network.stages, ends),
            names=tuple([network.names[end - 1] for end in ends]),
            layouts=tuple([network.layouts[end - 1] for end in ends if network.layouts]),
            grids=tuple([network.grids[end - 1] for end in ends if network.grids]),
            reads=tuple([network.reads[end] for end in (0, *depths) if network.reads]),
        )
        for at, end in enumerate(depths, start=1):
            values[pure(letter, at)] = features[letter][end - 1]
    return alike, values


def _features(letter: str, networks: Mapping[str, Network], example: Any) -> list[Any]:
    """What every stage of a network but the last returns on the example, without gradient or other trace."""
    paths = [pure(letter, at) for at in range(1, len(networks[letter].stages))]
    with torch.no_grad():
        values = _walked(networks, letter, paths, {"": example})
    return [_in_own_precision(networks[letter], values[path]) for path in paths]


def _walked(
    networks: Mapping[str, Network], letter: str, paths: Sequence[str], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Values of one network, computed without a trace in torch's generators."""
    # Every network is there, so that a batch for each is told from a batch of named inputs.
    columns, network = {other: networks[other].stages for other in networks}, networks[letter]
    with torch.random.fork_rng():
        found, _ = walk(paths, columns, {letter: network.params}, {letter: network.buffers}, values)
    return found


def _read(
    networks: Mapping[str, Network], values: Mapping[str, Any], example: Any
) -> dict[str, frozenset[int]]:
    """Of each feature of several tensors, the places of those that the network's next stage reads.

    A network may know it; of others a backward pass on the example tells.
    """
    found = {}
    for letter, network in networks.items():
        for at in range(1, len(network.stages)):
            path = pure(letter, at)
            if len(tensors(values[path])) > 1:
                known = network.reads[at] if network.reads else None
                if known is not None:
                    found[path] = frozenset(
                        [place for place, name in enumerate(values[path]) if name in known]
                    )
                elif places := _with_gradient(networks, letter, at, values[path], example):
                    found[path] = places
    return found


def _with_gradient(
    networks: Mapping[str, Network], letter: str, at: int, feature: Any, example: Any
) -> frozenset[int]:
    """The places of a feature's tensors that have a gradient through the next stage; none if none tells."""
    parts, form = flatten(feature)
    if not all(isinstance(part, Tensor) for part in parts) or torch.is_inference_mode_enabled():
        return frozenset()
    with torch.enable_grad():
        asked = [part.detach().requires_grad_(part.is_floating_point()) for part in parts]
        copies = [part.clone() for part in asked]  # a stage may begin with an operation in place
        given, end = {"": example, pure(letter, at): unflatten(copies, form)}, pure(letter, at + 1)
        found = _walked(networks, letter, [end], given)
        ends = [
            value.sum() for value in tensors(found[end]) if value.requires_grad and value.is_floating_point()
        ]
        floating = {place: part for place, part in enumerate(asked) if part.requires_grad}
        slopes: Sequence[Tensor | None] = ()
        if ends and floating:
            slopes = torch.autograd.grad(ends, [*floating.values()], allow_unused=True)
    read = {place for place, slope in zip(floating, slopes, strict=False) if slope is not None}
    return frozenset(read | ({*range(len(parts))} - floating.keys())) if read else frozenset()


def _in_own_precision(network: Network, feature: Any) -> Any:
    """A feature in the type that it has outside autocast, which lasts no longer than the call of `link`."""
    weight = next((weight for weight in network.params.values() if weight.is_floating_point()), None)
    if weight is None or weight.is_meta or not torch.is_autocast_enabled(weight.device.type):
        return feature
    return cast(feature, weight.dtype)


def _size(feature: Any) -> tuple[int, ...]:
    """The shape of a feature, or of the first tensor of one that has several."""
    return tuple(tensors(feature)[0].shape)


def _check_paths(paths: Iterable[str], networks: Mapping[str, Network], count: int) -> None:
    for path in plan(paths):
        if path[-1] not in networks:
            raise ValueError(f"link: path {path!r} needs network {path[-1]!r}, which is not given.")
        if depth(path) > count - is_bridged(path):
            raise ValueError(
                f"link: path {path!r} is too long: networks of {count} stages have features to bridge at "
                f"depths 1 to {count - 1}, and logits at {count}."
            )
