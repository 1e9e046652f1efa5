"""Link networks: their columns, the bridges that some paths need, and the three dicts that a walk takes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._tree import flatten, leaves, map_tensors, shape, tensors
from .bridges import Several, bridge
from .matching import match
from .paths import bridged, crossings, depth, plan, step
from .splitting import Boundary, Network
from .stages import Column, Stage, frozen, stage
from .transforms import joined
from .walking import walk


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


def link(
    networks: Mapping[str, Network],
    *,
    example: Any,
    student: str = "s",
    teacher: str = "t",
    first: int = 1,
    paths: Iterable[str] | None = None,
    bridges: Mapping[str, nn.Module] | None = None,
) -> Linked:
    """Link networks by the bridges that the given paths need.

    The networks run once on the example, without gradient, as stages run always: no statistic, flag or
    random state changes. It shows the features' shapes, and whether they are taken after a ReLU (then none
    is negative), which decides the bridges' last layer. Features of several tensors, such as pyramids, are
    bridged tensor by tensor where both have as many, and every one to every one otherwise.

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
            the target's feature, `{"ss&t": module}`, reads the pair `(feature, seen)`.

    Returns:
        A `Linked`.

    Raises:
        ValueError: A network is missing, a path does not fit the networks, a bridge of your own returns the
            wrong shape or is needed by no path, or no bridge fits the shapes.

    Example:
        >>> import fcfd
        >>> layers = lambda *sizes: fcfd.split([torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
        >>> nets = link({"t": layers(8, 6, 6, 3), "s": layers(8, 4, 4, 3)}, example=torch.randn(2, 8))
        >>> nets.crossings
        ('stt', 'tss')
        >>> [name for name, _ in nets.bridges.named_parameters()][0]
        's>t.0.linear.weight'
    """
    for letter in (student, teacher):
        if letter not in networks:
            raise ValueError(f"link: there is no network {letter!r}, only {', '.join(map(repr, networks))}.")
    networks, values = _alike(networks, example)
    count = len(networks[student].stages)
    if paths is None:
        between = (student + teacher, teacher + student)
        paths = crossings(count, between, first=first) + bridged(count, between[:1], first=first)
    paths = tuple(paths)
    _check_paths(paths, networks, count)
    own = dict(bridges or {})
    modules = _build(plan(paths), values, own)
    columns = {letter: network.stages for letter, network in networks.items()}
    params = {letter: frozen(network.params) for letter, network in networks.items()}
    params[student] = dict(networks[student].params)
    buffers = {letter: dict(network.buffers) for letter, network in networks.items()}
    for column, built in modules.items():
        columns[column] = tuple(_entry(built, at, own) for at in range(count - 1))
        params[column] = dict(built.named_parameters())
        buffers[column] = dict(built.named_buffers())
    return Linked(
        stages=columns,
        params=params,
        buffers=buffers,
        bridges=nn.ModuleDict(modules),
        crossings=tuple(path for path in paths if depth(path) == count and len(set(path)) > 1),
        names={letter: network.names for letter, network in networks.items()},
    )


def _alike(networks: Mapping[str, Network], example: Any) -> tuple[dict[str, Network], dict[str, Any]]:
    """The networks with as many stages as the one that has fewest, and their features on the example."""
    features = {letter: _features(letter, network, example) for letter, network in networks.items()}
    least = min(features.values(), key=len)
    alike, values = {}, {"": example}
    for letter, network in networks.items():
        depths: Sequence[int] = range(1, len(least) + 1)
        if len(features[letter]) > len(least):
            depths = match([_size(value) for value in features[letter]], [_size(value) for value in least])
        ends = (*depths, len(network.stages))
        alike[letter] = network._replace(
            stages=joined(network.stages, ends), names=tuple(network.names[end - 1] for end in ends)
        )
        values |= {letter * at: features[letter][end - 1] for at, end in enumerate(depths, start=1)}
    return alike, values


def _features(letter: str, network: Network, example: Any) -> list[Any]:
    """What every stage but the last returns on the example, without gradient or any other trace."""
    paths = [letter * at for at in range(1, len(network.stages))]
    with torch.no_grad(), torch.random.fork_rng():
        values, _ = walk(
            paths,
            {letter: network.stages},
            {letter: network.params},
            {letter: network.buffers},
            {"": example},
        )
    return [values[path] for path in paths]


def _size(feature: Any) -> tuple[int, ...]:
    """The shape of a feature, or of the first tensor of one that has several."""
    return tuple(tensors(feature)[0].shape)


def _check_paths(paths: Iterable[str], networks: Mapping[str, Network], count: int) -> None:
    for path in plan(paths):
        bridges = path[-2:-1] in (">", "&")
        if path[-1] not in networks:
            raise ValueError(f"link: path {path!r} needs network {path[-1]!r}, which is not given.")
        if depth(path) > count - bridges:
            raise ValueError(
                f"link: path {path!r} is too long: networks of {count} stages have features to bridge at "
                f"depths 1 to {count - 1}, and logits at {count}."
            )


def _build(
    planned: Iterable[str], values: Mapping[str, Any], own: Mapping[str, nn.Module]
) -> dict[str, nn.ModuleDict]:
    """The bridges that a plan runs, by column and by the stage that they follow."""
    steps = dict.fromkeys(step(path)[1:] for path in planned if path[-2:-1] in (">", "&"))
    needed = {f"{column[0] * (at + 1)}{column[1:]}": (column, at) for column, at in steps}
    for name in own:
        if name not in needed:
            raise ValueError(
                f"link: no path needs your bridge {name!r}, only {', '.join(map(repr, needed))}."
            )
    modules: dict[str, nn.ModuleDict] = {}
    for name, (column, at) in needed.items():
        source, target = (values[letter * (at + 1)] for letter in (column[0], column[-1]))
        if name in own:
            made = own[name]
            _check_own(name, made, (source, target) if column[1] == "&" else source, target)
        elif column[1] == "&":
            raise ValueError(
                f"link: {name!r} needs a bridge that sees its target: pass bridges={{{name!r}: ...}}."
            )
        else:
            made = _made(name, source, target, _is_text(values[""]))
        modules.setdefault(column, nn.ModuleDict())[str(at)] = made
    return modules


def _made(name: str, source: Any, target: Any, text: bool) -> nn.Module:
    """A bridge, or one for each pair of tensors: as many lead to as many, any others all to all."""
    if isinstance(source, Tensor) and isinstance(target, Tensor):
        if source.shape[:1] != target.shape[:1]:
            raise ValueError(
                f"link: {name!r} leads from {shape(source)} to {shape(target)}, and their first axis is not "
                f"one batch. Cut elsewhere, or pass bridges={{{name!r}: ...}}."
            )
        if text and source.shape[1:-1] != target.shape[1:-1]:
            raise ValueError(
                f"link: {name!r} leads from {shape(source)} to {shape(target)}, and tokens of text in other "
                f"numbers have no places in common. Give both networks the same tokens, or pass "
                f"bridges={{{name!r}: ...}} that aligns them."
            )
        made = bridge(tuple(source.shape), tuple(target.shape), rectified=bool(target.min() >= 0))
        return made.to(source.device, source.dtype)
    sources, (targets, form) = leaves(source), flatten(target)
    if not all(isinstance(leaf, Tensor) for leaf in (*sources, *targets)):
        raise ValueError(
            f"link: {name!r} leads between features that hold more than tensors; pass "
            f"bridges={{{name!r}: ...}}."
        )
    pairs = len(sources) == len(targets)
    rows = [
        {at: _made(name, sources[at], leaf, text) for at in ([here] if pairs else range(len(sources)))}
        for here, leaf in enumerate(targets)
    ]
    return Several(rows, form)


def _entry(built: nn.ModuleDict, at: int, own: Mapping[str, nn.Module]) -> Stage | None:
    """One entry of a column of bridges. Those built here begin with no in-place operation."""
    if str(at) not in built:
        return None
    module = built[str(at)]
    return stage(module, f"{at}.", protect=any(module is other for other in own.values()))


def _is_text(batch: Any) -> bool:
    """Whether the networks read integers: tokens of text, not pixels."""
    found = tensors(batch)
    return bool(found) and not found[0].is_floating_point()


def _check_own(name: str, module: nn.Module, x: Any, target: Any) -> None:
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    with torch.no_grad(), torch.random.fork_rng():
        try:
            returned, _ = stage(module)(params, buffers, x)
        except RuntimeError as error:
            raise ValueError(f"link: your bridge {name!r} cannot read the feature: {error}") from error
    found, wanted = (map_tensors(shape, value) for value in (returned, target))
    if found != wanted:
        raise ValueError(f"link: your bridge {name!r} returns {found}; the feature there is {wanted}.")
