"""One forward pass of a model, recorded: which modules ran, what they returned, and what depends on what.

The recording runs a replica of the model, on fake tensors (shapes without arithmetic) where the model allows
it, so the model itself is never touched. It keeps autograd's graph, which answers what `split` must know:

* Which outputs are cuts? Those that lie on every path from the logits back to the input.
* What may be left out before a cut? What depends on the input and is not read behind the cut. A mask, a
  rotary table or a position bias does not depend on the input; every stage computes it again.
* Which parameters does a stage read? Those whose leaves its part of the graph reaches.
"""

import copy
import functools
import gc
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

T = TypeVar("T")
Node = Any  # torch.autograd.graph.Node: its classes are made in C++
_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"_forward_hooks"}
_CACHED = type(functools.lru_cache(int))
_CONTAINERS = (dict, list, set)
_SETS_REQUIRES_GRAD = Tensor.requires_grad.__set__  # type: ignore[attr-defined]


class Call(NamedTuple):
    """One run of one module: when it began and ended, and what it returned."""

    name: str
    start: int
    end: int
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    nodes: tuple[Node | None, ...]  # of each leaf, as it was when the module ended
    versions: tuple[int, ...]  # likewise: a later operation in place moves a tensor's version
    given: tuple[int | None, ...]  # where among the arguments a leaf is, if it was handed through


class Record(NamedTuple):
    """A forward pass: its calls in the order in which they began, and its graph."""

    calls: tuple[Call, ...]
    called: dict[str, tuple[Call, ...]]  # the same by module
    inputs: Call  # the model's arguments, as if a module had returned them
    examples: int
    logits: Any
    results: tuple[Node, ...]  # of the logits
    reads: dict[Node, tuple[Node, ...]]  # the graph: what each node reads
    entries: frozenset[Node]  # where the input enters
    down: Counter[Node]  # how many paths lead from the logits to a node
    up: Counter[Node]  # how many paths lead from a node to the input: 0 where it does not depend on it
    parameters: dict[Tensor, str]
    rewritten: frozenset[tuple[str, str]]  # module and name of each plain attribute that the forward writes


def replica(thing: T, model: nn.Module, convert: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> T:
    """A deep copy of a thing in which the tensors of a model are `convert(tensor)`."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for held in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(held, Tensor) and id(held) not in memo:
                memo[id(held)] = convert(held)
    return copy.deepcopy(thing, memo)


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called on a batch: `model(*args, **kwargs)`."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def logits(output: Any) -> Any:
    """What the last stage returns: the field called `logits`, or else the only tensor, or else everything."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if isinstance(named, Tensor):
        return named
    return tensors[0] if len(tensors) == 1 else output


def plain(module: nn.Module) -> dict[str, Any]:
    """The attributes that not every module has; containers are copied."""
    own = {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}
    return {key: copy.copy(value) if isinstance(value, _CONTAINERS) else value for key, value in own.items()}


def record_twice(model: nn.Module, batch: Any, fake: bool) -> tuple[Record, Record]:
    """Record a model in eval, and in train with one more example, and leave everything as it was."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    convert = partial(mode.from_tensor, static_shapes=True) if fake else _detached
    log = logging.getLogger(FakeTensorMode.__module__)  # where torch reports what fake tensors cannot do
    silent, log.disabled = log.disabled, True
    try:
        with mode if fake else nullcontext(), random_state_kept():
            twin = replica(model, model, convert)
            for weight in twin.parameters():
                weight.requires_grad_(weight.is_floating_point())
            batch = pytree.tree_map_only(Tensor, convert, batch)
            return _record(twin.train().eval(), batch), _record(twin.train(), _one_more(batch))
    finally:
        log.disabled = silent
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
    if isinstance(batch, Mapping):
        return dict(zip(batch, _one_more(tuple(batch.values())), strict=True))
    if not isinstance(batch, tuple):
        return _one_more((batch,))
    countable = [isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0) for value in batch]
    examples = len(batch[0]) if countable[0] else None
    return tuple(
        _repeated(value) if count and len(value) == examples else value
        for value, count in zip(batch, countable, strict=True)
    )


def _repeated(value: Any) -> Any:
    return torch.cat([value, value[:1]]) if isinstance(value, Tensor) else value + value[:1]


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


def _record(model: nn.Module, batch: Any) -> Record:
    """Run a replica once and keep what happened. The first entry of the batch is the input."""
    args, kwargs = arguments(batch)
    first, *others = (*args, *kwargs.values())
    first = pytree.tree_map_only(Tensor, _follow, first)
    args, kwargs = ((first, *others), {}) if args else ((), dict(zip(kwargs, (first, *others), strict=True)))
    lookups = _Lookups(leaf for leaf in pytree.tree_leaves(first) if isinstance(leaf, Tensor))
    inputs = _call("", (args, kwargs))
    calls: list[Call] = []
    before = {name: plain(module) for name, module in model.named_modules()}
    with torch.enable_grad(), lookups, _listen(model, calls):
        output = logits(model(*args, **kwargs))
    calls.sort(key=lambda call: call.start)
    called: dict[str, tuple[Call, ...]] = {}
    for call in calls:
        called[call.name] = (*called.get(call.name, ()), call)
    results = tuple(node for node in _nodes(pytree.tree_leaves(output)) if node is not None)
    reads = _graph([*results, *(node for call in calls for node in call.nodes if node is not None)])
    up = _paths_up(reads, lookups.entries)
    return Record(
        calls=tuple(calls),
        called=called,
        inputs=inputs,
        examples=len(first) if isinstance(first, Tensor | list) else 1,
        logits=output,
        results=results,
        reads=reads,
        entries=frozenset(
            node for node in lookups.entries if not any(up[other] for other in reads.get(node, ()))
        ),
        down=_paths_down(reads, results),
        up=up,
        parameters={tensor: name for name, tensor in model.named_parameters()},
        rewritten=_differences(before, {name: plain(module) for name, module in model.named_modules()}),
    )


def _follow(tensor: Tensor) -> Tensor:
    """An input that autograd follows: its clone's node is where the input enters the graph."""
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor


def _nodes(leaves: Iterable[Any]) -> tuple[Node | None, ...]:
    return tuple(leaf.grad_fn if isinstance(leaf, Tensor) else None for leaf in leaves)


def _differences(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> frozenset[tuple[str, str]]:
    """The attributes that hold another object, or a container of other items, than before."""
    return frozenset(
        (name, key)
        for name, own in after.items()
        for key in own
        if key not in before[name] or _items(own[key]) != _items(before[name][key])
    )


def _items(value: Any) -> list[int]:
    items = itertools.chain(*value.items()) if isinstance(value, dict) else value
    return [id(item) for item in items] if isinstance(value, _CONTAINERS) else [id(value)]


class _Lookups(TorchFunctionMode):
    """Finds where the input enters the graph: at its clone, or where its integers look something up."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        inputs = tuple(inputs)
        self.entries: list[Node] = [node for node in _nodes(inputs) if node is not None]
        self.integers = {id(tensor): tensor for tensor in inputs if tensor.grad_fn is None}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _SETS_REQUIRES_GRAD:  # autograd follows everything here already
            return None
        result = func(*args, **(kwargs or {}))
        if any(id(leaf) in self.integers for leaf in pytree.tree_leaves((args, kwargs))):
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                    self.entries.append(leaf.grad_fn)
                elif isinstance(leaf, Tensor) and not leaf.is_floating_point() and leaf.dtype != torch.bool:
                    self.integers[id(leaf)] = leaf
        return result


def _listen(model: nn.Module, calls: list[Call]) -> ExitStack:
    """Hooks on every module of a replica that append each call when it ends."""
    clock, began = itertools.count(), list[int]()

    def enter(*_: Any) -> None:
        began.append(next(clock))

    def leave(name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(_call(name, output, (args, kwargs), began.pop(), next(clock)))

    stack = ExitStack()
    for name, module in model.named_modules():
        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(partial(leave, name), with_kwargs=True).remove)
    return stack


def _call(name: str, output: Any, given: Any = (), start: int = -1, end: int = -1) -> Call:
    leaves, spec = pytree.tree_flatten(output)
    versions = tuple(leaf._version if isinstance(leaf, Tensor) else 0 for leaf in leaves)
    places = {id(leaf): at for at, leaf in enumerate(pytree.tree_leaves(given)) if isinstance(leaf, Tensor)}
    handed = tuple(places.get(id(leaf)) for leaf in leaves)
    return Call(name, start, end, spec, tuple(leaves), _nodes(leaves), versions, handed)


def _graph(roots: Sequence[Node]) -> dict[Node, tuple[Node, ...]]:
    """Every node with those that it reads: each before them, but for the leaves, which read nothing."""
    reads: dict[Node, tuple[Node, ...]] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in reads:
            reads[node] = tuple(below for below, _ in node.next_functions if below is not None)
            stack += reads[node]
    return {node: reads[node] for node in sorted(reads, key=lambda node: -node._sequence_nr())}


def _paths_down(reads: Mapping[Node, tuple[Node, ...]], results: Iterable[Node]) -> Counter[Node]:
    paths = Counter(results)
    for node, below in reads.items():
        for other in below:
            paths[other] += paths[node]
    return paths


def _paths_up(reads: Mapping[Node, tuple[Node, ...]], entries: Iterable[Node]) -> Counter[Node]:
    """A lookup by the input's integers is an entry only where no other entry lies below it."""
    paths, entries = Counter[Node](), set(entries)
    for node in reversed(reads):
        paths[node] = sum(paths[other] for other in reads[node]) or int(node in entries)
    return paths


def features(record: Record, names: Iterable[str]) -> list[Node]:
    """Where in the graph modules return what depends on the input and what the logits depend on."""
    calls = [call for name in names for call in record.called.get(name, ())]
    return [node for call in calls for node in call.nodes if record.up[node] and record.down[node]]


def reach(record: Record, roots: Iterable[Node], stop: Iterable[Node] = ()) -> set[Node]:
    """The nodes that some roots depend on, up to the nodes at which to stop and without those."""
    seen, stop = set[Node](), set(stop)
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen and node not in stop:
            seen.add(node)
            stack += record.reads[node]
    return seen
