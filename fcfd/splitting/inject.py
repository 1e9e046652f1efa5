"""Inject and stop: one stage of a model, run by the model's own forward.

The stage from boundary *a* to boundary *b* calls the model's own forward on a skeleton of it, in which

* module *a* returns the feature that the stage was given,
* modules before *a* return placeholders: zeros without memory, of the shapes that were recorded,
* module *b* raises an exception that carries its output, and the stage returns that.

So flags, dropout, statistics, control flow, masks and the size of the batch stay the model's own. A skeleton
is made of shallow copies of those modules and of whatever contains them; every other module is the user's own
object. Neither is written to: parameters, buffers, feature and placeholders all go in by `functional_call`.
The copies are in eval until *a* returns, so that what runs before it draws no random number and writes no
statistic a second time; from there on they take train or eval from their originals.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ..stages import Buffers, Params, _aliases, select
from .record import Call, Node, Record, arguments, features, logits, plain, reach, replica

_CONSTANTS = (type(None), bool, int, float, str)
Cut = tuple[str, ...]  # the modules whose outputs are one boundary
Copies = tuple[tuple[nn.Module, nn.Module], ...]  # each shallow copy with its original


@dataclass(frozen=True)
class Leaf:
    """Stands for a tensor that was recorded: its shape, and how each size grows with one more example."""

    slot: str
    shape: tuple[int, ...]
    growth: tuple[int, ...]
    examples: int  # in the recording
    dtype: torch.dtype
    moved: bool  # whether a later operation in place changes it
    feature: bool  # whether it depends on the input, and the logits on it


@dataclass(frozen=True)
class Given:
    """Stands for a tensor that a module hands through: its position among the leaves of the arguments."""

    at: int


class Port(NamedTuple):
    """What a module returns: `form` has a `Leaf` or a `Given` in place of each tensor."""

    name: str
    form: Any


class Scratch(NamedTuple):
    """Plain attributes that a forward writes, such as caches, and what every call finds in them."""

    twin: nn.Module
    keys: tuple[str, ...]
    found: dict[str, Any]


class Piece(NamedTuple):
    """A stage as data; `partial(run, piece)` is the stage."""

    model: nn.Module
    skeleton: nn.Module
    copies: Copies
    scratch: tuple[Scratch, ...]
    begin: tuple[Port, ...]  # where features are injected: nowhere in the first stage
    ahead: tuple[Port, ...]  # what returns placeholders
    inputs: Port  # the arguments of the model
    context: tuple[str, ...]  # their names, where the batch is a mapping
    params: dict[str, str]  # name in the model -> name in the network's dict: tied tensors share one
    buffers: dict[str, str]
    ran: tuple[nn.Module, ...]  # what runs in the stage
    writes: tuple[frozenset[str], frozenset[str]]  # buffers that it writes: in eval, in train


class _Stop(BaseException):
    """Carries the output of the boundary out of the model's forward."""

    def __init__(self, value: Any) -> None:
        self.value = value


def run(piece: Piece, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    """Run a stage: `stage(params, buffers, x) -> (y, new_buffers)`."""
    weights = select("params", params, piece.params.values())
    state = select("buffers", buffers, piece.buffers.values())
    writes = piece.writes[any(module.training for module in piece.ran)]
    state |= {name: state[name].clone() for name in writes}
    tensors = {own: weights[name] for own, name in piece.params.items()}
    tensors |= {own: state[name] for own, name in piece.buffers.items()}
    if piece.begin:
        injected = _injected(piece.begin, x)
        blank = partial(_blank, zero=injected[0][2].new_zeros(()), examples=_examples(injected))
        ports = (*piece.begin, *piece.ahead)
        tensors |= {_slot(port, leaf): blank(leaf) for port in ports for leaf in leaves(port)}
        tensors |= {name: tensor.clone() if leaf.moved else tensor for name, leaf, tensor in injected}
    if piece.begin and not piece.context:
        args, kwargs = pytree.tree_map_only(Leaf, blank, piece.inputs.form)
    else:
        args, kwargs = arguments(_context(piece, buffers) if piece.begin else x)
        if any(leaf.moved for leaf in leaves(piece.inputs)):
            args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
    _reset(piece)
    try:
        y = logits(functional_call(piece.skeleton, tensors, args, kwargs, tie_weights=False))
    except _Stop as stop:
        y = stop.value
    _reset(piece)
    return y, {name: tensors[own] for own, name in piece.buffers.items() if name in writes}


def _reset(piece: Piece) -> None:
    """Before a call, and after it so that nothing it computed stays alive."""
    awake = len(piece.begin) == 0
    for twin, original in piece.copies:
        twin.training = original.training and awake
    for twin, keys, found in piece.scratch:
        for key in keys:
            if key in found:
                setattr(twin, key, copy.copy(found[key]))
            elif hasattr(twin, key):
                delattr(twin, key)


def _wake(copies: Copies, *_: Any) -> None:
    """A hook on the last module that returns a feature: behind it the model is in its own mode."""
    for twin, original in copies:
        twin.training = original.training


def leaves(port: Port) -> list[Leaf]:
    """The tensors that a module computes."""
    return [leaf for leaf in pytree.tree_leaves(port.form) if isinstance(leaf, Leaf)]


def _slot(port: Port, leaf: Leaf) -> str:
    return f"{port.name}.{leaf.slot}"


def _injected(begin: Sequence[Port], x: Any) -> list[tuple[str, Leaf, Tensor]]:
    """Where each tensor of a feature goes, and what was recorded there."""
    found = []
    for port, value in zip(begin, (x,) if len(begin) == 1 else x, strict=True):
        own = [leaf for leaf in leaves(port) if leaf.feature]
        tensors = [value] if len(own) == 1 else _tensors(port, value)
        found += [(_slot(port, leaf), leaf, tensor) for leaf, tensor in zip(own, tensors, strict=True)]
    return found


def _tensors(port: Port, output: Any) -> list[Tensor]:
    pairs = zip(pytree.tree_leaves(port.form), pytree.tree_leaves(output), strict=True)
    return [tensor for leaf, tensor in pairs if isinstance(leaf, Leaf) and leaf.feature]


def _examples(injected: Sequence[tuple[str, Leaf, Tensor]]) -> int:
    """How many examples a feature holds."""
    for _, leaf, tensor in injected:
        for now, size, growth in zip(tensor.shape, leaf.shape, leaf.growth, strict=False):
            if growth:
                return leaf.examples + (now - size) // growth
    return injected[0][1].examples


def _blank(leaf: Leaf, zero: Tensor, examples: int) -> Tensor:
    """A placeholder, in the precision of the feature."""
    more = examples - leaf.examples
    sizes = [size + more * growth for size, growth in zip(leaf.shape, leaf.growth, strict=True)]
    blank = (zero if leaf.dtype.is_floating_point else zero.to(leaf.dtype)).expand(sizes)
    return blank.clone() if leaf.moved else blank


def _context(piece: Piece, buffers: Buffers) -> dict[str, Any]:
    """The batch, which a walk puts among the buffers where its entries have names."""
    for name in piece.context:
        if name not in buffers:
            raise ValueError(f"split: this model takes {name}; stages after the first need it.")
    return {name: buffers[name] for name in piece.context}


def _replay(twin: nn.Module, port: Port, *args: Any, **kwargs: Any) -> Any:
    """The forward of a module that is not run: what it was given, in the form that was recorded."""
    given = pytree.tree_leaves((args, kwargs))

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Leaf):
            return getattr(twin, leaf.slot)
        return given[leaf.at] if isinstance(leaf, Given) else leaf

    return pytree.tree_map(fill, port.form)


def _keep(port: Port, twin: nn.Module, _: Any, output: Any) -> None:
    """A hook on a module of a boundary of several: its output waits for the last one's."""
    twin._kept = pytree.tree_map_only(Tensor, torch.clone, _value(port, output))


def _stop(ends: Sequence[tuple[Port, nn.Module]], twin: nn.Module, _: Any, output: Any) -> None:
    """A hook on the last module of a boundary."""
    values = [_value(port, output) if other is twin else other._kept for port, other in ends]
    for _, other in ends:
        if other is not twin:
            del other._kept
    raise _Stop(tuple(values) if len(values) > 1 else values[0])


def _value(port: Port, output: Any) -> Any:
    tensors = _tensors(port, output)
    return tensors[0] if len(tensors) == 1 else output


def piece(model: nn.Module, records: Sequence[Record], begin: Cut, end: Cut, context: Cut) -> Piece:
    """Make the stage between two boundaries; `()` stands for the input and for the logits."""
    out, ran, early = _survey(records, begin, end)
    begins, ends = (tuple(returned(records, name) for name in cut) for cut in (begin, end))
    ahead = tuple(returned(records, name) for name in sorted(out))
    rewritten = {pair for record in records for pair in record.rewritten if pair[0] not in {*out, *begin}}
    twins = _graft(model, {*begin, *end, *out, *early, *(name for name, _ in rewritten)})
    copies = tuple((twin, original) for original, twin in twins.items() if twin is not original)
    own = {name: twins[module] for name, module in model.named_modules()}
    for port in (*begins, *ahead):
        _replace(own[port.name], port)
    if begin:
        own[_last(records, begin)].register_forward_hook(partial(_wake, copies))
    kept = tuple((port, own[port.name]) for port in ends)
    for port, twin in kept:
        last = port.name == _last(records, end)
        twin.register_forward_hook(partial(_stop, kept) if last else partial(_keep, port))
    read = _weights(records, begin, end)
    called = {name for record in records for name in record.called}
    params, buffers = (
        {name: first for name, first in tensors.items() if first in read or _owner(name, called) in ran}
        for tensors in aliases(model)
    )
    return Piece(
        model=model,
        skeleton=twins[model],
        copies=copies,
        scratch=_scratch(model, own, rewritten),
        begin=begins,
        ahead=ahead,
        inputs=_port([record.inputs for record in records], records),
        context=context,
        params=params,
        buffers=buffers,
        ran=tuple(model.get_submodule(name) for name in sorted(ran)),
        writes=2 * (frozenset(buffers.values()),),
    )


def aliases(model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """All names of a model's parameters and of its buffers, with the first name of the same tensor."""
    params = model.named_parameters(remove_duplicate=False)
    return _aliases(params, ""), _aliases(model.named_buffers(remove_duplicate=False), "")


def _owner(name: str, called: set[str]) -> str:
    """The module that uses a tensor: its own, or where that is never called, what contains it."""
    owner = name.rpartition(".")[0]
    return owner if owner in called else _owner(owner, called)


def _weights(records: Iterable[Record], begin: Cut, end: Cut) -> set[str]:
    """The parameters that a stage reads, by the graph."""
    names = set()
    for record in records:
        roots = features(record, end) if end else record.results
        leaves = (
            getattr(node, "variable", None) for node in reach(record, roots, stop=features(record, begin))
        )
        names |= {record.parameters[leaf] for leaf in leaves if leaf in record.parameters}
    return names


def _last(records: Sequence[Record], cut: Cut) -> str:
    return max(cut, key=lambda name: records[0].called[name][0].end)


def _survey(records: Sequence[Record], begin: Cut, end: Cut) -> tuple[set[str], set[str], set[str]]:
    """Which modules return placeholders in a stage, which run, and which of those run on placeholders.

    Before the boundary a skeleton is in eval: what happens there is what the first recording shows.
    """
    out, ran, early = set[str](), set[str](), set[str]()
    for record in records:
        injected = [record.called[name][0] for name in begin]
        start = max((call.end for call in injected), default=-1)
        stop = max((record.called[name][0].end for name in end), default=record.calls[0].end)
        read, inside = reach(record, record.results, stop=features(record, begin)), -1
        for call in record.calls:
            if call.start > stop or call.end < (inside if record is records[0] else start):
                continue
            around = any(call.start < other.start < call.end for other in injected)
            opaque = not all(isinstance(leaf, (Tensor, *_CONSTANTS)) for leaf in call.leaves)
            depends = around or opaque or any(record.up[node] for node in call.nodes)
            if call.name in begin:
                inside = call.end
            elif call.end < start and depends and not around and replaceable(record, call.name, read):
                inside = call.end
                out.add(call.name)
            else:
                ran.add(call.name)
                if call.start < start and depends:
                    early.add(call.name)
    return out, ran, early


def replaceable(record: Record, name: str, read: set[Node]) -> bool:
    """Whether a module may return what it is given: it runs once, and nothing else of it is read later on."""
    (call, *more) = record.called[name]
    return not more and all(
        isinstance(leaf, _CONSTANTS) or given is not None or (node is not None and node not in read)
        for leaf, node, given in zip(call.leaves, call.nodes, call.given, strict=True)
    )


def returned(records: Sequence[Record], name: str) -> Port:
    """What a module returns, from the recordings."""
    return _port([record.called.get(name, (None,))[0] for record in records], records)


def _port(calls: Sequence[Call | None], records: Sequence[Record]) -> Port:
    seen = [(call, record) for call, record in zip(calls, records, strict=True) if call is not None]
    first = seen[0][0]
    seen = [(call, record) for call, record in seen if call.spec == first.spec]
    form = pytree.tree_unflatten([_leaf(at, seen) for at in range(len(first.leaves))], first.spec)
    return Port(first.name, form)


def _leaf(at: int, seen: Sequence[tuple[Call, Record]]) -> Any:
    """Two recordings show which sizes grow with the batch; where there is one, the first size is taken to."""
    call, record = seen[0]
    tensor, given = call.leaves[at], call.given[at]
    feature = any(part.up[other.nodes[at]] and part.down[other.nodes[at]] for other, part in seen)
    if given is not None and not feature:
        return Given(given)
    if not isinstance(tensor, Tensor):
        return tensor
    shape, *others = (tuple(other.leaves[at].shape) for other, _ in seen)
    growth = tuple(b - a for a, b in zip(shape, others[0], strict=True)) if others else ()
    if shape and not others:
        first = 0 if shape[0] % record.examples else shape[0] // record.examples
        growth = (first, *[0] * (len(shape) - 1))
    moved = any(other.leaves[at]._version != other.versions[at] for other, _ in seen)
    return Leaf(f"_leaf{at}", shape, growth, record.examples, tensor.dtype, moved, feature)


def _graft(model: nn.Module, names: Iterable[str]) -> dict[nn.Module, nn.Module]:
    """Every module with what stands for it: a shallow copy of the named ones and of what contains one."""
    marked = {model.get_submodule(name) for name in names}
    twins: dict[nn.Module, nn.Module] = {}

    def graft(module: nn.Module) -> nn.Module:
        if module not in twins:
            children = {name: graft(child) for name, child in module._modules.items() if child is not None}
            changed = any(child is not module._modules[name] for name, child in children.items())
            twins[module] = _twin(module, children) if changed or module in marked else module
        return twins[module]

    graft(model)
    return twins


def _twin(module: nn.Module, children: Mapping[str, nn.Module]) -> nn.Module:
    """A shallow copy with other children: it shares the original's attributes, but not its registries."""
    twin = object.__new__(type(module))
    registries = {key: copy.copy(value) for key, value in vars(module).items() if isinstance(value, dict)}
    vars(twin).update(vars(module) | registries)
    twin._modules.update(children)
    return twin


def _replace(twin: nn.Module, port: Port) -> None:
    """Let a copy return what it is given, and nothing but that."""
    twin.forward = partial(_replay, twin, port)
    twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
    twin._buffers |= {leaf.slot: None for leaf in leaves(port)}


def _scratch(
    model: nn.Module, twins: Mapping[str, nn.Module], rewritten: Iterable[tuple[str, str]]
) -> tuple[Scratch, ...]:
    """A change of mode comes first: some caches live until then."""
    keys: dict[str, tuple[str, ...]] = {}
    for name, key in sorted(rewritten):
        keys[name] = (*keys.get(name, ()), key)
    clean = replica(model, model).train().eval() if keys else model
    found = {
        name: plain(clean.get_submodule(name)) | {"_forward_hooks": twins[name]._forward_hooks}
        for name in keys
    }
    return tuple(
        Scratch(twins[name], own, {key: copy.copy(found[name][key]) for key in own if key in found[name]})
        for name, own in keys.items()
    )
