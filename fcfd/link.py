"""Link networks: their columns, the bridges that some paths need, and the three dicts that a walk takes."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._check import shape
from .bridges import bridge
from .paths import bridged, crossings, depth, plan, step
from .split import Network
from .stages import Column, Stage, frozen, stage
from .walk import walk


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
    """

    stages: dict[str, Column]
    params: dict[str, dict[str, Tensor]]
    buffers: dict[str, dict[str, Tensor]]
    bridges: nn.ModuleDict
    crossings: tuple[str, ...]


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
    is negative), which decides the bridges' last layer. Link after `.to(device)`: buffers are held by
    reference, and a module that moves gets new ones.

    Args:
        networks: What `fcfd.split` returned, by letter. All have the same number of stages.
        example: A batch that all networks can read; two examples are enough.
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
        ValueError: The networks differ in the number of stages, a path does not fit them, a bridge of your
            own returns the wrong shape or is needed by no path, or no bridge fits the shapes.

    Example:
        >>> import fcfd
        >>> layers = lambda *sizes: fcfd.split([torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
        >>> nets = link({"t": layers(8, 6, 6, 3), "s": layers(8, 4, 4, 3)}, example=torch.randn(2, 8))
        >>> nets.crossings
        ('stt', 'tss')
        >>> [name for name, _ in nets.bridges.named_parameters()][0]
        's>t.0.linear.weight'
    """
    count = _stage_count(networks, student, teacher)
    if paths is None:
        between = (student + teacher, teacher + student)
        paths = crossings(count, between, first=first) + bridged(count, between[:1], first=first)
    paths = tuple(paths)
    _check_paths(paths, networks, count)
    columns = {letter: network.stages for letter, network in networks.items()}
    params = {letter: frozen(network.params) for letter, network in networks.items()}
    buffers = {letter: dict(network.buffers) for letter, network in networks.items()}
    pure = [letter * at for letter in networks for at in range(1, count)]
    with torch.no_grad(), torch.random.fork_rng():
        values, _ = walk(pure, columns, params, buffers, {"": example})
    own = dict(bridges or {})
    own = dict(bridges or {})
    modules = _build(plan(paths), values, own)
    params[student] = dict(networks[student].params)
    for column, built in modules.items():
        columns[column] = tuple(_entry(built, at, own) for at in range(count - 1))
        params[column] = dict(built.named_parameters())
        buffers[column] = dict(built.named_buffers())
    whole = tuple(path for path in paths if depth(path) == count and len(set(path)) > 1)
    return Linked(columns, params, buffers, nn.ModuleDict(modules), whole)


def _stage_count(networks: Mapping[str, Network], student: str, teacher: str) -> int:
    for letter in (student, teacher):
        if letter not in networks:
            raise ValueError(f"link: there is no network {letter!r}, only {', '.join(map(repr, networks))}.")
    counts = {letter: len(network.stages) for letter, network in networks.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"link: the networks have {counts} stages; cut them alike: split(model, at=[...]) with the same "
            "number of boundaries."
        )
    return counts[student]


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
            made = bridge(tuple(source.shape), tuple(target.shape), rectified=bool(target.min() >= 0))
            made.to(source.device, source.dtype)
        modules.setdefault(column, nn.ModuleDict())[str(at)] = made
    return modules


def _entry(built: nn.ModuleDict, at: int, own: Mapping[str, nn.Module]) -> Stage | None:
    """One entry of a column of bridges. Those built here begin with no in-place operation."""
    if str(at) not in built:
        return None
    module = built[str(at)]
    return stage(module, f"{at}.", protect=any(module is other for other in own.values()))


def _check_own(name: str, module: nn.Module, x: Any, target: Tensor) -> None:
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    with torch.no_grad(), torch.random.fork_rng():
        try:
            returned, _ = stage(module)(params, buffers, x)
        except RuntimeError as error:
            raise ValueError(f"link: your bridge {name!r} cannot read the feature: {error}") from error
    if returned.shape != target.shape:
        raise ValueError(
            f"link: your bridge {name!r} returns {shape(returned)}; the feature there is {shape(target)}."
        )
