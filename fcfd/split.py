"""Split a model into stages, without an edit to it.

`split(model)` records a forward pass, finds the modules through whose outputs every path from the input to
the logits goes, and makes a stage of what lies between any two of them. Before it returns it proves, in
numbers, that the stages compose to the model. `split([module, ...])` is the way by hand.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ._inject import Cut, features_of, nodes, piece, port_of, run
from ._record import Record, arguments, logits, record, replica
from .stages import Column, _aliases, stage

Boundary: TypeAlias = str | tuple[str, ...]


class Network(NamedTuple):
    """A model in stages: data only.

    Args:
        stages: The column of stages; the last returns the logits.
        params: The model's parameters themselves, by the names of `named_parameters()`.
        buffers: The model's buffers, by the names of `named_buffers()`.
        names: Where each stage ends. The last is the head.
        shapes: What each stage returned on the example.
        cuts: Every module at which the model may be cut alone, in the order of the forward pass.
    """

    stages: Column
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    names: tuple[Boundary, ...]
    shapes: tuple[Any, ...]
    cuts: tuple[str, ...]


def split(
    model: nn.Module | Iterable[Callable[..., Any]],
    at: int | Iterable[Boundary] | None = None,
    *,
    example: Any = None,
    exact: bool = True,
) -> Network:
    """Split a model into stages."""
    if not isinstance(model, nn.Module):
        return _by_hand(model)
    batch = _images(model) if example is None else example
    records = _records(model, batch)
    cuts = _cuts(records)
    boundaries = (
        _automatic(model, records[0], cuts, at)
        if at is None or isinstance(at, int)
        else _named(model, records, cuts, at)
    )
    context = tuple(batch) if isinstance(batch, Mapping) else ()
    ends = zip(((), *boundaries), (*boundaries, ()), strict=True)
    pieces = tuple(piece(model, records, begin, end, context) for begin, end in ends)
    pieces = _rehearsed(model, pieces, batch, example is None)
    return Network(
        stages=tuple(partial(run, part) for part in pieces),
        params=dict(model.named_parameters()),
        buffers=dict(model.named_buffers()),
        names=tuple(map(_unpack, boundaries)) + (_head(records[0], boundaries),),
        shapes=tuple(_unpack([_shape_of(records, name) for name in cut]) for cut in boundaries)
        + (_shapes(records[0].logits),),
        cuts=cuts,
    )


def _unpack(items):
    return items[0] if len(items) == 1 else tuple(items)


def _shape_of(records, name):
    return _unpack([list(leaf.shape) for leaf in features_of(port_of(records, name))])


def _shapes(value: Any) -> Any:
    return _unpack([list(t.shape) for t in pytree.tree_leaves(value) if isinstance(t, Tensor)])


def _by_hand(entries: Iterable[Callable[..., Any]]) -> Network:
    """Each entry is a stage; tensors are named as in `nn.Sequential(*entries)`."""
    entries = tuple(entries)
    modules = nn.ModuleDict(
        {str(at): entry for at, entry in enumerate(entries) if isinstance(entry, nn.Module)}
    )
    tied = _aliases(modules.named_parameters(remove_duplicate=False), "") | _aliases(
        modules.named_buffers(remove_duplicate=False), ""
    )
    tied = {own: name for own, name in tied.items() if own != name}
    names = tuple(str(at) for at in range(len(entries)))
    stages = tuple(
        partial(_tied, stage(entry, f"{name}."), tied)
        if isinstance(entry, nn.Module)
        else partial(_plain, entry)
        for name, entry in zip(names, entries, strict=True)
    )
    return Network(stages, dict(modules.named_parameters()), dict(modules.named_buffers()), names, (), ())


def _tied(inner, tied, params, buffers, x):
    params, buffers = (
        {**given, **{own: given[name] for own, name in tied.items() if name in given}}
        for given in (params, buffers)
    )
    return inner(params, buffers, x)


def _plain(function, params, buffers, x):
    return function(pytree.tree_map_only(Tensor, torch.clone, x)), {}


def _images(model: nn.Module) -> Tensor:
    weight = next(model.parameters(), torch.zeros(()))
    return torch.zeros(2, 3, 224, 224, dtype=weight.dtype, device=weight.device)


def _records(model: nn.Module, batch: Any) -> tuple[Record, Record]:
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def convert(t):
        f = fake.from_tensor(t, static_shapes=True)
        if f.is_floating_point() and isinstance(t, nn.Parameter):
            f.requires_grad_(True)
        return f

    with fake, torch.random.fork_rng():
        twin = replica(model, model, convert)
        small = pytree.tree_map_only(Tensor, lambda t: fake.from_tensor(t, static_shapes=True), batch)
        large = pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t[:1]]), small)
        return record(twin.eval(), small), record(twin.train(), large)


def _cuts(records: Sequence[Record]) -> tuple[str, ...]:
    """The modules that every path passes: paths to them times paths from them are all paths."""
    calls = sorted(records[0].calls, key=lambda call: call.end)
    return tuple(call.name for call in calls if all(_is_cut(record, call.name) for record in records))


def _is_cut(record: Record, name: str) -> bool:
    found = nodes(record, (name,))
    if len(found) != 1 or len(record.called[name]) != 1 or found[0] in record.results:
        return False
    return record.down[found[0]] * record.up[found[0]] == sum(record.up[node] for node in record.results)


def _named(model, records, cuts, at):
    return tuple((name,) if isinstance(name, str) else name for name in at)


def _automatic(model: nn.Module, seen: Record, cuts: Sequence[str], count: int | None) -> tuple[Cut, ...]:
    """One boundary where each resolution ends, or where each of equal groups of blocks ends."""
    modules = dict(model.named_modules())
    sizes = {name: _positions(seen, name) for name in cuts}
    sizes = {name: size for name, size in sizes.items() if size > 1}
    kinds = {name: (name.rpartition(".")[0], type(modules[name])) for name in sizes if modules[name]._modules}
    kinds_count = Counter(kinds.values())
    blocks = [name for name, kind in kinds.items() if kinds_count[kind] > 1]
    ends = {sizes[name]: name for name in sorted(sizes, key=lambda name: -name.count("."))}
    by_resolution = [name for name in sizes if name in ends.values()]
    wanted = 4 if count is None else count - 1
    if len({sizes[name] for name in blocks}) == 1 or wanted > len(by_resolution):
        groups = min(wanted, len(blocks)) if count is None else wanted
        if groups > len(blocks):
            raise ValueError("split: too few")
        chosen = [blocks[(at + 1) * len(blocks) // groups - 1] for at in range(groups)]
    else:
        chosen = by_resolution[-wanted:] if wanted else []
    return tuple((name,) for name in chosen)


def _positions(seen: Record, name: str) -> int:
    """How many positions a feature has: of a map channels first or last, or of a sequence."""
    shape = next(leaf for leaf in seen.called[name][0].leaves if isinstance(leaf, Tensor)).shape
    last = len(shape) == 3 or (len(shape) > 3 and shape[-3] == shape[-2] != shape[-1])
    return prod(shape[1:-1]) if last else prod(shape[2:])


def _head(seen: Record, boundaries: Sequence[Cut]) -> str:
    end = max((seen.called[name][-1].end for name in boundaries[-1]), default=-1) if boundaries else -1
    heads = [call for call in seen.calls if call.name and "." not in call.name and call.start > end]
    return max(heads, key=lambda call: call.end).name if heads else "logits"


def _rehearsed(model, pieces, batch, free):
    if free:
        try:
            small = torch.randn(3, *batch.shape[1:2], 64, 64).to(batch)
            return _rehearse(model, pieces, small)
        except Exception as e:
            print("small failed", repr(e)[:300])
        batch = torch.randn(batch.shape).to(batch)
    return _rehearse(model, pieces, batch)


@contextmanager
def _seeded() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _shifted(tensors: Mapping[str, Tensor], low: float) -> dict[str, Tensor]:
    return {
        name: tensor.detach() + torch.empty_like(tensor).uniform_(low, 0.01)
        if tensor.is_floating_point()
        else tensor.detach().clone()
        for name, tensor in tensors.items()
    }


def _seed():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def _rehearse(model, pieces, batch):
    with _seeded(), torch.no_grad():
        twin, parts = replica((model, pieces), model, lambda t: t)
        params = _shifted(dict(model.named_parameters()), -0.01)
        buffers = _shifted(dict(model.named_buffers()), 0.0)
        aliases = _aliases(
            [*twin.named_parameters(remove_duplicate=False), *twin.named_buffers(remove_duplicate=False)], ""
        )
        writes = [set() for _ in parts]
        for training in (True, False):
            twin.train(training)
            _seed()
            state = {name: t.clone() for name, t in buffers.items()}
            args, kwargs = arguments(pytree.tree_map_only(Tensor, torch.clone, batch))
            tensors = {own: {**params, **state}[name] for own, name in aliases.items()}
            expected = logits(functional_call(twin, tensors, args, kwargs, tie_weights=False))
            state = {name: tensors[name] for name in buffers}
            _seed()
            value, now = batch, dict(buffers)
            for part, written in zip(parts, writes):
                context = batch if isinstance(batch, Mapping) else {}
                value, new = run(part, params, {**now, **context}, value)
                written |= {name for name, t in new.items() if t._version or not _same(t, now[name])}
                now |= new
            if not _same(value, expected) or not _same(now, state):
                raise ValueError(
                    "split: compose(stages) differs from the model in " + ("train" if training else "eval")
                )
    return tuple(part._replace(writes=frozenset(w)) for part, w in zip(pieces, writes))


def _same(a: Any, b: Any) -> bool:
    a, b = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num())
        for x, y in zip(a, b, strict=True)
        if isinstance(x, Tensor)
    )
