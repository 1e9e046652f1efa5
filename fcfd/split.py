"""Split a model into stages, without an edit to it.

`split(model)` records two forward passes (`_record`), takes as boundaries modules through whose output every
path from the input to the logits goes, makes a stage of what lies between two of them (`_inject`), and proves
in numbers that the stages compose to the model. `split([module, ...])` is the way by hand.
"""

import difflib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ._inject import Cut, Piece, Port, aliases, leaves, piece, replaceable, returned, run
from ._record import Record, arguments, features, logits, random_state_kept, reach, record_twice, replica
from .stages import Buffers, Column, Params, _run as run_module

Boundary: TypeAlias = str | tuple[str, ...]
_SIZES = (224, 256, 299, 384, 448, 512, 32, 28)  # of images that are tried where no example is given
_BY_HAND = "write the stages by hand: split([module, ...])"


class Network(NamedTuple):
    """A model in stages: data only.

    Args:
        stages: The column of stages; the last returns the logits.
        params: The model's parameters themselves, by the names of `named_parameters()`.
        buffers: The model's buffers, by the names of `named_buffers()`.
        names: Where each stage ends: a module, or a tuple of modules; the last is the head.
        shapes: What each stage returned on the example, in the same form; not known of stages by hand.
        cuts: Every module at which the model can be cut alone, in the order of the forward pass.
    """

    stages: Column
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    names: tuple[Boundary, ...]
    shapes: tuple[Any, ...]
    cuts: tuple[str, ...]

    def __str__(self) -> str:
        """The stages as a table, and the cuts."""
        rows = [("stage", "ends at", "returns")]
        rows += zip(
            map(str, range(len(self.names))), map(str, self.names), map(str, self.shapes), strict=True
        )
        width = max(len(name) for _, name, _ in rows)
        table = [f"{at:<5}  {name:<{width}}  {shape}" for at, name, shape in rows]
        return "\n".join([*table, f"cuts: {', '.join(self.cuts)}"])


def split(
    model: nn.Module | Iterable[Callable[..., Any]],
    at: int | Iterable[Boundary] | None = None,
    *,
    example: Any = None,
    exact: bool = True,
) -> Network:
    """Split a model into stages that run its own forward and compose to it exactly."""
    if not isinstance(model, nn.Module):
        return _by_hand(tuple(model), at, example)
    _refuse_wrappers(model)
    batch, records = _recorded(model, example)
    cuts = tuple(name for name in _in_order(records[0]) if all(_is_cut(seen, name) for seen in records))
    if at is None or isinstance(at, int):
        chosen = _automatic(model, records, cuts, at)
    else:
        chosen = _named(model, records, cuts, at)
    context = tuple(batch) if isinstance(batch, Mapping) else ()
    pieces = [
        piece(model, records, *ends, context) for ends in zip(((), *chosen), (*chosen, ()), strict=True)
    ]
    return Network(
        stages=tuple(partial(run, part) for part in _rehearsed(model, pieces, batch, example, exact)),
        params=dict(model.named_parameters()),
        buffers=dict(model.named_buffers()),
        names=(*map(_single, chosen), _head(records[0], chosen)),
        shapes=(*(_shape(records, cut) for cut in chosen), _shapes(records[0].logits)),
        cuts=cuts,
    )


def _refuse_wrappers(model: nn.Module) -> None:
    kind = type(model).__name__
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"split: {kind} wraps a model. Split model.module and distribute the training step.")
    if hasattr(model, "_orig_mod"):
        raise ValueError("split: the model is compiled. Split model._orig_mod and compile the stages.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("split: a scripted model has no forward to cut. Split the model that was scripted.")


def _by_hand(entries: Sequence[Callable[..., Any]], at: Any, example: Any) -> Network:
    """Each entry is a stage; tensors are named as in `nn.Sequential(*entries)`."""
    if not entries or at is not None or example is not None:
        raise ValueError("split: a list of modules is a model in stages; it takes no names and no example.")
    modules = nn.ModuleDict({str(at): one for at, one in enumerate(entries) if isinstance(one, nn.Module)})
    names = aliases(modules)
    return Network(
        stages=tuple(_stage_by_hand(entry, f"{at}.", names) for at, entry in enumerate(entries)),
        params=dict(modules.named_parameters()),
        buffers=dict(modules.named_buffers()),
        names=tuple(str(at) for at in range(len(entries))),
        shapes=("",) * len(entries),
        cuts=(),
    )


def _stage_by_hand(entry: Callable[..., Any], prefix: str, names: Iterable[Mapping[str, str]]) -> Any:
    if not isinstance(entry, nn.Module):
        return partial(_run_function, entry)
    params, buffers = (
        {own.removeprefix(prefix): name for own, name in kind.items() if own.startswith(prefix)}
        for kind in names
    )
    return partial(run_module, entry, params, buffers, True)


def _run_function(
    function: Callable[..., Any], params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    return function(pytree.tree_map_only(Tensor, torch.clone, x)), {}


def _recorded(model: nn.Module, example: Any) -> tuple[Any, tuple[Record, Record]]:
    """Record the model in eval, and in train with one more example, on fake tensors if it runs on them."""
    batches = (
        [dict(example) if isinstance(example, Mapping) else example]
        if example is not None
        else _images(model)
    )
    errors = []
    for fake in (True, False):
        for batch in batches:
            try:
                return batch, record_twice(model, batch, fake)
            except Exception as error:  # whatever a model's forward raises
                errors.append(error)
    given = "the example" if example is not None else f"an image batch {_shapes(batches[0])}"
    raise ValueError(
        f"split: {type(model).__name__} does not run on {given} ({type(errors[0]).__name__}: {errors[0]}). "
        "Pass example=: a batch that it takes, a tuple for several arguments, or a dict for named ones."
    ) from errors[0]


def _images(model: nn.Module) -> list[Tensor]:
    """Batches for a model of images, in the channels and the type of its first convolution."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    like = next((weight for weight in weights if weight.ndim == 4), (*weights, torch.zeros(()))[0])
    channels = like.shape[1] if like.ndim == 4 else 3
    return [like.detach().new_zeros(()).expand(2, channels, size, size) for size in _SIZES]


def _in_order(seen: Record) -> list[str]:
    """Modules in the order in which they end."""
    return list(dict.fromkeys(call.name for call in sorted(seen.calls, key=lambda call: call.end)))


def _is_cut(seen: Record, name: str) -> bool:
    """Whether a module runs once and every path from the logits to the input goes through what it returns."""
    found = features(seen, (name,))
    if len(seen.called.get(name, ())) != 1 or not found or found[0] in seen.results:
        return False
    through = seen.down[found[0]] * seen.up[found[0]]  # the paths above it times those below it
    if len(found) == 1 and through != sum(seen.up[node] for node in seen.results):
        return False
    return _separates(seen, (name,)) and _can_return(seen, name, (name,))


def _separates(seen: Record, cut: Cut) -> bool:
    """Whether the logits depend on the input only through a boundary."""
    return not reach(seen, seen.results, stop=features(seen, cut)) & seen.entries


def _can_return(seen: Record, name: str, cut: Cut) -> bool:
    return replaceable(seen, name, reach(seen, seen.results, stop=features(seen, cut)))


def _automatic(
    model: nn.Module, records: Sequence[Record], cuts: Sequence[str], count: int | None
) -> tuple[Cut, ...]:
    """One boundary where each resolution ends; or, where blocks share one, where equal groups of them end."""
    wanted = 4 if count is None else count - 1
    sizes = {name: size for name in cuts if (size := _positions(returned(records, name))) > 1}
    blocks = _blocks(model, sizes)
    shallow = [name for name in sizes if not any(name.startswith(f"{block}.") for block in blocks)]
    last = {sizes[name]: name for name in sorted(shallow, key=lambda name: -name.count("."))}
    resolutions = [name for name in shallow if name in last.values()]
    if len({sizes[name] for name in blocks}) != 1 and (count is None or wanted <= len(resolutions)):
        chosen = resolutions[max(0, len(resolutions) - wanted) :]
    else:
        groups = min(wanted, len(blocks)) if count is None else wanted
        if groups > len(blocks):
            raise ValueError(
                f"split: cannot make {count} stages by itself, of {len(resolutions)} resolutions and "
                f"{len(blocks)} blocks. Pass at=[names] out of {_listed(cuts)}."
            )
        chosen = [blocks[(at + 1) * len(blocks) // groups - 1] for at in range(groups)]
    if not chosen and wanted:
        raise ValueError(
            f"split: {type(model).__name__} has no maps or sequences to choose boundaries by. Pass "
            f"at=[names] out of {_listed(cuts)}, or {_BY_HAND}."
        )
    return tuple((name,) for name in chosen)


def _positions(port: Port) -> int:
    """How many positions a feature has: a map with channels first or last, or a sequence."""
    shape = next(leaf.shape for leaf in leaves(port) if leaf.feature)
    if len(shape) == 3 and shape[-1] == 1:
        return 1
    channels_last = len(shape) == 3 or (len(shape) > 3 and shape[-3] == shape[-2] != shape[-1])
    return prod(shape[1:-1]) if channels_last else prod(shape[2:])


def _blocks(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Modules of modules that have siblings of their own class."""
    modules = dict(model.named_modules())
    kinds = {name: (name.rpartition(".")[0], type(modules[name])) for name in names if modules[name]._modules}
    count = Counter(kinds.values())
    return [name for name, kind in kinds.items() if count[kind] > 1]


def _named(
    model: nn.Module, records: Sequence[Record], cuts: Sequence[str], at: Iterable[Boundary]
) -> tuple[Cut, ...]:
    """The boundaries that the caller names, in the order of the forward pass, or why one is none."""
    first = {module: name for name, module in model.named_modules()}
    modules = dict(model.named_modules(remove_duplicate=False))
    boundaries = []
    for boundary in at:
        cut = (boundary,) if isinstance(boundary, str) else tuple(boundary)
        for name in cut:
            if name not in modules or name == "":
                near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4) or cuts
                raise ValueError(
                    f"split: {type(model).__name__} has no module {name!r}. Near: {_listed(near)}."
                )
        cut = tuple(first[modules[name]] for name in cut)
        for seen in records:
            _check_cut(seen, cut, cuts)
        boundaries.append(cut)
    return tuple(sorted(boundaries, key=lambda cut: max(records[0].called[name][0].end for name in cut)))


def _check_cut(record: Record, cut: Cut, cuts: Sequence[str]) -> None:
    for name in cut:
        runs = len(record.called.get(name, ()))
        if runs != 1:
            raise ValueError(
                f"split: {name!r} runs {runs} times in one forward; a boundary must run once. Use its parent."
                if runs
                else f"split: {name!r} does not run in the forward. Use its parent or a child."
            )
        if not features(record, (name,)):
            raise ValueError(f"split: {name!r} is not a cut: nothing that it returns depends on the input.")
    if not _separates(record, cut):
        raise ValueError(f"split: {_no_cut(record, cut, cuts)}")
    for name in cut:
        if not _can_return(record, name, cut):
            kinds = {type(leaf).__name__ for leaf in record.called[name][0].leaves}
            raise ValueError(
                f"split: {name!r} is not a cut: it returns {_listed(sorted(kinds))}, of which a later stage "
                f"reads more than the features. Valid names near it: {_near(record, name, cuts)}."
            )


def _no_cut(record: Record, cut: Cut, cuts: Sequence[str]) -> str:
    """Why: a module that would complete the boundary is missing, or a path inside its parent goes around."""
    name = cut[-1]
    parents = {"", *(name[:at] for at, letter in enumerate(name) if letter == ".")}
    for other in _in_order(record):
        apart = not f"{other}.".startswith(f"{name}.") and not f"{name}.".startswith(f"{other}.")
        beside = other.rpartition(".")[0] in parents and apart and not _separates(record, (other,))
        if beside and len(record.called[other]) == 1 and _separates(record, (*cut, other)):
            return f"{name!r} needs company: {tuple(sorted((*cut, other)))}."
    parent = name.rpartition(".")[0]
    around = f"what enters {parent!r}" if parent else "the input"
    return (
        f"{name!r} is not a cut: the output also depends on {around} through another path. "
        f"Valid names near it: {_near(record, name, cuts)}."
    )


def _near(record: Record, name: str, cuts: Sequence[str]) -> str:
    """The next boundaries behind a module, or else the last ones before it."""
    end = record.called[name][0].end
    behind = [cut for cut in cuts if record.called[cut][0].end >= end]
    return _listed(behind[:2] or cuts[-2:])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "(none)"


def _single(items: Sequence[Any]) -> Any:
    return items[0] if len(items) == 1 else tuple(items)


def _shape(records: Sequence[Record], cut: Cut) -> Any:
    ports = [returned(records, name) for name in cut]
    return _single([_single([leaf.shape for leaf in leaves(port) if leaf.feature]) for port in ports])


def _shapes(value: Any) -> Any:
    return _single([tuple(leaf.shape) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)])


def _head(seen: Record, boundaries: Sequence[Cut]) -> str:
    """The last module behind the last boundary that no other contains."""
    end = max((seen.called[name][0].end for cut in boundaries for name in cut), default=-1)
    heads = [call for call in seen.calls if "." not in call.name and call.name and call.start > end]
    return max(heads, key=lambda call: call.end).name if heads else "logits"


def _rehearsed(
    model: nn.Module, pieces: Sequence[Piece], batch: Any, example: Any, exact: bool
) -> list[Piece]:
    """Where no example was given, small images will do, of a model that takes them."""
    with random_state_kept():
        if example is None:
            batch = torch.randn(batch.shape, dtype=batch.dtype, device=batch.device)
            try:
                return _rehearse(model, pieces, torch.cat([batch, batch[:1]])[..., :64, :64], exact)
            except Exception:  # whatever a model says to other sizes than its own
                pass
        return _rehearse(model, pieces, batch, exact)


@torch.no_grad()
def _rehearse(model: nn.Module, pieces: Sequence[Piece], batch: Any, exact: bool) -> list[Piece]:
    """Prove that the stages compose to the model, in train and eval, and note which buffers each writes.

    It happens on a replica, with perturbed tensors: they expose what a stage still reads from a module.
    """
    every = [part._replace(writes=frozenset(part.buffers.values())) for part in pieces]
    twin, every = replica((model, every), model)
    params = _perturbed(model.named_parameters(), -0.01)
    buffers = _perturbed(model.named_buffers(), 0.0)
    writes: list[set[str]] = [set() for _ in pieces]
    whole = partial(_whole, twin, params, buffers, batch)
    chain = partial(_chain, every, params, buffers, batch, writes)
    for mode in ("train", "eval"):
        twin.train(mode == "train")
        if not _same(_seeded(whole), _seeded(chain)):
            with _EqualDraws():  # type: ignore[no-untyped-call]
                drawn = _same(_seeded(whole), _seeded(chain))
            if exact or not drawn:
                raise ValueError(
                    f"split: compose(stages) differs from the model in {mode} mode"
                    + (" only by random numbers. Pass exact=False to accept, use" if drawn else ". Use")
                    + f" other boundaries, or {_BY_HAND}."
                )
    return [part._replace(writes=frozenset(own)) for part, own in zip(pieces, writes, strict=True)]


def _whole(model: nn.Module, params: Params, buffers: Buffers, batch: Any) -> tuple[Any, dict[str, Tensor]]:
    """The model's logits, and its buffers afterwards."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, arguments(batch))
    given = {**params, **{name: tensor.clone() for name, tensor in buffers.items()}}
    names = {own: name for kind in aliases(model) for own, name in kind.items()}
    tensors = {own: given[name] for own, name in names.items()}
    y = logits(functional_call(model, tensors, args, kwargs, tie_weights=False))
    return y, {name: tensors[name] for name in buffers}


def _chain(
    pieces: Iterable[Piece], params: Params, buffers: Buffers, batch: Any, writes: Iterable[set[str]]
) -> tuple[Any, dict[str, Tensor]]:
    """The same by the stages."""
    context = batch if isinstance(batch, Mapping) else {}
    value, state = batch, dict(buffers)
    for part, names in zip(pieces, writes, strict=True):
        try:
            value, new = run(part, params, {**buffers, **context}, value)
        except Exception as error:
            after = " and ".join(repr(port.name) for port in part.begin) or "the input"
            raise ValueError(
                f"split: the stage after {after} does not run by itself ({type(error).__name__}: {error}). "
                f"Use other boundaries, or {_BY_HAND}."
            ) from error
        changed = {name for name, now in new.items() if now._version or not _equal(now, buffers[name])}
        names |= changed
        state |= {name: new[name] for name in changed}
    return value, state


class _EqualDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets every random operation start from one seed, so that the order of drawing does not matter."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(0)
        return func(*args, **(kwargs or {}))


def _seeded(function: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return function()


def _perturbed(named: Iterable[tuple[str, Tensor]], low: float) -> dict[str, Tensor]:
    tensors = dict(named)
    noise = {
        name: torch.empty_like(x).uniform_(low, 0.01) for name, x in tensors.items() if x.is_floating_point()
    }
    return tensors | {name: tensors[name] + noise[name] for name in noise}


def _same(a: Any, b: Any) -> bool:
    """Whether all tensors of two values have the same bits; nan equals nan."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return all(_equal(x, y) for x, y in pairs if isinstance(x, Tensor))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
