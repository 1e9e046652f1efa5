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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .._tree import clone, leaves, map_leaves
from ..copying.copies import Copy, Pair, call, wake
from ..copying.standing import check_standing
from ..stages import Buffers, Params, select
from .record import arguments, logits

Cut: TypeAlias = tuple[str, ...]  # the modules whose outputs are one boundary


@dataclass(frozen=True)
class Leaf:
    """Stands for a tensor that a module returns. A dataclass: a NamedTuple would be a branch of a tree."""

    slot: str  # the buffer of the copied module that holds it
    shape: tuple[int, ...]  # in the recording
    per_example: tuple[int, ...]  # how each size grows with one more example
    per_token: tuple[int, ...]  # likewise with one more token of text
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
    returns: Writes  # of these, what is written when the stage ends


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
    if not torch.compiler.is_compiling():
        check_standing(own, weights | state)
    trains = any(pair.original.training for pair in own.modes)
    writes, returns = (one.train if trains else one.eval for one in (piece.writes, piece.returns))
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
    return y, {name: tensors[place] for place, name in own.places.buffers.items() if name in returns}


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
            raise ValueError(
                f"split: this model takes {name}; stages after the first need it. Give the batch as a dict, "
                f"{{{name!r}: ...}}, as in the example of the split."
            )
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


def replace(copied: nn.Module, port: Port) -> None:
    """Let a module of a copy return what it is given, and nothing but that."""
    copied.forward = partial(_replay, copied, port)
    copied._forward_hooks, copied._forward_pre_hooks = OrderedDict(), OrderedDict()
    for leaf in leaves_of(port):
        copied._buffers[leaf.slot] = None


def wait(port: Port, copied: nn.Module, _: Any, output: Any) -> None:
    """A hook on a module of a boundary of several: its output waits for the last one's."""
    copied._output = clone(_value(port, output))


def stop(ends: Sequence[tuple[Port, nn.Module]], copied: nn.Module, _: Any, output: Any) -> None:
    """A hook on the last module of a boundary."""
    values = [_value(port, output) if other is copied else other._output for port, other in ends]
    raise _Stop(tuple(values) if len(values) > 1 else values[0])


def _value(port: Port, output: Any) -> Any:
    tensors = _features(port, output)
    return tensors[0] if len(tensors) == 1 else output


def awake(asleep: Sequence[nn.Module], *_: Any) -> None:
    """A hook on the last module that returns a feature: behind it the model is in its own mode."""
    wake(asleep)
