"""Inject and stop: one stage of a model, run by the model's own forward.

The stage from boundary *a* to boundary *b* calls the model's own forward on a private copy of it, in which

* module *a* returns the feature that the stage was given,
* modules before *a* return placeholders: zeros without memory, of the shapes that were recorded,
* module *b* raises an exception that carries its output, and the stage returns that.

So flags, dropout, statistics, control flow, masks and the size of the batch stay the model's own. Parameters,
buffers, feature and placeholders all go in by `functional_call`. What runs before *a* is in eval until *a*
returns, so that it draws no random number and writes no statistic a second time.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .._copies import Copy, Kept, Pair, Places, adopt, call, lend, pairs, places, plain, skeleton, wake
from .._tree import clone, leaves, map_leaves, unflatten
from ..stages import Buffers, Params, select
from .graph import behind, reach
from .record import Call, Output, Record, Recording, arguments, both, logits, nodes

Cut: TypeAlias = tuple[str, ...]  # the modules whose outputs are one boundary
_CONSTANTS = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Leaf:
    """Stands for a tensor that a module returns. A dataclass: a NamedTuple would be a branch of a tree."""

    slot: str  # the buffer of the copied module that holds it
    shape: tuple[int, ...]  # in the recording
    per_example: tuple[int, ...]  # how each size grows with one more example
    per_token: tuple[int, ...]  # likewise with one more token of text
    examples: int  # in the recording
    dtype: torch.dtype
    moved: bool  # whether a later operation in place changes it
    feature: bool  # whether it depends on the input, and the logits on it


@dataclass(frozen=True)
class Given:
    """Stands for a tensor that a module hands through: its position among the leaves of the arguments."""

    at: int


class Port(NamedTuple):
    """What a module returns."""

    name: str
    form: Any  # a tree with a `Leaf` or a `Given` in place of each tensor


class Writes(NamedTuple):
    """The buffers that a stage writes, by the names of the network's dict."""

    eval: frozenset[str]
    train: frozenset[str]


class Piece(NamedTuple):
    """A stage as data; `partial(run, piece)` is the stage."""

    copy: Copy
    asleep: tuple[Pair, ...]  # what runs before the feature comes in
    begin: tuple[Port, ...]  # where the feature comes in: nowhere in the first stage
    ahead: tuple[Port, ...]  # what returns placeholders
    inputs: Port  # the arguments of the model
    context: tuple[str, ...]  # their names, where the batch is a mapping
    writes: Writes


class _Injected(NamedTuple):
    """A tensor of the feature that a stage is given."""

    place: str
    leaf: Leaf
    tensor: Tensor


class _Stop(BaseException):
    """Carries the output of the boundary out of the model's forward, past every `except Exception`."""

    def __init__(self, value: Any) -> None:
        self.value = value


# Running a stage


def run(piece: Piece, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    """Run a stage: `stage(params, buffers, x) -> (y, new_buffers)`."""
    own = piece.copy
    weights = select("params", params, own.places.params.values())
    state = select("buffers", buffers, own.places.buffers.values())
    trains = any(pair.original.training for pair in own.modes)
    writes = piece.writes.train if trains else piece.writes.eval
    for name in writes:
        state[name] = state[name].clone()
    tensors = {place: weights[name] for place, name in own.places.params.items()}
    tensors |= {place: state[name] for place, name in own.places.buffers.items()}
    if piece.begin:
        args, kwargs = _inject(piece, tensors, buffers, x)
    else:
        args, kwargs = arguments(x)
        if any(leaf.moved for leaf in leaves_of(piece.inputs)):
            args, kwargs = clone((args, kwargs))
    try:
        y = logits(call(own, tensors, args, kwargs, piece.asleep))
    except _Stop as stop:
        y = stop.value
    return y, {name: tensors[place] for place, name in own.places.buffers.items() if name in writes}


def _inject(
    piece: Piece, tensors: dict[str, Tensor], buffers: Buffers, x: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put the feature and the placeholders among the tensors of a call, and return its arguments."""
    injected = _injected(piece.begin, x)
    zero, grown = injected[0].tensor.new_zeros(()), _grown(injected)
    for port in (*piece.begin, *piece.ahead):
        for leaf in leaves_of(port):
            tensors[_place(port, leaf)] = _blank(leaf, zero, grown)
    for place, leaf, tensor in injected:
        tensors[place] = tensor.clone() if leaf.moved else tensor
    if not piece.context:
        blank = partial(_blank, zero=zero, grown=grown)
        args, kwargs = map_leaves(Leaf, blank, piece.inputs.form)
        return args, kwargs
    batch = {}
    for name in piece.context:
        if name not in buffers:
            raise ValueError(f"split: this model takes {name}; stages after the first need it.")
        batch[name] = buffers[name]
    moved = any(leaf.moved for leaf in leaves_of(piece.inputs))
    return (), clone(batch) if moved else batch


def leaves_of(port: Port) -> list[Leaf]:
    """The tensors that a module computes."""
    return [leaf for leaf in leaves(port.form) if isinstance(leaf, Leaf)]


def features_of(port: Port) -> list[Leaf]:
    """Those that depend on the input, and on which the logits depend."""
    return [leaf for leaf in leaves_of(port) if leaf.feature]


def _place(port: Port, leaf: Leaf) -> str:
    return f"{port.name}.{leaf.slot}"


def _injected(begin: Sequence[Port], x: Any) -> list[_Injected]:
    """Where each tensor of a feature goes, and what was recorded there."""
    found = []
    for port, value in zip(begin, (x,) if len(begin) == 1 else x, strict=True):
        own = features_of(port)
        values = [value] if len(own) == 1 else _features(port, value)
        for leaf, tensor in zip(own, values, strict=True):
            found.append(_Injected(_place(port, leaf), leaf, tensor))
    return found


def _features(port: Port, output: Any) -> list[Tensor]:
    pairs = zip(leaves(port.form), leaves(output), strict=True)
    return [tensor for leaf, tensor in pairs if isinstance(leaf, Leaf) and leaf.feature]


class _Grown(NamedTuple):
    """How much more a batch holds than the recorded one."""

    examples: int
    tokens: int


def _grown(injected: Sequence[_Injected]) -> _Grown:
    """How much more a feature holds than the recorded one, by sizes that grow with one of both alone."""
    examples = tokens = 0
    for _, leaf, tensor in injected:
        rows = zip(tensor.shape, leaf.shape, leaf.per_example, leaf.per_token, strict=False)
        for now, size, per_example, per_token in rows:
            if per_example and not per_token:
                examples = (now - size) // per_example
            elif per_token and not per_example:
                tokens = (now - size) // per_token
    return _Grown(examples, tokens)


def _blank(leaf: Leaf, zero: Tensor, grown: _Grown) -> Tensor:
    """A placeholder, in the precision of the feature."""
    sizes = []
    for size, per_example, per_token in zip(leaf.shape, leaf.per_example, leaf.per_token, strict=True):
        both = per_example * per_token // max(size, 1)  # of a size that is examples times tokens
        more = grown.examples * per_example + grown.tokens * per_token + grown.examples * grown.tokens * both
        sizes.append(size + more)
    blank = (zero if leaf.dtype.is_floating_point else zero.to(leaf.dtype)).expand(sizes)
    return blank.clone() if leaf.moved else blank


# What the modules of a copy do instead of what they did


def _replay(copied: nn.Module, port: Port, *args: Any, **kwargs: Any) -> Any:
    """The forward of a module that is not run: what it was given, in the form that was recorded."""
    given = leaves((args, kwargs))

    def fill(leaf: Any) -> Any:
        return getattr(copied, leaf.slot) if isinstance(leaf, Leaf) else given[leaf.at]

    return map_leaves((Leaf, Given), fill, port.form)


def _replace(copied: nn.Module, port: Port) -> None:
    """Let a module of a copy return what it is given, and nothing but that."""
    copied.forward = partial(_replay, copied, port)
    copied._forward_hooks, copied._forward_pre_hooks = OrderedDict(), OrderedDict()
    for leaf in leaves_of(port):
        copied._buffers[leaf.slot] = None


def _keep(port: Port, copied: nn.Module, _: Any, output: Any) -> None:
    """A hook on a module of a boundary of several: its output waits for the last one's."""
    copied._output = clone(_value(port, output))


def _stop(ends: Sequence[tuple[Port, nn.Module]], copied: nn.Module, _: Any, output: Any) -> None:
    """A hook on the last module of a boundary."""
    values = [_value(port, output) if other is copied else other._output for port, other in ends]
    raise _Stop(tuple(values) if len(values) > 1 else values[0])


def _value(port: Port, output: Any) -> Any:
    tensors = _features(port, output)
    return tensors[0] if len(tensors) == 1 else output


def _awake(asleep: Sequence[nn.Module], *_: Any) -> None:
    """A hook on the last module that returns a feature: behind it the model is in its own mode."""
    wake(asleep)


# Making a stage


class _Roles(NamedTuple):
    """What the modules of a model do in a stage."""

    ahead: set[str]  # do not run, and return placeholders
    run: set[str]
    early: set[str]  # of those, what reads placeholders before the feature comes in


def make(
    model: nn.Module,
    recording: Recording,
    begin: Cut,
    end: Cut,
    context: tuple[str, ...],
) -> Piece:
    """Make the stage between two boundaries; `()` stands for the input and for the logits.

    Args:
        model: What the stage is a part of.
        recording: Of the model.
        begin: The boundary before the stage.
        end: The boundary behind it.
        context: Names of the batch's entries, where it is a mapping.
    """
    roles = _roles(recording, begin, end)
    begins = tuple(returned(recording, name) for name in begin)
    ends = tuple(returned(recording, name) for name in end)
    ahead = tuple(returned(recording, name) for name in sorted(roles.ahead))
    filled = _filled(model, recording, begin, end, roles.run)
    copied = skeleton(model)
    lend(copied, model, {*filled.params, *filled.buffers})
    every = pairs(copied, model)
    modules = {name: pair.copied for name, pair in every.items()}
    asleep = tuple(every[name] for name in sorted(roles.early))
    rewritten = {name for record in both(recording) for name in record.rewritten} - {*roles.ahead, *begin}
    for port in (*begins, *ahead):
        _replace(modules[port.name], port)
    if begin:
        modules[_last(recording, begin)].register_forward_hook(
            partial(_awake, [pair.copied for pair in asleep])
        )
    stops = tuple((port, modules[port.name]) for port in ends)
    for port, module in stops:
        last = port.name == _last(recording, end)
        module.register_forward_hook(partial(_stop, stops) if last else partial(_keep, port))
    several = end if len(end) > 1 else ()  # whose outputs wait for each other
    kept = tuple(Kept(modules[name], plain(modules[name])) for name in sorted({*rewritten, *several}))
    modes = tuple(every[name] for name in sorted(roles.run))
    adopt(modes)  # here, so that a compiled stage does not find other flags in its second call
    return Piece(
        copy=Copy(copied, modes, kept, filled, recorded=True),
        asleep=asleep,
        begin=begins,
        ahead=ahead,
        inputs=_port([record and record.inputs for record in recording], recording),
        context=context,
        writes=_writes(recording, begin, set(filled.buffers.values())),
    )


def _last(recording: Recording, cut: Cut) -> str:
    return max(cut, key=lambda name: recording.eval.runs[name][0].end)


def _roles(recording: Recording, begin: Cut, end: Cut) -> _Roles:
    """Which modules return placeholders in a stage, which run, and which of those run on placeholders.

    These are in eval, so what happens before the boundary is what the recording in eval shows. What does not
    depend on the input is computed again before the boundary, in its own mode: it may be read behind it.
    """
    roles = _Roles(set(), set(), set())
    for record in both(recording):
        opening = [record.runs[name][0] for name in begin]
        start = max((call.end for call in opening), default=-1)
        stop = max((record.runs[name][0].end for name in end), default=record.calls[0].end)
        read = behind(record.graph, features(record, begin))
        outside = -1 if record is recording.eval else start  # calls that end before are part of another
        for one in record.calls:
            around = any(one.start < other.start < one.end for other in opening)
            before = one.end < start and not around
            if one.start > stop or one.end < outside:
                continue
            if one.name in begin:
                outside = one.end
            elif before and _depends(record, one) and replaceable(record, one, read):
                outside = one.end
                roles.ahead.add(one.name)
            else:
                roles.run.add(one.name)
                if one.start < start and (around or _depends(record, one)):
                    roles.early.add(one.name)
    return roles


def _depends(record: Record, call: Call) -> bool:
    """Whether what a module returns depends on the input, or holds something that no recording follows."""
    opaque = not all(isinstance(leaf, (Output, *_CONSTANTS)) for leaf in call.outputs)
    return opaque or not record.graph.depends.isdisjoint(nodes(call))


def replaceable(record: Record, call: Call, read: set[int]) -> bool:
    """Whether a module may return what it is given: it runs once, and nothing else of it is read later on."""
    if len(record.runs[call.name]) > 1:
        return False
    for leaf in call.outputs:
        if isinstance(leaf, Output):
            if leaf.given is None and (leaf.node is None or leaf.node in read):
                return False
        elif not isinstance(leaf, _CONSTANTS):
            return False
    return True


def features(record: Record, names: Iterable[str]) -> list[int]:
    """Where in the graph modules return what depends on the input and what the logits depend on."""
    found = [node for name in names for call in record.runs.get(name, ()) for node in nodes(call)]
    return [node for node in found if node in record.graph.depends and node in record.graph.wanted]


def _filled(model: nn.Module, recording: Recording, begin: Cut, end: Cut, runs: set[str]) -> Places:
    """The places of parameters and buffers that a stage fills.

    Both the graph and ownership decide. A module may read another's parameter (tied weights), which only the
    graph shows. And a kernel may read parameters of modules that run in the recording alone (the fast path of
    PyTorch's own encoder), or in a way that leaves no trace (detached), which only ownership shows.
    """
    read = set()
    for record in both(recording):
        roots = features(record, end) if end else record.graph.results
        below = reach(record.graph.reads, roots, stop=features(record, begin))
        read |= {name for node, name in record.graph.parameters.items() if node in below}
    called = {name for record in both(recording) for name in record.runs}
    found = Places({}, {})
    for names, own in zip(places(model), found, strict=True):
        for place, name in names.items():
            if name in read or _owner(place, called) in runs:
                own[place] = name
    return found


def _owner(place: str, called: set[str]) -> str:
    """The module that uses a tensor: its own, or where that is never called, what contains it."""
    owner = place.rpartition(".")[0]
    return owner if owner in called else _owner(owner, called)


def _writes(recording: Recording, begin: Cut, own: set[str]) -> Writes:
    """What a stage writes of its own buffers: what was written after its boundary in a recording.

    In train this includes what is written in eval: parts of a model may be in eval.
    """
    written = []
    for record in both(recording):
        start = max((record.runs[name][0].end for name in begin), default=-1)
        written.append({name for name, end in record.written if end > start and name in own})
    in_eval, in_train = written
    return Writes(eval=frozenset(in_eval), train=frozenset(in_eval | in_train))


def returned(recording: Recording, name: str) -> Port:
    """What a module returns."""
    calls = [record.runs[name][0] if record and name in record.runs else None for record in recording]
    return _port(calls, recording)


def _port(calls: Sequence[Call | None], recording: Recording) -> Port:
    """What was returned in the passes of a recording, of which at least one in eval or in train has it."""
    in_eval, in_train, longer = calls
    first = in_eval or in_train
    assert first is not None
    seen = _Seen(
        first=first,
        record=recording.eval if in_eval else recording.train,
        more=in_train if in_eval and in_train and in_train.form == first.form else None,
        longer=longer if in_eval and longer and longer.form == first.form else None,
    )
    form = unflatten([_leaf(at, seen, recording) for at in range(len(first.outputs))], first.form)
    return Port(first.name, form)


class _Seen(NamedTuple):
    """One module in the passes of a recording."""

    first: Call
    record: Record  # of `first`
    more: Call | None  # with one example more
    longer: Call | None  # with one token more


def _leaf(at: int, seen: _Seen, recording: Recording) -> Any:
    """What stands for one output. Where no pass shows how it grows, its first size is taken to do so."""
    output = seen.first.outputs[at]
    if not isinstance(output, Output):
        return output
    more = None if seen.more is None else seen.more.outputs[at]
    feature = is_feature(output, seen.record) or (more is not None and is_feature(more, recording.train))
    if output.given is not None and not feature:
        return Given(output.given)
    return Leaf(
        slot=f"_leaf{at}",
        shape=output.shape,
        per_example=_growth(output, more) or _shares(output.shape, seen.record.examples),
        per_token=_growth(output, seen.longer and seen.longer.outputs[at]) or (0,) * len(output.shape),
        examples=seen.record.examples,
        dtype=output.dtype,
        moved=output.moved or (more is not None and more.moved),
        feature=feature,
    )


def is_feature(output: Output, record: Record) -> bool:
    """Whether an output depends on the input, and the logits on it."""
    return output.node in record.graph.depends and output.node in record.graph.wanted


def _growth(output: Output, other: Output | None) -> tuple[int, ...]:
    """How much larger each size is in another pass; nothing where there is none with as many sizes."""
    if other is None or len(other.shape) != len(output.shape):
        return ()
    return tuple(more - size for size, more in zip(output.shape, other.shape, strict=True))


def _shares(shape: tuple[int, ...], examples: int) -> tuple[int, ...]:
    """How much of each size belongs to one example, if only the first grows, and is a multiple."""
    first = tuple(0 if size % examples else size // examples for size in shape[:1])
    return first + (0,) * (len(shape) - len(first))
