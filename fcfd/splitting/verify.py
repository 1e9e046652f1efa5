"""Prove in numbers that the stages of a split compose to the model, before anyone trains through them.

Both get perturbed parameters, run in train and in eval, and on the same random numbers. A tensor that a stage
reads from anywhere but the dict that it is given shows by its value.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from .._tree import clone, leaves
from ..copying.attributes import Kept, keep, lend, restore, take_back
from ..copying.copies import at, follow, hooks, places, skeleton
from ..stages import Buffers, Params
from .boundaries import BY_HAND
from .inject import Piece, run
from .record import Batch, arguments, logits

T = TypeVar("T")


class _Run(NamedTuple):
    """What a model or its stages computed."""

    logits: Any
    buffers: dict[str, Tensor]


@torch.no_grad()
def proved(model: nn.Module, pieces: Sequence[Piece], batch: Batch, exact: bool) -> str:
    """What is proved: `"exact"`, or that there are differences by random numbers alone.

    Args:
        model: The model.
        pieces: Its stages.
        batch: What all run on.
        exact: Whether differences by random numbers are refused.

    Raises:
        ValueError: The stages do not compose to the model.
    """
    twin = skeleton(model)
    kept = [keep(module, objects=True) for module in twin.modules()]
    pieces = [
        piece._replace(
            copy=piece.copy._replace(modes=follow(piece.copy.modes, twin)),
            asleep=follow(piece.asleep, twin),
        )
        for piece in pieces
    ]
    params = {name: _other(tensor, -0.01) for name, tensor in model.named_parameters()}
    buffers = {name: _other(tensor, 0.0) for name, tensor in model.named_buffers()}
    proof = "exact"
    for mode in ("train", "eval"):
        twin.train(mode == "train")
        if _seeded(_agree, twin, kept, pieces, params, buffers, batch):
            continue
        with _EqualDraws():  # type: ignore[no-untyped-call]
            drawn = _seeded(_agree, twin, kept, pieces, params, buffers, batch)
        if exact or not drawn:
            raise ValueError(
                f"split: compose(stages) differs from the model in {mode} mode"
                + (" only by random numbers. Pass exact=False to accept, use" if drawn else ". Use")
                + f" other boundaries, or {BY_HAND}."
            )
        proof = "exact but for random numbers"
    return proof


def state_of(model: nn.Module) -> list[Any]:
    """Which tensors, hooks and modes a model has, to be compared with later."""
    found: list[Any] = []
    for module in model.modules():
        found.append((id(module), module.training))
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            found.append(None if tensor is None else (id(tensor), tensor._version))
        found.append([id(hook) for hook in hooks(module)])
    return found


def _agree(
    twin: nn.Module,
    kept: Sequence[Kept],
    pieces: Sequence[Piece],
    params: Params,
    buffers: Buffers,
    batch: Batch,
) -> bool:
    """Whether the model and its stages compute the same from the same seed."""
    whole = _seeded(_whole, twin, kept, params, buffers, batch)
    return _same(whole, _seeded(_chain, pieces, params, buffers, batch))


def _whole(twin: nn.Module, kept: Sequence[Kept], params: Params, buffers: Buffers, batch: Batch) -> _Run:
    """The model's logits, and its buffers afterwards. What else it writes is forgotten, as a stage does."""
    args, kwargs = clone(arguments(batch))
    own = {**params, **{name: tensor.clone() for name, tensor in buffers.items()}}
    names = places(twin)
    tensors = {place: own[name] for place, name in (names.params | names.buffers).items()}
    lend(kept, traced=False, given={id(held): tensors[place] for place, held in at(twin, names).items()})
    try:
        y = logits(functional_call(twin, tensors, args, kwargs, tie_weights=False))
    finally:
        restore(kept, traced=False)
        take_back(kept)
    return _Run(y, {name: tensors[name] for name in buffers})


def _chain(pieces: Iterable[Piece], params: Params, buffers: Buffers, batch: Batch) -> _Run:
    """The same by the stages."""
    context = batch if isinstance(batch, Mapping) else {}
    value, state = batch, dict(buffers)
    for piece in pieces:
        try:
            value, new = run(piece, params, {**state, **context}, value)
        except Exception as error:
            after = " and ".join(repr(port.name) for port in piece.begin) or "the input"
            several = isinstance(batch, tuple | list) and len(batch) > 1
            named = "Name the arguments, which later stages then read: example={...}. " if several else ""
            raise ValueError(
                f"split: the stage after {after} does not run by itself ({type(error).__name__}: {error}). "
                f"{named}Use other boundaries, or {BY_HAND}."
            ) from error
        state |= new
    return _Run(value, state)


class _EqualDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets every random operation start from one seed, so that the order of drawing does not matter."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(0)
        return func(*args, **(kwargs or {}))


def _seeded(function: Callable[..., T], *arguments: Any) -> T:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return function(*arguments)


def _other(tensor: Tensor, low: float) -> Tensor:
    """A tensor of other values, if they are numbers and not indices."""
    if not tensor.is_floating_point():
        return tensor.detach()
    return tensor + torch.empty_like(tensor).uniform_(low, 0.01)


def _same(a: Any, b: Any) -> bool:
    """Whether all tensors of two values have the same bits; nan equals nan."""
    pairs = zip(leaves(a), leaves(b), strict=True)
    return all(_equal(x, y) for x, y in pairs if isinstance(x, Tensor))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
