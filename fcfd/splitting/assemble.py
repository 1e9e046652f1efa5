"""How a stage is made: which modules run, what the others return, which tensors go in and come out."""

from collections.abc import Iterable, Sequence
from functools import partial
from math import inf
from typing import Any, NamedTuple

from torch import nn

from .._tree import unflatten
from ..copying.attributes import keep
from ..copying.copies import Copy, Places, adopt, lend, pairs, places, skeleton
from ..copying.standing import remember
from .graph import behind, reach
from .inject import Cut, Given, Leaf, Piece, Port, Writes, awake, replace, stop, wait
from .record import Call, Output, Record, Recording, both, nodes

_CONSTANTS = (type(None), bool, int, float, str)


class _Roles(NamedTuple):
    """What the modules of a model do in a stage."""

    ahead: set[str]  # do not run, and return placeholders
    run: set[str]
    early: set[str]  # of those, what reads placeholders before the feature comes in


def make(model: nn.Module, recording: Recording, begin: Cut, end: Cut, context: tuple[str, ...]) -> Piece:
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
        replace(modules[port.name], port)
    if begin:
        modules[_last(recording, begin)].register_forward_hook(
            partial(awake, [pair.copied for pair in asleep])
        )
    stops = tuple((port, modules[port.name]) for port in ends)
    for port, module in stops:
        last = port.name == _last(recording, end)
        module.register_forward_hook(partial(stop, stops) if last else partial(wait, port))
    several = end if len(end) > 1 else ()  # whose outputs wait for each other
    kept = tuple(keep(modules[name], objects=True) for name in sorted({*rewritten, *several}))
    modes = tuple(every[name] for name in sorted(roles.run))
    adopt(modes)  # here, so that a compiled stage does not find other flags in its second call
    remember(copied, model, filled)
    writes, returns = _writes(recording, begin, end, set(filled.buffers.values()))
    return Piece(
        copy=Copy(copied, modes, kept, kept, filled, recorded=True, aliases={}),
        asleep=asleep,
        begin=begins,
        ahead=ahead,
        inputs=_port([record and record.inputs for record in recording], recording),
        context=context,
        writes=writes,
        returns=returns,
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
        until = max((record.runs[name][0].end for name in end), default=record.calls[0].end)
        read = behind(record.graph, features(record, begin))
        outside = -1 if record is recording.eval else start  # calls that end before are part of another
        for one in record.calls:
            around = any(one.start < other.start < one.end for other in opening)
            before = one.end < start and not around
            if one.start > until or one.end < outside:
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


def _writes(recording: Recording, begin: Cut, end: Cut, own: set[str]) -> tuple[Writes, Writes]:
    """What a stage may write of its own buffers, and what it hands out.

    It may write what was written after the boundary before it in a recording. It hands out what was written
    up to the boundary behind it: what a module does that goes on beyond is done again by the next stage. In
    train both include what is written in eval: parts of a model may be in eval.
    """
    written, handed = list[set[str]](), list[set[str]]()
    for record in both(recording):
        start = max((record.runs[name][0].end for name in begin), default=-1)
        until = max((record.runs[name][0].end for name in end), default=inf)
        later = {name: at for name, at in reversed(record.written) if at > start and name in own}
        written.append({*later})
        handed.append({name for name, at in later.items() if at <= until})
    return _in_both(*written), _in_both(*handed)


def _in_both(in_eval: set[str], in_train: set[str]) -> Writes:
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
