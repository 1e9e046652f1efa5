"""Split a model into stages, without an edit to it.

`split(model)` records two forward passes (`_record`), takes as boundaries modules through whose output every
path from the input to the logits goes, makes a stage of what lies between two of them (`_inject`), and proves
in numbers that the stages compose to the model. `split([module, ...])` is the way by hand.
"""

import difflib
import functools
import gc
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from ._inject import Cut, Piece, features, nodes, piece, replaceable, returned, run
from ._record import Record, arguments, logits, reach, record, replica
from .stages import Buffers, Column, Params, _aliases, _run as run_module

Boundary: TypeAlias = str | tuple[str, ...]
_SIZES = (224, 256, 299, 384, 448, 512, 32, 28)  # of square images, tried in turn where no example is given
_CACHED = type(functools.lru_cache(int))
_BY_HAND = "write the stages by hand: split([module, ...])"


class Network(NamedTuple):
    """A model in stages: data only.

    Args:
        stages: The column of stages; the last returns the logits.
        params: The model's parameters themselves, by the names of `named_parameters()`.
        buffers: The model's buffers, by the names of `named_buffers()`.
        names: Where each stage ends: a module, or a tuple of modules; the last is the head.
        shapes: What each stage returned on the example, in the same form.
        cuts: Every module at which the model can be cut alone, in the order of the forward pass.
    """

    stages: Column
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    names: tuple[Boundary, ...]
    shapes: tuple[Any, ...]
    cuts: tuple[str, ...]

    def __str__(self) -> str:
        """The stages as a table."""
        shapes = self.shapes or ("",) * len(self.names)
        rows = [
            ("stage", "ends at", "returns"),
            *zip(range(len(self.names)), self.names, shapes, strict=True),
        ]
        width = max(len(str(row[1])) for row in rows)
        table = [f"{at!s:<5}  {name!s:<{width}}  {shape}".rstrip() for at, name, shape in rows]
        return "\n".join([*table, *(["cuts: " + ", ".join(self.cuts)] if self.cuts else [])])


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
    if any(key == "_forward_hooks" for seen in records for _, key in seen.attributes):
        kind = type(model).__name__
        raise ValueError(
            f"split: {kind} hooks its own modules when it first runs. Run it once, then split it."
        )
    cuts = tuple(name for name in _in_order(records[0]) if all(_is_cut(record, name) for record in records))
    if at is None or isinstance(at, int):
        boundaries = _automatic(model, records[0], cuts, at)
    else:
        boundaries = _named(model, records, cuts, at)
    context = tuple(batch) if isinstance(batch, Mapping) else ()
    ends = zip(((), *boundaries), (*boundaries, ()), strict=True)
    pieces = tuple(piece(model, records, begin, end, context) for begin, end in ends)
    return Network(
        stages=tuple(partial(run, part) for part in _rehearsed(model, pieces, batch, example, exact)),
        params=dict(model.named_parameters()),
        buffers=dict(model.named_buffers()),
        names=(*map(_single, boundaries), _head(records[0], boundaries)),
        shapes=(*(_shape(records, cut) for cut in boundaries), _shapes(records[0].logits)),
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
    if at is not None or not entries:
        raise ValueError("split: a list of modules is a model in stages: it takes at least one, and no `at`.")
    modules = nn.ModuleDict(
        {str(at): entry for at, entry in enumerate(entries) if isinstance(entry, nn.Module)}
    )
    params = _aliases(modules.named_parameters(remove_duplicate=False), "")
    buffers = _aliases(modules.named_buffers(remove_duplicate=False), "")
    stages = tuple(
        partial(run_module, entry, _under(f"{at}.", params), _under(f"{at}.", buffers), True)
        if isinstance(entry, nn.Module)
        else partial(_run_function, entry)
        for at, entry in enumerate(entries)
    )
    network = Network(
        stages=stages,
        params=dict(modules.named_parameters()),
        buffers=dict(modules.named_buffers()),
        names=tuple(str(at) for at in range(len(entries))),
        shapes=(),
        cuts=(),
    )
    return network if example is None else network._replace(shapes=_shapes_by_hand(network, example))


def _under(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {own.removeprefix(prefix): name for own, name in names.items() if own.startswith(prefix)}


def _run_function(
    function: Callable[..., Any], params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    return function(pytree.tree_map_only(Tensor, torch.clone, x)), {}


def _recorded(model: nn.Module, example: Any) -> tuple[Any, tuple[Record, Record]]:
    """Record the model in eval, and in train with one more example, on fake tensors if it runs on them."""
    batches = (
        _images(model) if example is None else [dict(example) if isinstance(example, Mapping) else example]
    )
    failed: Exception | None = None
    for fake in (True, False):
        for batch in batches:
            try:
                return batch, _record_twice(model, batch, fake)
            except Exception as error:  # whatever a model's forward raises
                failed = failed or error
    given = "the example" if example is not None else f"an image batch {_shapes(batches[0])}"
    raise ValueError(
        f"split: {type(model).__name__} does not run on {given} ({type(failed).__name__}: {failed}). Pass "
        "example=: a batch that it takes, a tuple for several arguments, or a dict for named ones."
    ) from failed


def _images(model: nn.Module) -> list[Tensor]:
    """Batches for a model of images, in the channels and the type of its first convolution."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    like = next((weight for weight in weights if weight.ndim == 4), (*weights, torch.zeros(()))[0])
    channels = like.shape[1] if like.ndim == 4 else 3
    return [like.detach().new_zeros(()).expand(2, channels, size, size) for size in _SIZES]


def _record_twice(model: nn.Module, batch: Any, fake: bool) -> tuple[Record, Record]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    convert = partial(mode.from_tensor, static_shapes=True) if fake else _detached
    try:
        with mode if fake else nullcontext(), _random_state_kept(), _no_log(FakeTensorMode.__module__):
            twin = replica(model, model, convert)
            for weight in twin.parameters():
                weight.requires_grad_(weight.is_floating_point())
            batch = pytree.tree_map_only(Tensor, convert, batch)
            return record(twin.train().eval(), batch), record(twin.train(), _one_more(batch))
    finally:
        _forget_fake_tensors()


def _forget_fake_tensors() -> None:
    """Clear the cached functions that hold some: libraries keep tables of positions in them."""
    for thing in gc.get_objects():
        if type(thing) is _CACHED and any(
            isinstance(leaf, FakeTensor)
            for held in gc.get_referents(thing)
            for leaf in pytree.tree_leaves(held)
        ):
            thing.cache_clear()


def _detached(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied


def _one_more(batch: Any) -> Any:
    """The batch with its first example twice."""
    args, kwargs = arguments(batch)
    first = (*args, *kwargs.values())[0]
    examples = len(first) if isinstance(first, Tensor | list) else 0

    def grow(value: Any) -> Any:
        if not isinstance(value, Tensor | list) or (isinstance(value, Tensor) and not value.ndim):
            return value
        if len(value) != examples:
            return value
        return torch.cat([value, value[:1]]) if isinstance(value, Tensor) else value + value[:1]

    if kwargs:
        return {name: grow(value) for name, value in kwargs.items()}
    return tuple(map(grow, args))


def _in_order(seen: Record) -> list[str]:
    """Modules in the order in which they end."""
    return list(dict.fromkeys(call.name for call in sorted(seen.calls, key=lambda call: call.end)))


def _is_cut(record: Record, name: str) -> bool:
    """Whether all paths pass one output: those above it times those below it are all."""
    features = nodes(record, (name,))
    if len(record.called.get(name, ())) != 1 or len(features) != 1 or features[0] in record.results:
        return False
    paths = sum(record.up[node] for node in record.results)
    return record.down[features[0]] * record.up[features[0]] == paths and _can_return(record, name, (name,))


def _can_return(record: Record, name: str, cut: Cut) -> bool:
    return replaceable(record, name, reach(record, record.results, stop=nodes(record, cut)))


def _automatic(model: nn.Module, seen: Record, cuts: Sequence[str], count: int | None) -> tuple[Cut, ...]:
    """One boundary where each resolution ends; or, where blocks share one, where equal groups of them end."""
    wanted = 4 if count is None else count - 1
    sizes = {name: size for name in cuts if (size := _positions(seen, name)) > 1}
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


def _positions(seen: Record, name: str) -> int:
    """How many positions a feature has: a map with channels first or last, or a sequence."""
    shape = next(leaf.shape for leaf in seen.called[name][0].leaves if isinstance(leaf, Tensor))
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
        if not nodes(record, (name,)):
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


def _separates(record: Record, cut: Cut) -> bool:
    """Whether the logits depend on the input only through the boundary."""
    return not reach(record, record.results, stop=nodes(record, cut)) & record.entries


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


def _shapes(value: Any) -> Any:
    return _single([tuple(leaf.shape) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)])


def _shape(records: Sequence[Record], cut: Cut) -> Any:
    ports = [returned(records, name) for name in cut]
    return _single([_single([leaf.shape for leaf in features(port)]) for port in ports])


def _shapes_by_hand(network: Network, example: Any) -> tuple[Any, ...]:
    shapes, value = [], example
    with _random_state_kept(), torch.no_grad():
        for entry in network.stages:
            assert entry is not None
            value, _ = entry(network.params, network.buffers, value)
            shapes.append(_shapes(value))
    return tuple(shapes)


def _head(seen: Record, boundaries: Sequence[Cut]) -> str:
    """The last module behind the last boundary that no other contains."""
    end = max((seen.called[name][0].end for cut in boundaries for name in cut), default=-1)
    heads = [call for call in seen.calls if "." not in call.name and call.name and call.start > end]
    return max(heads, key=lambda call: call.end).name if heads else "logits"


def _rehearsed(
    model: nn.Module, pieces: tuple[Piece, ...], batch: Any, example: Any, exact: bool
) -> tuple[Piece, ...]:
    """Run the stages in train and eval against the model, and note which buffers each of them writes.

    Where no example was given, small images will do, of a model that takes them.
    """
    if example is not None:
        return _rehearse(model, pieces, batch, exact)
    with _random_state_kept():
        images = torch.randn(batch.shape, dtype=batch.dtype, device=batch.device)
        small = torch.randn(3, batch.shape[1], 64, 64, dtype=batch.dtype, device=batch.device)
    try:
        return _rehearse(model, pieces, small, exact)
    except Exception:  # whatever a model says to other sizes than its own
        return _rehearse(model, pieces, images, exact)


def _rehearse(model: nn.Module, pieces: tuple[Piece, ...], batch: Any, exact: bool) -> tuple[Piece, ...]:
    """With perturbed tensors, which expose whatever is still read from the module."""
    with _random_state_kept(), torch.no_grad():
        every = tuple(
            part._replace(copied=frozenset(part.buffers.values()), returned=frozenset(part.buffers.values()))
            for part in pieces
        )
        twin, parts = replica((model, every), model, lambda tensor: tensor)
        params = _perturbed(dict(model.named_parameters()), -0.01)
        buffers = _perturbed(dict(model.named_buffers()), 0.0)
        whole = partial(_whole, twin, params, buffers, batch)
        chain = partial(_chain, parts, params, buffers, batch)
        for mode in ("train", "eval"):
            twin.train(mode == "train")
            expected, found = _seeded(whole), _seeded(chain)
            if not _agree(buffers, expected, found):
                _explain(buffers, whole, chain, mode, exact)
            pieces = _note_writes(pieces, buffers, expected[1], found[1])
    return pieces


def _agree(before: Buffers, expected: tuple[Any, Buffers], found: tuple[Any, Sequence[Buffers]]) -> bool:
    return _same(expected[0], found[0]) and None not in _writers(before, expected[1], found[1]).values()


def _writers(before: Buffers, after: Buffers, left: Sequence[Buffers]) -> dict[str, int | None]:
    """Of each buffer that the model writes, the first stage that leaves it as the model does.

    What the forward of a container writes, every stage writes that runs it: that one stage returns it.
    """
    changed = [name for name, tensor in after.items() if not _equal(tensor, before[name])]
    stages = {
        name: [at for at, own in enumerate(left) if name in own and _equal(own[name], after[name])]
        for name in changed
    }
    return {name: found[0] if found else None for name, found in stages.items()}


def _note_writes(
    pieces: tuple[Piece, ...], before: Buffers, after: Buffers, left: Sequence[Buffers]
) -> tuple[Piece, ...]:
    writers = _writers(before, after, left)
    return tuple(
        part._replace(
            copied=part.copied
            | {name for name, now in own.items() if now._version or not _equal(now, before[name])},
            returned=part.returned | {name for name, writer in writers.items() if writer == at},
        )
        for at, (part, own) in enumerate(zip(pieces, left, strict=True))
    )


def _whole(model: nn.Module, params: Params, buffers: Buffers, batch: Any) -> tuple[Any, dict[str, Tensor]]:
    """The model's logits, and its buffers afterwards."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, arguments(batch))
    given = {**params, **{name: tensor.clone() for name, tensor in buffers.items()}}
    own = _aliases(model.named_parameters(remove_duplicate=False), "")
    own |= _aliases(model.named_buffers(remove_duplicate=False), "")
    tensors = {name: given[first] for name, first in own.items()}
    y = logits(functional_call(model, tensors, args, kwargs, tie_weights=False))
    return y, {name: tensors[name] for name in buffers}


def _chain(
    pieces: Iterable[Piece], params: Params, buffers: Buffers, batch: Any
) -> tuple[Any, list[dict[str, Tensor]]]:
    """The logits that the stages compute, and the buffers as each of them left them."""
    context = batch if isinstance(batch, Mapping) else {}
    value, left = batch, []
    for part in pieces:
        try:
            value, new = run(part, params, {**buffers, **context}, value)
        except Exception as error:
            after = _listed(port.name for port in part.begin) if part.begin else "the input"
            raise ValueError(
                f"split: the stage after {after} does not run by itself ({type(error).__name__}: {error}). "
                f"Use other boundaries, or {_BY_HAND}."
            ) from error
        left.append(new)
    return value, left


def _explain(
    before: Buffers, whole: Callable[[], Any], chain: Callable[[], Any], mode: str, exact: bool
) -> None:
    """Raise, unless the difference comes from random numbers alone and that was accepted."""
    expected, drawn = _with_equal_draws(whole)
    found, drawn_again = _with_equal_draws(chain)
    if not _agree(before, expected, found):
        raise ValueError(
            f"split: compose(stages) differs from the model in {mode} mode. Use other boundaries, or {_BY_HAND}."
        )
    if exact:
        names = sorted((drawn_again - drawn) | (drawn - drawn_again))
        raise ValueError(
            f"split: compose(stages) differs from the model in {mode} mode only by random numbers drawn in "
            f"{_listed(names)}. Pass exact=False to accept."
        )


def _with_equal_draws(function: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    """Run a function in which every random operation starts from one seed; count them by module."""
    drawn: Counter[str] = Counter()

    class Reseed(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if torch.Tag.nondeterministic_seeded in func.tags:
                drawn[max(tracker.parents, key=len).partition(".")[2]] += 1
                torch.manual_seed(0)
            return func(*args, **(kwargs or {}))

    with ModuleTracker() as tracker, Reseed():  # type: ignore[no-untyped-call]
        return _seeded(function), drawn


def _seeded(function: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return function()


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _no_log(name: str) -> Iterator[None]:
    """Torch logs what a model cannot do on fake tensors, which here is no error yet."""
    log = logging.getLogger(name)
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def _perturbed(tensors: Mapping[str, Tensor], low: float) -> dict[str, Tensor]:
    return {
        name: tensor + torch.empty_like(tensor).uniform_(low, 0.01)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in tensors.items()
    }


def _same(a: Any, b: Any) -> bool:
    """Whether all tensors of two values have the same bits; nan equals nan."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return all(_equal(x, y) for x, y in pairs if isinstance(x, Tensor))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
