"""The bridges that a plan needs, and how the features that they read and lead to are laid out."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ._text import check_type, listing
from ._tree import cast, flatten, leaves, map_tensors, moved, shape, tensors
from .bridges import MultiBridge, bridge
from .copying.copies import places
from .layouts import Layout, channels_last, grid, parse
from .paths import counterpart, is_bridged, path_of, step
from .splitting import Network
from .stages import Buffers, Column, Params, Stage, stage, whole
from .walking import batch_of

_PATTERNS = {  # by the number of axes; the usual one first
    2: ["b c"],
    3: ["b t c", "b c t"],
    4: ["b c h w", "b h w c"],
    5: ["b c d h w"],
}


def needed(planned: Iterable[str]) -> tuple[str, ...]:
    """The bridges that a plan runs, each by the path that ends in it and crosses nowhere before.

    Example:
        >>> needed(("s", "ss", "ss>t", "sst", "sst>s"))
        ('ss>t', 'ttt>s')
    """
    steps = [step(path) for path in planned if is_bridged(path)]
    return tuple(dict.fromkeys([path_of(one.column, one.at) for one in steps]))


def _ends(name: str) -> tuple[str, str]:
    """The features that a bridge reads first and leads to."""
    return step(name).reads[0], counterpart(name)


# Layouts


def layouts_of(
    bridges: Iterable[str],
    networks: Mapping[str, Network],
    values: Mapping[str, Any],
    stated: Mapping[str, str],
    own: Mapping[str, nn.Module],
) -> dict[str, Layout]:
    """How the features that bridges read and lead to are laid out: as stated, as seen, or as axes tell.

    Args:
        bridges: The paths of the bridges, as `needed` gives them.
        networks: The networks, with what their recordings saw.
        values: The networks' features on the example, and the example.
        stated: Patterns of the user, by feature or by network.
        own: The user's own bridges, for which no layout must be known.

    Raises:
        ValueError: A pattern is stated of something that is not there, or two readings fit a feature.
    """
    for path in stated:
        if path not in networks and path not in values:
            features = [name for name in values if name]
            raise ValueError(
                f"link: layouts names {path!r}, which is no network and no feature; there are "
                f"{listing([*map(repr, networks), *map(repr, features)])}."
            )
    found: dict[str, Layout] = {}
    for name in bridges:
        for feature in _ends(name):
            network = networks[feature[0]]
            pattern = stated.get(feature) or stated.get(feature[0])
            if pattern is None:
                pattern = _seen(network, step(name).at, values[feature])
            if pattern is None and name not in own:
                pattern = _told(feature, values, by_hand=not network.layouts)
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


Builder: TypeAlias = Callable[[Any, Any], nn.Module | None]


def by_builder(builder: Builder, bridges: Iterable[str], values: Mapping[str, Any]) -> dict[str, nn.Module]:
    """What a function makes of both ends of every bridge, by path; None leaves the usual bridge."""
    found = {}
    for name in bridges:
        source, target = _ends(name)
        module = builder(values[source], values[target])
        if module is not None:
            wanted = "a module, or None for the usual bridge"
            check_type(
                "link", f"what bridges(source, target) returned for {name!r}", module, nn.Module, wanted
            )
            found[name] = module
    return found


def places_read(
    bridges: Iterable[str], paths: Iterable[str], read: Mapping[str, frozenset[int]]
) -> dict[str, frozenset[int]]:
    """The tensors of a feature that a bridge must lead to, where the next stage does not read all of them.

    Args:
        bridges: The paths of the bridges.
        paths: What will be walked: a bridged feature that stands among them is wanted whole.
        read: By a network's feature, the places of the tensors that its next stage reads.
    """
    whole = {*needed(path for path in paths if is_bridged(path))}
    ends = {name: counterpart(name) for name in bridges if name not in whole}
    return {name: read[end] for name, end in ends.items() if end in read}


def build(
    bridges: Iterable[str],
    values: Mapping[str, Any],
    layouts: Mapping[str, Layout],
    own: Mapping[str, nn.Module],
    reads: Mapping[str, frozenset[int]],
) -> dict[str, nn.ModuleDict]:
    """The modules of bridges, by column and by the stage that they follow.

    Args:
        bridges: The paths of the bridges, as `needed` gives them.
        values: The networks' features on the example, in the form that bridges read.
        layouts: How the networks hand out these features.
        own: The user's own bridges by path.
        reads: As `places_read` gives them.

    Raises:
        ValueError: A bridge of the user's is needed nowhere, stands twice or returns the wrong shape, or
            none leads from the one feature to the other.
    """
    bridges = tuple(bridges)
    for name in own:
        if [*own.values()].count(own[name]) > 1:
            raise ValueError(f"link: your bridge {name!r} stands at another path, too; give each its own.")
        if name not in bridges:
            raise ValueError(
                f"link: no path needs your bridge {name!r}, only {', '.join(map(repr, bridges))}."
            )
    _check_buffers(own)
    for name in bridges:  # all refusals first: building one draws random numbers
        seen = [values[path] for path in step(name).reads]
        if name in own:
            _check_own(name, own[name], tuple(seen) if len(seen) > 1 else seen[0], values[counterpart(name)])
        elif len(seen) > 1:
            raise ValueError(
                f"link: {name!r} needs a bridge that sees its target: pass bridges={{{name!r}: ...}}."
            )
    letters = {path for path in values if len(path) == 1}
    modules: dict[str, nn.ModuleDict] = {}
    for name in bridges:
        module = own.get(name)
        if module is None:
            source, target = _ends(name)
            read = layouts.get(source), layouts.get(target)
            batches = batch_of(values[""], source[-1], letters), batch_of(values[""], target[-1], letters)
            module = _made(name, values[source], values[target], read, batches, reads.get(name))
        _, column, at = step(name)
        modules.setdefault(column, nn.ModuleDict())[str(at)] = module
    return modules


def _made(
    name: str,
    source: Any,
    target: Any,
    layouts: tuple[Layout | None, Layout | None],
    batches: tuple[Any, Any],
    reads: frozenset[int] | None = None,
) -> nn.Module:
    """A bridge, or one for each pair of tensors: as many lead to as many; from one or to one, all to all."""
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
    if not pairs and 1 not in (len(sources), len(targets)):
        raise ValueError(
            f"link: {name!r} leads from {len(sources)} tensors to {len(targets)}, and nothing tells which "
            f"belong together. Cut both into as many, or say it: bridges={{{name!r}: "
            "fcfd.bridges.multi_bridge(...)}."
        )
    rows: list[dict[int, nn.Module]] = []
    for here, leaf in enumerate(targets):
        if reads is not None and here not in reads:
            rows.append({})
            continue
        places = [here] if pairs else range(len(sources))
        rows.append({at: _made(name, sources[at], leaf, layouts, batches) for at in places})
    return MultiBridge(rows, form)


def _precision(source: Tensor, target: Tensor) -> torch.dtype:
    """What a bridge's own weights are in: float32, or float64 where a network is."""
    return torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)


def column_of(
    name: str, built: nn.ModuleDict, count: int, values: Mapping[str, Any], own: Mapping[str, nn.Module]
) -> Column:
    """The bridges of one column as stages. One of the user's own may begin with an operation in place.

    Args:
        name: The column's name.
        built: Its bridges, by the stage that they follow.
        count: How many features the networks have.
        values: These features on the example: a bridge reads the one's precision and writes the other's.
        own: The user's own bridges by path.
    """
    stages: list[Stage | None] = [None] * count
    for key, module in built.items():
        path = path_of(name, int(key))
        if path in own:
            stages[int(key)] = whole(module, places(module, within=built), within=(built, f"{name}.{key}"))
        else:
            names = places(module, within=built)
            run = whole(module, names, protect=False, within=(built, f"{name}.{key}"))
            source, target = (tensors(values[feature])[0] for feature in _ends(path))
            stages[int(key)] = _fitted(run, source, target)
    return tuple(stages)


def _fitted(run: Stage, source: Tensor, target: Tensor) -> Stage:
    """A bridge that reads the source's precision and writes the target's, whatever its own is.

    It runs where the target is.
    """
    own = _precision(source, target)
    if source.dtype == own == target.dtype and source.device == target.device:
        return run
    return partial(_run_fitted, run, own, target.dtype, target.device)


def _run_fitted(
    run: Stage,
    reads: torch.dtype,
    writes: torch.dtype,
    device: torch.device,
    params: Params,
    buffers: Buffers,
    x: Any,
) -> tuple[Any, dict[str, Tensor]]:
    y, new = run(params, buffers, cast(moved(x, device), reads))
    return cast(y, writes), new


def _is_text(batch: Any) -> bool:
    """Whether the networks read integers: tokens of text, not pixels."""
    found = tensors(batch)
    return bool(found) and not found[0].is_floating_point()


def _check_buffers(own: Mapping[str, nn.Module]) -> None:
    """Bridges may share parameters. They are on no path together, so of shared statistics one would count."""
    owners: dict[int, str] = {}
    for name, module in own.items():
        for key, buffer in module.named_buffers():
            if owners.setdefault(id(buffer), name) != name:
                raise ValueError(
                    f"link: your bridges {owners[id(buffer)]!r} and {name!r} share the buffer {key!r}. Give "
                    "each its own; they may share parameters."
                )


def _check_own(name: str, module: nn.Module, x: Any, target: Any) -> None:
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    with torch.no_grad(), torch.random.fork_rng():
        try:
            returned, _ = stage(module)(params, buffers, x)
        except Exception as error:  # whatever a module says to what it is given
            raise ValueError(f"link: your bridge {name!r} cannot read the feature: {error}") from error
    found, wanted = (map_tensors(shape, value) for value in (returned, target))
    if found != wanted or flatten(found)[1] != flatten(wanted)[1]:  # a dict equals an OrderedDict
        raise ValueError(f"link: your bridge {name!r} returns {found}; the feature there is {wanted}.")
