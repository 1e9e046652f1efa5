"""One forward pass of a model, recorded: which modules ran, what they returned, and what depends on what.

It runs a replica of the model. Autograd's graph of the pass tells

* which outputs are cuts: those without which no path leads from the logits to the input;
* what may be left out before a cut: what depends on the input and is not read behind the cut. A mask, a
  rotary table or a position bias does not depend on the input; every stage computes it again;
* which parameters a stage reads.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from .._tree import TreeSpec, flatten, leaves, map_tensors, tensors
from ..copying.attributes import Seen, differ, seen
from ..copying.copies import places
from .graph import Graph, draw

Batch: TypeAlias = Any
_SETS_REQUIRES_GRAD = Tensor.requires_grad.__set__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Output:
    """A tensor that a module returned. A dataclass, because a NamedTuple would be a branch of a tree."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    node: int | None  # in the graph, where it was when the module ended
    moved: bool  # whether a later operation in place changed it
    given: int | None  # where among the module's arguments it is, if the module handed it through


class Call(NamedTuple):
    """One run of one module."""

    name: str
    start: int  # on a clock that ticks when a module begins and when one ends
    end: int
    form: TreeSpec  # of what it returned
    outputs: tuple[Any, ...]  # its leaves: an `Output` for each tensor, or a `_Seen` while the pass runs


class Record(NamedTuple):
    """A forward pass."""

    calls: tuple[Call, ...]  # in the order in which they began
    runs: dict[str, tuple[Call, ...]]  # the same by module
    inputs: Call  # the arguments, as if a module had returned them
    examples: int
    logits: tuple[Output, ...]  # the tensors of what the last stage returns
    graph: Graph
    written: tuple[tuple[str, int], ...]  # buffers that were written, and until when
    rewritten: frozenset[str]  # modules whose forward writes plain attributes, such as caches
    recomputes: bool  # whether the model has a checkpoint inside


class Recording(NamedTuple):
    """What is known of a model.

    Eval comes first, because before a boundary a stage runs in eval.
    """

    eval: Record
    train: Record  # with one more example
    longer: Record | None  # in eval with one more token, of a model of text that can


def both(recording: Recording) -> tuple[Record, Record]:
    """The passes in eval and in train."""
    return recording.eval, recording.train


def arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called on a batch: `model(*args, **kwargs)`."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def logits(output: Any) -> Any:
    """What the last stage returns: the field called `logits`, or else the only tensor, or else everything."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = tensors(output)
    if isinstance(named, Tensor):
        return named
    return found[0] if len(found) == 1 else output


def record(twin: nn.Module, batch: Batch) -> Recording:
    """Record a replica, which is not needed any more for anything else."""
    on_meta = any(tensor.is_meta for tensor in twin.parameters())
    with torch.device("meta") if on_meta else nullcontext():
        in_eval = _record(twin.train().eval(), batch)
        in_train = _record(twin.train(), one_more(batch))
        try:
            longer = _record(twin.train().eval(), _one_longer(batch)) if _tokens(batch) else None
        except Exception:  # whatever a model says to more tokens than it has places for
            longer = None
    return Recording(eval=in_eval, train=in_train, longer=longer)


def _tokens(batch: Batch) -> int:
    """How many tokens of text a batch has, or 0 where its input is something else."""
    args, kwargs = arguments(batch)
    first = next(iter((*args, *kwargs.values())))
    text = isinstance(first, Tensor) and not first.is_floating_point() and first.ndim > 1
    return first.shape[1] if text else 0


def _one_longer(batch: Batch) -> Batch:
    """The batch with its last token twice: along every axis, but the first, that is as long as the text."""
    tokens = _tokens(batch)

    def longer(tensor: Tensor) -> Tensor:
        for axis in range(1, tensor.ndim):
            if tensor.shape[axis] == tokens:
                tensor = torch.cat([tensor, tensor.narrow(axis, tokens - 1, 1)], axis)
        return tensor

    return map_tensors(longer, batch)


def one_more(batch: Batch) -> Batch:
    """The batch with its first example twice."""
    args, kwargs = arguments(batch)
    examples = _examples(next(iter((*args, *kwargs.values()))))
    return _repeated(batch if isinstance(batch, tuple | Mapping) else (batch,), examples)


def _examples(entry: Any) -> int | None:
    """How many examples an entry of a batch holds, if it holds any."""
    if isinstance(entry, tuple | Mapping):
        inner = map(_examples, entry.values() if isinstance(entry, Mapping) else entry)
        return next((count for count in inner if count is not None), None)
    if isinstance(entry, list) or (isinstance(entry, Tensor) and entry.ndim > 0):
        return len(entry)
    return None


def _repeated(entry: Any, examples: int | None) -> Any:
    """An entry with its first example twice; entries of other lengths as they are."""
    if isinstance(entry, Mapping):
        return {key: _repeated(value, examples) for key, value in entry.items()}
    if isinstance(entry, tuple):
        items = [_repeated(value, examples) for value in entry]
        return type(entry)(*items) if hasattr(entry, "_fields") else tuple(items)
    if examples is None or _examples(entry) != examples:
        return [_repeated(value, examples) for value in entry] if isinstance(entry, list) else entry
    return torch.cat([entry, entry[:1]]) if isinstance(entry, Tensor) else entry + entry[:1]


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put every generator back where it was: torch's, Python's and numpy's."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def nodes(call: Call) -> list[int]:
    """Where the outputs of a call are in the graph."""
    return [leaf.node for leaf in call.outputs if isinstance(leaf, Output) and leaf.node is not None]


def _record(model: nn.Module, batch: Batch) -> Record:
    """Run a replica once and keep what happened. The first entry of the batch is the input."""
    args, kwargs = arguments(batch)
    first, *others = (*args, *kwargs.values())
    first = map_tensors(_follow, first)
    args, kwargs = ((first, *others), {}) if args else ((), dict(zip(kwargs, (first, *others), strict=True)))
    inputs = _noted("", (args, kwargs))
    lookups = _Lookups(tensors(first))
    before = {name: seen(module) for name, module in model.named_modules()}
    notes = _Notes([], [], [])
    with torch.enable_grad(), lookups, _listening(model, notes):
        output = logits(model(*args, **kwargs))
    results = _noted("", tensors(output))
    graph, numbers = draw(
        results=_raw_nodes([results]),
        entries=lookups.entries,
        others=_raw_nodes(notes.calls),
        named=dict(model.named_parameters()),
    )
    calls = [_settled(call, numbers) for call in sorted(notes.calls, key=lambda call: call.start)]
    runs: dict[str, tuple[Call, ...]] = {}
    for call in calls:
        runs[call.name] = (*runs.get(call.name, ()), call)
    return Record(
        calls=tuple(calls),
        runs=runs,
        inputs=_settled(inputs, numbers),
        examples=_examples(first) or 1,
        logits=_settled(results, numbers).outputs,
        graph=graph,
        written=tuple(notes.written),
        rewritten=_rewritten(model, before),
        recomputes=bool(notes.inside) or any("CheckpointFunction" in kind for kind in graph.operations),
    )


def _follow(tensor: Tensor) -> Tensor:
    """An input that autograd follows: its clone's node is where the input enters the graph."""
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor


class _Lookups(TorchFunctionMode):
    """Finds where the input enters the graph: at its clone, or where its integers look something up."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        inputs = tuple(inputs)
        self.entries: list[Node] = [tensor.grad_fn for tensor in inputs if tensor.grad_fn is not None]
        self.integers = {id(tensor): tensor for tensor in inputs if tensor.grad_fn is None}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _SETS_REQUIRES_GRAD:  # autograd follows everything here already
            return None
        result = func(*args, **(kwargs or {}))
        if any(id(leaf) in self.integers for leaf in leaves((args, kwargs))):
            for tensor in tensors(result):
                if tensor.grad_fn is not None:
                    self.entries.append(tensor.grad_fn)
                elif not tensor.is_floating_point() and tensor.dtype != torch.bool:
                    self.integers[id(tensor)] = tensor
        return result


@dataclass(frozen=True)
class _Seen:
    """A tensor at the moment when a module returned it."""

    tensor: Tensor
    version: int
    node: Node | None
    given: int | None


def _noted(name: str, output: Any, given: Any = (), start: int = -1, end: int = -1) -> Call:
    """A call when it ends: what a module returned, which was given some arguments."""
    at = {id(leaf): place for place, leaf in enumerate(leaves(given)) if isinstance(leaf, Tensor)}
    found, form = flatten(output)
    outputs = []
    for leaf in found:
        if isinstance(leaf, Tensor):
            leaf = _Seen(leaf, leaf._version, leaf.grad_fn, at.get(id(leaf)))
        outputs.append(leaf)
    return Call(name, start, end, form, tuple(outputs))


def _raw_nodes(calls: Iterable[Call]) -> list[Node]:
    seen = [leaf for call in calls for leaf in call.outputs if isinstance(leaf, _Seen)]
    return [leaf.node for leaf in seen if leaf.node is not None]


def _settled(call: Call, numbers: Mapping[Node, int]) -> Call:
    """A call when the pass is over: without its tensors, and it is known which of them moved later."""
    outputs = []
    for leaf in call.outputs:
        if isinstance(leaf, _Seen):
            tensor, moved = leaf.tensor, leaf.tensor._version != leaf.version
            node = None if leaf.node is None else numbers.get(leaf.node)
            leaf = Output(tuple(tensor.shape), tensor.dtype, node, moved, leaf.given)
        outputs.append(leaf)
    return call._replace(outputs=tuple(outputs))


class _Notes(NamedTuple):
    """What hooks write down during a pass."""

    calls: list[Call]  # in the order in which they ended
    written: list[tuple[str, int]]
    inside: list[str]  # modules that ran inside of a checkpoint


@contextmanager
def _listening(model: nn.Module, notes: _Notes) -> Iterator[None]:
    """Hooks on every module of a replica.

    Where one buffer of a module moved, all of them count as written: batch norm's kernels do not always mark
    running statistics. A buffer that another module than its own writes is noted when its own module ends the
    next time, or at the end of the pass.
    """
    clock, began = itertools.count(), list[int]()
    names = places(model).buffers
    state = {module: _buffers(module) for module in model.modules()}

    def look(name: str, module: nn.Module, end: int) -> None:
        now = _buffers(module)
        if any(state[module].get(key) != seen for key, seen in now.items()):
            places_of = [f"{name}.{key}" if name else key for key in now]
            notes.written.extend((names.get(place, place), end) for place in places_of)
            state[module] = now

    def enter(module: nn.Module, _: Any) -> None:
        began.append(next(clock))
        # Private, and the one trace that a checkpoint leaves: hooks on what autograd saves.
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if hooks is not None and hooks[0].__module__ == checkpoint.__module__:
            notes.inside.append(type(module).__name__)

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        start, end = began.pop(), next(clock)
        notes.calls.append(_noted(name, output, (args, kwargs), start, end))
        look(name, module, end)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(partial(leave, name), with_kwargs=True).remove)
        yield
    end = next(clock)
    for name, module in model.named_modules():
        look(name, module, end)


def _buffers(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Which tensor each buffer of a module is, and how often it was written in place."""
    return {key: (id(held), held._version) for key, held in module._buffers.items() if held is not None}


def _rewritten(model: nn.Module, before: Mapping[str, list[Seen]]) -> frozenset[str]:
    """The modules that have other attributes than before."""
    return frozenset(name for name, module in model.named_modules() if differ(before[name], seen(module)))
