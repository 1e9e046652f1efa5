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

from ._record import Call, Node, Record, arguments, logits, reach, replica
from .stages import Buffers, Params, _aliases, select

Cut = tuple[str, ...]  # the modules whose outputs are one boundary
_CONSTANTS = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Leaf:
    """Stands for a tensor that was recorded: its shape, and how each size grows with one more example."""

    slot: str
    shape: tuple[int, ...]
    growth: tuple[int, ...]
    examples: int  # in the recording
    dtype: torch.dtype
    moved: bool  # whether a later operation in place changes it
    feature: bool  # whether it depends on the input


@dataclass(frozen=True)
class Given:
    """Stands for a tensor that a module hands through: its position among the leaves of the arguments."""

    at: int


class Port(NamedTuple):
    """What a module returns: `form` has a `Leaf` or a `Given` in place of each tensor."""

    name: str
    form: Any


class Scratch(NamedTuple):
    """Plain attributes that a forward writes, such as caches: every call begins with the original values."""

    twin: nn.Module
    written: tuple[str, ...]
    original: dict[str, Any]


class Piece(NamedTuple):
    """A stage as data; `partial(run, piece)` is the stage."""

    model: nn.Module
    skeleton: nn.Module
    copies: tuple[tuple[nn.Module, nn.Module], ...]  # each shallow copy and its original
    scratch: tuple[Scratch, ...]
    begin: tuple[Port, ...]  # where features are injected: nowhere in the first stage
    ahead: tuple[Port, ...]  # what returns placeholders
    inputs: Port  # the arguments of the model
    context: tuple[str, ...]  # their names, where the batch is a mapping
    params: dict[str, str]  # name in the model -> name in the network's dict: tied tensors share one
    buffers: dict[str, str]
    copied: frozenset[str] = frozenset()  # the buffers that a run may change
    returned: frozenset[str] = frozenset()  # those of them that are this stage's to return


class _Stop(BaseException):
    """Carries the output of the boundary out of the model's forward."""

    def __init__(self, value: Any) -> None:
        self.value = value


def run(piece: Piece, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    """Run a stage: `stage(params, buffers, x) -> (y, new_buffers)`."""
    _reset_copies(piece)
    weights = select("params", params, piece.params.values())
    state = select("buffers", buffers, piece.buffers.values())
    state |= {name: state[name].clone() for name in piece.copied}
    tensors = {own: weights[name] for own, name in piece.params.items()}
    tensors |= {own: state[name] for own, name in piece.buffers.items()}
    if piece.begin:
        given = _injected(piece.begin, x)
        like, examples = given[0][2], _examples(given)
        for blank in (*piece.begin, *piece.ahead):
            tensors |= {_slot(blank, leaf): _placeholder(leaf, like, examples) for leaf in _leaves(blank)}
        tensors |= {name: tensor.clone() if leaf.moved else tensor for name, leaf, tensor in given}
        args, kwargs = _arguments_again(piece, buffers, like, examples)
    else:
        args, kwargs = arguments(x)
        if any(leaf.moved for leaf in _leaves(piece.inputs)):
            args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
    try:
        y = logits(functional_call(piece.skeleton, tensors, args, kwargs, tie_weights=False))
    except _Stop as stop:
        y = stop.value
    _reset_copies(piece)
    return y, {name: tensors[own] for own, name in piece.buffers.items() if name in piece.returned}


def _reset_copies(piece: Piece) -> None:
    for twin, original in piece.copies:
        twin.training = original.training and not piece.begin
    for twin, written, values in piece.scratch:
        for key in written:
            if key in values:
                setattr(twin, key, copy.copy(values[key]))
            elif hasattr(twin, key):
                delattr(twin, key)


def _leaves(port: Port) -> list[Leaf]:
    return [leaf for leaf in pytree.tree_leaves(port.form) if isinstance(leaf, Leaf)]


def _slot(port: Port, leaf: Leaf) -> str:
    return f"{port.name}.{leaf.slot}"


def features(port: Port) -> list[Leaf]:
    """The tensors that depend on the input and on which the logits depend."""
    return [leaf for leaf in _leaves(port) if leaf.feature]


def _injected(begin: Sequence[Port], x: Any) -> list[tuple[str, Leaf, Tensor]]:
    """Where each tensor of a feature goes, and what was recorded there."""
    found = []
    for port, value in zip(begin, (x,) if len(begin) == 1 else x, strict=True):
        leaves = features(port)
        tensors = _tensors(port, value) if len(leaves) > 1 else [value]
        found += [(_slot(port, leaf), leaf, tensor) for leaf, tensor in zip(leaves, tensors, strict=True)]
    return found


def _tensors(port: Port, output: Any) -> list[Tensor]:
    pairs = zip(pytree.tree_leaves(port.form), pytree.tree_leaves(output), strict=True)
    return [tensor for leaf, tensor in pairs if isinstance(leaf, Leaf) and leaf.feature]


def _examples(given: Sequence[tuple[str, Leaf, Tensor]]) -> int:
    """How many examples a feature holds."""
    for _, leaf, tensor in given:
        for now, size, growth in zip(tensor.shape, leaf.shape, leaf.growth, strict=False):
            if growth:
                return leaf.examples + (now - size) // growth
    return given[0][1].examples


def _placeholder(leaf: Leaf, like: Tensor, examples: int) -> Tensor:
    more = examples - leaf.examples
    sizes = [size + more * growth for size, growth in zip(leaf.shape, leaf.growth, strict=True)]
    zero = like.new_zeros((), dtype=like.dtype if leaf.dtype.is_floating_point else leaf.dtype)
    return zero.expand(sizes).clone() if leaf.moved else zero.expand(sizes)


def _arguments_again(
    piece: Piece, buffers: Buffers, like: Tensor, examples: int
) -> tuple[Any, dict[str, Any]]:
    """The model's arguments in a later stage: the batch itself where it has names, otherwise placeholders."""
    for name in piece.context:
        if name not in buffers:
            raise ValueError(f"split: this model takes {name}; stages after the first need it.")
    if piece.context:
        return (), {name: buffers[name] for name in piece.context}
    args, kwargs = pytree.tree_map_only(
        Leaf, lambda leaf: _placeholder(leaf, like, examples), piece.inputs.form
    )
    return args, kwargs


def _replay(twin: nn.Module, port: Port, *args: Any, **kwargs: Any) -> Any:
    """The forward of a module that is not run: what it was given, in the form that was recorded."""
    given = pytree.tree_leaves((args, kwargs))

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Leaf):
            return getattr(twin, leaf.slot)
        return given[leaf.at] if isinstance(leaf, Given) else leaf

    return pytree.tree_map(fill, port.form)


def _wake(copies: Sequence[tuple[nn.Module, nn.Module]], *_: Any) -> None:
    """A hook on the last module that returns a feature: behind it the model is in its own mode."""
    for twin, original in copies:
        twin.training = original.training


def _keep(port: Port, twin: nn.Module, _: Any, output: Any) -> None:
    """A hook on a module of a boundary of several: its output waits for the last one's."""
    twin._kept = pytree.tree_map_only(Tensor, torch.clone, _value(port, output))


def _stop(ends: Sequence[tuple[Port, nn.Module]], twin: nn.Module, _: Any, output: Any) -> None:
    """A hook on the last module of a boundary."""
    values = tuple(_value(port, output) if other is twin else other._kept for port, other in ends)
    for _, other in ends:
        if other is not twin:
            del other._kept
    raise _Stop(values if len(values) > 1 else values[0])


def _value(port: Port, output: Any) -> Any:
    tensors = _tensors(port, output)
    return tensors[0] if len(tensors) == 1 else output


def piece(
    model: nn.Module, records: Sequence[Record], begin: Cut, end: Cut, context: tuple[str, ...]
) -> Piece:
    """Make the stage between two boundaries; `()` stands for the input and for the logits."""
    params = _aliases(model.named_parameters(remove_duplicate=False), "")
    buffers = _aliases(model.named_buffers(remove_duplicate=False), "")
    out, ran, early = _survey(records, begin, end)
    called = {name for record in records for name in record.called}
    needed = {name for own, name in (params | buffers).items() if _owner(own, called) in ran}
    needed |= {name for record in records for name in _weights(record, begin, end)}
    begins, ends, ahead = (
        tuple(returned(records, name) for name in cut) for cut in (begin, end, sorted(out))
    )
    written = frozenset(key for record in records for key in record.attributes)
    twins = _graft(model, {*begin, *end, *out, *early, *(name for name, _ in written)})
    copies = tuple((twin, original) for original, twin in twins.items() if twin is not original)
    _replace(twins, model, (*begins, *ahead))
    if begin:
        twins[model.get_submodule(_last(records[0], begin))].register_forward_hook(partial(_wake, copies))
    if end:
        _hook(twins, model, ends, _last(records[0], end))
    return Piece(
        model=model,
        skeleton=twins[model],
        copies=copies,
        scratch=_scratch(twins, model, written),
        begin=begins,
        ahead=ahead,
        inputs=_port([record.inputs for record in records], records),
        context=context,
        params={own: name for own, name in params.items() if name in needed},
        buffers={own: name for own, name in buffers.items() if name in needed},
    )


def _owner(name: str, called: set[str]) -> str:
    """The module that uses a tensor: its own, or where that is never called, what contains it."""
    owner = name.rpartition(".")[0]
    return owner if owner in called else _owner(owner, called)


def _last(record: Record, cut: Cut) -> str:
    return max(cut, key=lambda name: record.called[name][0].end)


def nodes(record: Record, cut: Cut) -> list[Node]:
    """Where the features of a boundary are in the graph."""
    calls = [call for name in cut for call in record.called.get(name, ())]
    return [node for call in calls for node in call.nodes if record.up[node] and record.down[node]]


def _weights(record: Record, begin: Cut, end: Cut) -> set[str]:
    """The parameters that a stage reads, by the graph."""
    inside = reach(record, nodes(record, end) if end else record.results, stop=nodes(record, begin))
    leaves = (getattr(node, "variable", None) for node in inside)
    return {record.parameters[leaf] for leaf in leaves if leaf in record.parameters}


def _survey(records: Sequence[Record], begin: Cut, end: Cut) -> tuple[set[str], set[str], set[str]]:
    """Which modules return placeholders in a stage, which run, and which of those run on placeholders.

    A module that could be left out in one call but not in another runs in both.
    """
    keep: set[str] = set()
    while True:
        surveys = [_survey_one(record, begin, end, keep) for record in records]
        out, ran, early = (set[str]().union(*names) for names in zip(*surveys, strict=True))
        if not out & ran:
            return out, ran, early
        keep |= out & ran


def _survey_one(record: Record, begin: Cut, end: Cut, keep: set[str]) -> tuple[set[str], set[str], set[str]]:
    read = reach(record, record.results, stop=nodes(record, begin))
    injected = [record.called[name][0] for name in begin]
    start = max((call.end for call in injected), default=-1)
    stop = max((record.called[name][0].end for name in end), default=record.calls[0].end)
    out, ran, early, skipped = set[str](), set[str](), set[str](), -1
    for call in record.calls:
        if call.end < skipped or call.start > stop:
            continue
        around = any(call.start < other.start < call.end for other in injected)
        if call.name in begin:
            skipped = call.end
        elif (
            call.end < start and not around and call.name not in keep and replaceable(record, call.name, read)
        ):
            skipped = call.end
            out.add(call.name)
        else:
            ran.add(call.name)
            if call.start < start and (around or any(record.up[node] for node in call.nodes)):
                early.add(call.name)
    return out, ran, early


def replaceable(record: Record, name: str, read: set[Node]) -> bool:
    """Whether a module may return features or placeholders: nothing else that it returns is read later on."""
    calls = record.called[name]
    leaves = [leaf for call in calls for leaf in zip(call.leaves, call.nodes, call.given, strict=True)]
    shapes = {tuple(getattr(leaf, "shape", leaf) for leaf in call.leaves) for call in calls}
    return (
        len(shapes) == 1
        and any(record.up[node] for _, node, _ in leaves)
        and all(
            isinstance(leaf, _CONSTANTS) or given is not None or (node is not None and node not in read)
            for leaf, node, given in leaves
        )
    )


def returned(records: Sequence[Record], name: str) -> Port:
    """What a module returns, from the recordings."""
    return _port([record.called.get(name, (None,))[0] for record in records], records)


def _port(calls: Sequence[Call | None], records: Sequence[Record]) -> Port:
    seen = [(call, record) for call, record in zip(calls, records, strict=True) if call is not None]
    first = seen[0][0]
    leaves = [_leaf(at, seen) for at in range(len(first.leaves))]
    return Port(first.name, pytree.tree_unflatten(leaves, first.spec))


def _leaf(at: int, seen: Sequence[tuple[Call, Record]]) -> Any:
    """Two recordings show which sizes grow with the batch; where there is one, the first size is taken to."""
    call, record = seen[0]
    tensor = call.leaves[at]
    feature = any(part.up[other.nodes[at]] and part.down[other.nodes[at]] for other, part in seen)
    given = call.given[at]
    if given is not None and not feature:
        return Given(given)
    if not isinstance(tensor, Tensor):
        return tensor
    shape, *others = (tuple(other.leaves[at].shape) for other, _ in seen)
    growth = tuple(b - a for a, b in zip(shape, others[0], strict=True)) if others else ()
    if shape and not others:
        growth = (shape[0] // record.examples, *[0] * (len(shape) - 1))
    moved = any(other.leaves[at]._version != other.versions[at] for other, _ in seen)
    return Leaf(f"_leaf{at}", shape, growth, record.examples, tensor.dtype, moved, feature)


def _graft(model: nn.Module, names: Iterable[str]) -> dict[nn.Module, nn.Module]:
    """Every module with what stands for it: a shallow copy of the named ones and of what contains one."""
    marked = {model.get_submodule(name) for name in names}
    twins: dict[nn.Module, nn.Module] = {}

    def graft(module: nn.Module) -> nn.Module:
        if module not in twins:
            children = {name: child and graft(child) for name, child in module._modules.items()}
            changed = any(child is not module._modules[name] for name, child in children.items())
            twins[module] = _twin(module, children) if changed or module in marked else module
        return twins[module]

    graft(model)
    return twins


def _twin(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """A shallow copy with other children: it shares the original's attributes, but not its registries."""
    twin = object.__new__(type(module))
    registries = {key: copy.copy(value) for key, value in vars(module).items() if isinstance(value, dict)}
    vars(twin).update(vars(module) | registries)
    twin._modules.update(children)
    return twin


def _replace(twins: Mapping[nn.Module, nn.Module], model: nn.Module, ports: Iterable[Port]) -> None:
    """Let modules return what they are given."""
    for port in ports:
        twin = twins[model.get_submodule(port.name)]
        twin.forward = partial(_replay, twin, port)
        twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
        twin._buffers |= {leaf.slot: None for leaf in _leaves(port)}


def _hook(twins: Mapping[nn.Module, nn.Module], model: nn.Module, ends: Sequence[Port], last: str) -> None:
    """Let modules at the end of a stage keep their output, and the last one stop."""
    kept = tuple((port, twins[model.get_submodule(port.name)]) for port in ends)
    for port, twin in kept:
        twin.register_forward_hook(partial(_stop, kept) if port.name == last else partial(_keep, port))


def _scratch(
    twins: Mapping[nn.Module, nn.Module], model: nn.Module, written: Iterable[tuple[str, str]]
) -> tuple[Scratch, ...]:
    """What a forward writes besides tensors, as it is after a change of mode: some caches live until then."""
    keys: dict[str, list[str]] = {}
    for name, key in sorted(written):
        keys.setdefault(name, []).append(key)
    clean = replica(model, model, lambda tensor: tensor).train().eval() if keys else model
    return tuple(
        Scratch(
            twins[model.get_submodule(name)],
            tuple(own),
            {key: value for key, value in vars(clean.get_submodule(name)).items() if key in own},
        )
        for name, own in keys.items()
    )
