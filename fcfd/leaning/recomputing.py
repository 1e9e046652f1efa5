"""What frozen products make is not kept, but made again in the backward pass.

While a stage runs, `Recomputing` notes how tensors come about: from one tensor, by one frozen product at
most, and by norms, views and arithmetic. An operation that would keep such tensors for its gradient (GELU,
attention) keeps the one that they are made of, and its gradient goes there at once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from operator import getitem
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from .._modes import has_tangents
from .._tree import map_leaves, tensors
from .functions import check_frozen

LONGEST = 256  # calls that make a tensor


def _functions(names: str) -> frozenset[Any]:
    """torch's functions of some names, methods among them."""
    found = [getattr(owner, name, None) for name in names.split() for owner in (torch, F, Tensor)]
    return frozenset(each for each in found if callable(each))  # `torch.float` is a type


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """For frozen weights torch copies them for each example of a batch that is laid out otherwise."""
    return F.linear(input.contiguous(), weight, bias)


ATTENTION = F.scaled_dot_product_attention
HOOKS = _functions("register_hook retain_grad")
PRODUCTS = _functions("linear matmul mm addmm") | {_linear}
KEEP_INPUT = _functions(
    "layer_norm group_norm rms_norm gelu silu mish hardswish softplus elu selu celu logsigmoid "
    "pow __pow__ square"
)
KEEP_OUTPUT = _functions("sigmoid tanh exp sqrt rsqrt reciprocal __rdiv__ softmax")
KEEP_EACH_OTHER = _functions("mul __rmul__ div true_divide matmul mm bmm addmm baddbmm")
KEEP_NOTHING = _functions(
    "view view_as reshape reshape_as flatten unflatten transpose permute movedim moveaxis swapaxes swapdims "
    "t squeeze unsqueeze expand expand_as chunk split tensor_split unbind select narrow __getitem__ clone "
    "contiguous to float half bfloat16 double type_as roll flip pad repeat cat concat stack "
    "add __radd__ sub __rsub__ neg mean sum"
) | {Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]
KNOWN = PRODUCTS | KEEP_INPUT | KEEP_OUTPUT | KEEP_EACH_OTHER | KEEP_NOTHING | HOOKS | {ATTENTION}


@dataclass(frozen=True, eq=False)
class At:
    """A place in a list of tensors."""

    place: int


@dataclass(frozen=True, eq=False)
class Call:
    """A call that makes a tensor: it is given other calls, tensors (or places of some), and the rest."""

    function: Callable[..., Any]
    inputs: tuple[Any, Any]  # by position, and by name
    autocast: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class Note:
    """How a tensor came about: the call, and the one tensor behind it that needs a gradient."""

    call: Call
    source: Tensor
    version: int  # of the tensor
    versions: dict[int, tuple[Tensor, int]]  # of all that it is made of
    products: int
    length: int


# Calls run again


class Again(Function):
    """A call of tensors that other calls made; all of them run again for the gradient of their sources."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Call, whole: Call, sources: int, kept: int, *given: Tensor) -> Tensor:
        y: Tensor = _run(call, given, {})
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.whole, ctx.sources, kept, *given = inputs
        check_frozen(ctx.needs_input_grad[4 + ctx.sources :])
        ctx.others = len(given) - ctx.sources
        ctx.save_for_backward(*given[:kept])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        kept = ctx.saved_tensors  # read once, as checkpoints ask for
        sources, frozen = kept[: ctx.sources], kept[ctx.sources :]
        back = torch.func.vjp(lambda *given: _run(ctx.whole, (*given, *frozen), {}), *sources)[1]
        return *[None] * 4, *back(gradient), *[None] * ctx.others


def _run(part: At | Call, given: Sequence[Tensor], done: dict[int, Any]) -> Any:
    """The result of a call, after those that it is given, each of which runs once."""
    if isinstance(part, At):
        return given[part.place]
    if id(part) not in done:
        args, kwargs = map_leaves((At, Call), lambda each: _run(each, given, done), part.inputs)
        with part.autocast():
            done[id(part)] = part.function(*args, **kwargs)
    return done[id(part)]


def _emptied(part: Tensor | Call, found: dict[int, Tensor], done: dict[int, At | Call]) -> Any:
    """A call with places for its tensors, which join those that were found."""
    if id(part) not in done:
        if isinstance(part, Tensor):
            done[id(part)] = At(len(found))
            found[id(part)] = part
        else:
            inputs = map_leaves((Tensor, Call), lambda each: _emptied(each, found, done), part.inputs)
            done[id(part)] = Call(part.function, inputs, part.autocast)
    return done[id(part)]


def _again(call: Call, whole: Call, sources: Sequence[Tensor]) -> Tensor:
    """Run a call; `whole` is the same call, which is given others in place of what they make."""
    found: dict[int, Tensor] = {}
    places: dict[int, At | Call] = {}
    for source in sources:
        _emptied(source, found, places)
    whole = _emptied(whole, found, places)
    kept = [*found.values()]
    call = _emptied(call, found, places)
    made = [each.detach() for each in [*found.values()][len(kept) :]]
    y: Tensor = Again.apply(  # type: ignore[no-untyped-call]
        call, whole, len(sources), len(kept), *kept, *made
    )
    return y


# Notes


class Recomputing:
    """What is known of tensors while a stage runs: how they came about, and which are kept anyway."""

    def __init__(self) -> None:
        self.notes: MutableMapping[Tensor, Note] = WeakTensorKeyDictionary()
        self.kept: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()

    def __call__(self, function: Any, ordinary: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function in the way that keeps less, and note how its results came about."""
        given = tensors((args, kwargs))
        learned = [each for each in given if each.requires_grad]
        if not learned or function in HOOKS or not _is_plain(given, kwargs):
            self._keep(learned if function in HOOKS else ())
            return ordinary(*args, **kwargs)
        held = _held(function, learned, args, kwargs)
        notes = self._worth(held, {id(each): note for each in learned if (note := self._read(each))})
        call = Call(function, (args, kwargs), _autocast(given[0].device.type))
        inputs = map_leaves(
            Tensor, lambda each: notes[id(each)].call if id(each) in notes else each, call.inputs
        )
        whole = Call(_linear if function is F.linear else function, inputs, call.autocast)
        origins = [notes[id(each)].source if id(each) in notes else each for each in learned]
        sources = [*{id(each): each for each in origins}.values()]
        if any(id(each) in notes for each in held):
            result = _again(call, whole, sources)
            self._keep(sources)
        else:
            result = ordinary(*args, **kwargs)
            self._keep(() if function in KEEP_OUTPUT else held)
        if len(sources) == 1 and function is not ATTENTION:
            self._write(result, whole, given, notes, sources[0])
        return result

    def _keep(self, kept: Iterable[Tensor]) -> None:
        self.kept.update(dict.fromkeys(kept, True))

    def _read(self, tensor: Tensor) -> Note | None:
        """How a tensor came about, unless it is kept, or something was written into what it is made of."""
        note = self.notes.get(tensor)
        if note is None or tensor in self.kept or note.version != tensor._version:
            return None
        return note if all(each._version == version for each, version in note.versions.values()) else None

    def _worth(self, held: Sequence[Tensor], notes: dict[int, Note]) -> dict[int, Note]:
        """The notes, without those of what is no larger than its source, unless that is kept anyway."""
        sizes: Counter[int] = Counter()
        for each in held:
            if id(each) in notes:
                sizes[id(notes[id(each)].source)] += each.nbytes

        def is_worth(source: Tensor) -> bool:
            return id(source) not in sizes or source in self.kept or sizes[id(source)] > source.nbytes

        return {key: note for key, note in notes.items() if is_worth(note.source)}

    def _write(
        self, result: Any, call: Call, given: Sequence[Tensor], notes: dict[int, Note], source: Tensor
    ) -> None:
        """Note how the results of a call came about, if to make them again is cheap."""
        before = [notes[id(each)] for each in given if id(each) in notes]
        products = max((note.products for note in before), default=0) + (call.function in PRODUCTS)
        length = sum(note.length for note in before) + 1
        if products > 1 or length > LONGEST:
            return
        versions = {id(each): (each, each._version) for each in given if id(each) not in notes}
        for note in before:
            versions |= note.versions
        several = isinstance(result, tuple | list)
        for at, each in enumerate(result if several else [result]):
            if isinstance(each, Tensor) and each.requires_grad and not any(each is one for one in given):
                own = Call(getitem, ((call, at), {}), nullcontext) if several else call
                self.notes[each] = Note(own, source, each._version, versions, products, length)


def _is_plain(given: Sequence[Tensor], kwargs: Any) -> bool:
    """Whether a call is one of plain tensors, in reverse mode, that writes into none."""
    return (
        torch.is_grad_enabled()
        and not has_tangents()
        and all(type(each) in (Tensor, nn.Parameter) for each in given)
        and not kwargs.get("inplace")
        and kwargs.get("out") is None
    )


def _held(function: Any, learned: Sequence[Tensor], args: Any, kwargs: Any) -> Sequence[Tensor]:
    """What a function keeps of the tensors that need a gradient, or keeps as much as."""
    if function in KEEP_EACH_OTHER:
        return learned if len(learned) > 1 else ()
    if function is ATTENTION and (args[4] if len(args) > 4 else kwargs.get("dropout_p")):
        return ()  # what is drawn at random is not drawn again
    return learned if function in KEEP_INPUT | KEEP_OUTPUT | {ATTENTION} else ()


def _autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """The present state of autocast, to run a call in it again."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    return partial(
        torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    )


def _opened(function: Any) -> Any:
    """A Python function of torch's as a function mode can look into it: it does not call for itself."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    opened = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


multi_head_attention = _opened(F.multi_head_attention_forward)
