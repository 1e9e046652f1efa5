"""Link networks: their columns, the bridges that some paths need, and the three dicts that a walk takes."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ._text import check_mapping, check_type, listing, table
from ._tree import flatten, leaves, map_tensors, shape, tensors
from .bridges import MultiBridge, bridge
from .layouts import Layout, channels_last, grid, into_form, parse
from .matching import match
from .paths import (
    bridged,
    counterpart,
    crosses,
    crossings,
    depth,
    expand,
    is_bridged,
    listed,
    path_of,
    plan,
    pure,
    step,
)
from .splitting import Boundary, Network
from .stages import Buffers, Column, Params, Stage, frozen, stage
from .transforms import joined, laid_out
from .walking import Columns, batch_of, walk

T = TypeVar("T")
_PATTERNS = {  # by the number of axes; the usual one first
    2: ["b c"],
    3: ["b t c", "b c t"],
    4: ["b c h w", "b h w c"],
    5: ["b c d h w"],
}


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
    bridges: Mapping[str, nn.Module] | None = None,
    layouts: Mapping[str, str] | None = None,
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
        between = (student + teacher, teacher + student)
        paths = crossings(count, between, first=first) + bridged(count, between[:1], first=first)
    paths = listed("link", paths)
    _check_paths(paths, networks, count)
    own, stated = _by_path("bridges", bridges, nn.Module), _by_path("layouts", layouts, str)
    planned = plan(paths)
    read = _layouts(planned, networks, values, stated, own)
    for path, layout in read.items():
        values[path] = map_tensors(partial(into_form, layout=layout), values[path])
    modules = _build(planned, values, read, own)
    columns = {}
    for letter, network in networks.items():
        columns[letter] = laid_out(network.stages, [read.get(pure(letter, at)) for at in range(1, count)])
    params = {letter: frozen(network.params) for letter, network in networks.items()}
    params[student] = dict(networks[student].params)
    buffers = {letter: dict(network.buffers) for letter, network in networks.items()}
    for column, built in modules.items():
        columns[column] = _column(column, built, count - 1, values, own)
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


def _by_path(name: str, given: Mapping[str, T] | None, kind: type[T]) -> dict[str, T]:
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
        )
        for at, end in enumerate(depths, start=1):
            values[pure(letter, at)] = features[letter][end - 1]
    return alike, values


def _features(letter: str, networks: Mapping[str, Network], example: Any) -> list[Any]:
    """What every stage of a network but the last returns on the example, without gradient or other trace."""
    network = networks[letter]
    # Every network is there, so that a batch for each is told from a batch of named inputs.
    columns = {other: networks[other].stages for other in networks}
    paths = [pure(letter, at) for at in range(1, len(network.stages))]
    with torch.no_grad(), torch.random.fork_rng():
        values, _ = walk(paths, columns, {letter: network.params}, {letter: network.buffers}, {"": example})
    return [_in_own_precision(network, values[path]) for path in paths]


def _in_own_precision(network: Network, feature: Any) -> Any:
    """A feature in the type that it has outside autocast, which lasts no longer than the call of `link`."""
    weight = next((weight for weight in network.params.values() if weight.is_floating_point()), None)
    if weight is None or weight.is_meta or not torch.is_autocast_enabled(weight.device.type):
        return feature
    return _cast(feature, weight.dtype)


def _first(feature: Any) -> Tensor:
    """A feature, or the first tensor of one that has several."""
    return tensors(feature)[0]


def _size(feature: Any) -> tuple[int, ...]:
    return tuple(_first(feature).shape)


def _check_paths(paths: Iterable[str], networks: Mapping[str, Network], count: int) -> None:
    for path in plan(paths):
        if path[-1] not in networks:
            raise ValueError(f"link: path {path!r} needs network {path[-1]!r}, which is not given.")
        if depth(path) > count - is_bridged(path):
            raise ValueError(
                f"link: path {path!r} is too long: networks of {count} stages have features to bridge at "
                f"depths 1 to {count - 1}, and logits at {count}."
            )


# Layouts


def _layouts(
    planned: Iterable[str],
    networks: Mapping[str, Network],
    values: Mapping[str, Any],
    stated: Mapping[str, str],
    own: Mapping[str, nn.Module],
) -> dict[str, Layout]:
    """How the features that bridges read and lead to are laid out: as stated, as seen, or as axes tell."""
    for path in stated:
        if path not in networks and path not in values:
            features = [name for name in values if name]
            raise ValueError(
                f"link: layouts names {path!r}, which is no network and no feature; there are "
                f"{listing([*map(repr, networks), *map(repr, features)])}."
            )
    found: dict[str, Layout] = {}
    for path in planned:
        if is_bridged(path):
            _, column, at = step(path)
            simple = path_of(column, at)
            for feature in (step(simple).reads[0], counterpart(simple)):
                letter = feature[0]
                pattern = stated.get(feature) or stated.get(letter)
                if pattern is None:
                    pattern = _seen(networks[letter], at, values[feature])
                if pattern is None and simple not in own:
                    pattern = _told(feature, values, by_hand=not networks[letter].layouts)
                if pattern is not None:
                    found[feature] = parse(pattern)
    return found


def _seen(network: Network, at: int, feature: Any) -> str | None:
    """What the recording of the model tells of a stage's feature."""
    pattern = network.layouts[at] if network.layouts else None
    places = network.grids[at] if network.grids else None
    if pattern == "b t c" and places is not None:
        height, width = places
        return f"b ({feature.shape[1] - height * width} + h={height} w={width}) c"
    several = {*leaves(pattern)}  # of a feature of several tensors, where they are laid out alike
    return several.pop() if len(several) == 1 else None


def _told(path: str, values: Mapping[str, Any], by_hand: bool) -> str | None:
    """The layout that sizes alone tell, of a feature of one tensor; refused where two readings fit."""
    feature = values[path]
    batch = batch_of(values[""], path[-1], {known for known in values if len(known) == 1})
    readings = [_readings(tensor, batch, by_hand) for tensor in tensors(feature)]
    for tensor, fitting in zip(tensors(feature), readings, strict=True):
        if len(fitting) > 1:
            raise ValueError(
                f"link: the feature {path!r}, {shape(tensor)}, may be {' or '.join(map(repr, fitting))} "
                "(batch, channels, and places in space or time). State which: "
                f"layouts={{{path!r}: ...}}, or {{{path[0]!r}: ...}} for all features of network {path[0]!r}."
            )
    one = isinstance(feature, Tensor) and len(readings[0]) == 1
    return readings[0][0] if one else None


def _readings(tensor: Tensor, batch: Any, by_hand: bool) -> list[str]:
    """The layouts that a feature may have. Made of an image, it keeps the ratio of its height and width.

    Channels last are never taken of stages by hand, of which no recording saw that they may be.
    """
    patterns = _PATTERNS.get(tensor.ndim, [])
    if tensor.ndim == 3 and _is_text(batch):
        return ["b t c"]
    ratio = _ratio(batch)
    fitting = [one for one in patterns if ratio is not None and _keeps(tensor, one, ratio)]
    if len(fitting) == 1 and not (by_hand and fitting == ["b h w c"]):
        return fitting
    usual = tensor.ndim == 4 and not channels_last(tuple(tensor.shape))
    return patterns[:1] if usual else patterns


def _keeps(tensor: Tensor, pattern: str, ratio: float) -> bool:
    """Whether the places of a feature, read so, are a map or a row of patches of a ratio."""
    sizes = dict(zip(pattern.split(), tensor.shape, strict=True))
    if "h" in sizes:
        return abs(sizes["h"] - ratio * sizes["w"]) < 1
    try:
        return "t" not in sizes or grid(sizes["t"], ratio=ratio) is not None
    except ValueError:  # more than one grid
        return True


def _ratio(batch: Any) -> float | None:
    """The height by the width of the images of a batch, if it has some."""
    images = [tensor for tensor in tensors(batch) if tensor.ndim == 4]
    return images[0].shape[2] / images[0].shape[3] if images else None


def _pattern(tensor: Tensor, layout: Layout | None, batch: Any) -> str | None:
    """The layout of a feature that is in its form, with the grid of tokens where it is known."""
    if tensor.ndim != 3:
        return next(iter(_PATTERNS.get(tensor.ndim, [])), None)
    found = grid(tensor.shape[1], layout=layout, ratio=_ratio(batch))
    return "b t c" if found is None else f"b ({found.prefix} + h={found.height} w={found.width}) c"


# Bridges


def _build(
    planned: Iterable[str],
    values: Mapping[str, Any],
    layouts: Mapping[str, Layout],
    own: Mapping[str, nn.Module],
) -> dict[str, nn.ModuleDict]:
    """The bridges that a plan runs, by column and by the stage that they follow."""
    needed = {}
    for path in planned:
        if is_bridged(path):
            _, column, at = step(path)
            needed[path_of(column, at)] = column, at
    for name in own:
        if [*own.values()].count(own[name]) > 1:
            raise ValueError(f"link: your bridge {name!r} stands at another path, too; give each its own.")
        if name not in needed:
            raise ValueError(
                f"link: no path needs your bridge {name!r}, only {', '.join(map(repr, needed))}."
            )
    for name in needed:  # all refusals first: building one draws random numbers
        seen = [values[path] for path in step(name).reads]
        if name in own:
            _check_own(name, own[name], tuple(seen) if len(seen) > 1 else seen[0], values[counterpart(name)])
        elif len(seen) > 1:
            raise ValueError(
                f"link: {name!r} needs a bridge that sees its target: pass bridges={{{name!r}: ...}}."
            )
    letters = {path for path in values if len(path) == 1}
    modules: dict[str, nn.ModuleDict] = {}
    for name, (column, at) in needed.items():
        module = own.get(name)
        if module is None:
            source, target = step(name).reads[0], counterpart(name)
            read = layouts.get(source), layouts.get(target)
            batches = batch_of(values[""], source[-1], letters), batch_of(values[""], target[-1], letters)
            module = _made(name, values[source], values[target], read, batches)
        modules.setdefault(column, nn.ModuleDict())[str(at)] = module
    return modules


def _made(
    name: str,
    source: Any,
    target: Any,
    layouts: tuple[Layout | None, Layout | None],
    batches: tuple[Any, Any],
) -> nn.Module:
    """A bridge, or one for each pair of tensors: as many lead to as many, any others all to all."""
    if isinstance(source, Tensor) and isinstance(target, Tensor):
        if source.shape[:1] != target.shape[:1]:
            raise ValueError(
                f"link: {name!r} leads from {shape(source)} to {shape(target)}, and their first axis is not "
                f"one batch. Cut elsewhere, or pass bridges={{{name!r}: ...}}."
            )
        if _is_text(batches[0]) and source.shape[1:-1] != target.shape[1:-1]:
            raise ValueError(
                f"link: {name!r} leads from {shape(source)} to {shape(target)}, and tokens of text in other "
                f"numbers have no places in common. Give both networks the same tokens, or pass "
                f"bridges={{{name!r}: ...}} that aligns them."
            )
        made = bridge(
            tuple(source.shape),
            tuple(target.shape),
            rectified=bool(target.min() >= 0),
            layouts=(_pattern(source, layouts[0], batches[0]), _pattern(target, layouts[1], batches[1])),
        )
        return made.to(target.device, _precision(source, target))
    sources, (targets, form) = leaves(source), flatten(target)
    if not all(isinstance(leaf, Tensor) for leaf in (*sources, *targets)):
        raise ValueError(
            f"link: {name!r} leads between features that hold more than tensors; pass "
            f"bridges={{{name!r}: ...}}."
        )
    pairs = len(sources) == len(targets)
    rows = []
    for here, leaf in enumerate(targets):
        places = [here] if pairs else range(len(sources))
        rows.append({at: _made(name, sources[at], leaf, layouts, batches) for at in places})
    return MultiBridge(rows, form)


def _precision(source: Tensor, target: Tensor) -> torch.dtype:
    """What a bridge's own weights are in: float32, or float64 where a network is."""
    return torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)


def _column(
    name: str, built: nn.ModuleDict, count: int, values: Mapping[str, Any], own: Mapping[str, nn.Module]
) -> Column:
    """The bridges of one column as stages. One of the user's own may begin with an operation in place."""
    stages: list[Stage | None] = [None] * count
    for key, module in built.items():
        path = path_of(name, int(key))
        if path in own:
            stages[int(key)] = stage(module, f"{key}.")
        else:
            run = stage(module, f"{key}.", protect=False)
            source, target = values[step(path).reads[0]], values[counterpart(path)]
            stages[int(key)] = _fitted(run, _first(source), _first(target))
    return tuple(stages)


def _fitted(run: Stage, source: Tensor, target: Tensor) -> Stage:
    """A bridge that reads the source's precision and writes the target's, whatever its own is."""
    own = _precision(source, target)
    if source.dtype == own == target.dtype:
        return run
    return partial(_run_fitted, run, own, target.dtype)


def _run_fitted(
    run: Stage, reads: torch.dtype, writes: torch.dtype, params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    y, new = run(params, buffers, _cast(x, reads))
    return _cast(y, writes), new


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value)


def _is_text(batch: Any) -> bool:
    """Whether the networks read integers: tokens of text, not pixels."""
    found = tensors(batch)
    return bool(found) and not found[0].is_floating_point()


def _check_own(name: str, module: nn.Module, x: Any, target: Any) -> None:
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    with torch.no_grad(), torch.random.fork_rng():
        try:
            returned, _ = stage(module)(params, buffers, x)
        except Exception as error:  # whatever a module says to what it is given
            raise ValueError(f"link: your bridge {name!r} cannot read the feature: {error}") from error
    found, wanted = (map_tensors(shape, value) for value in (returned, target))
    if found != wanted:
        raise ValueError(f"link: your bridge {name!r} returns {found}; the feature there is {wanted}.")
