"""Prove in numbers that the stages of a split compose to the model, before anyone trains through them.

Both run on a replica, in train and in eval, on the same random numbers, with perturbed parameters: those
expose a tensor that a stage would still read from a module instead of from the dict that it is given.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..stages import Buffers, Params
from .inject import Piece, aliases, run
from .record import arguments, logits, random_state_kept, replica

BY_HAND = "write the stages by hand: split([module, ...])"


def rehearsed(
    model: nn.Module, pieces: Sequence[Piece], batch: Any, example: Any, exact: bool
) -> list[Piece]:
    """The pieces, proved, each with the buffers that it writes.

    Where no example was given, small images will do, of a model that takes them.
    """
    with random_state_kept():
        if example is None:
            batch = torch.randn(batch.shape, dtype=batch.dtype, device=batch.device)
            try:
                return _rehearse(model, pieces, torch.cat([batch, batch[:1]])[..., :64, :64], exact)
            except Exception:  # whatever a model says to other sizes than its own
                pass
        return _rehearse(model, pieces, batch, exact)


@torch.no_grad()
def _rehearse(model: nn.Module, pieces: Sequence[Piece], batch: Any, exact: bool) -> list[Piece]:
    """Compare the stages with the model in both modes, and note which buffers each stage writes."""
    twin, every = replica((model, pieces), model)
    params = _perturbed(model.named_parameters(), -0.01)
    buffers = _perturbed(model.named_buffers(), 0.0)
    writes: dict[str, list[set[str]]] = {mode: [set() for _ in pieces] for mode in ("train", "eval")}
    whole = partial(_whole, twin, params, buffers, batch)
    for mode, own in writes.items():
        chain = partial(_chain, every, params, buffers, batch, own)
        twin.train(mode == "train")
        if not _same(_seeded(whole), _seeded(chain)):
            with _EqualDraws():  # type: ignore[no-untyped-call]
                drawn = _same(_seeded(whole), _seeded(chain))
            if exact or not drawn:
                raise ValueError(
                    f"split: compose(stages) differs from the model in {mode} mode"
                    + (" only by random numbers. Pass exact=False to accept, use" if drawn else ". Use")
                    + f" other boundaries, or {BY_HAND}."
                )
    return [
        part._replace(writes=(frozenset(always), frozenset(always | sometimes)))
        for part, sometimes, always in zip(pieces, *writes.values(), strict=True)
    ]


def _whole(model: nn.Module, params: Params, buffers: Buffers, batch: Any) -> tuple[Any, dict[str, Tensor]]:
    """The model's logits, and its buffers afterwards."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, arguments(batch))
    given = {**params, **{name: tensor.clone() for name, tensor in buffers.items()}}
    names = {own: name for kind in aliases(model) for own, name in kind.items()}
    tensors = {own: given[name] for own, name in names.items()}
    y = logits(functional_call(model, tensors, args, kwargs, tie_weights=False))
    return y, {name: tensors[name] for name in buffers}


def _chain(
    pieces: Iterable[Piece], params: Params, buffers: Buffers, batch: Any, writes: Iterable[set[str]]
) -> tuple[Any, dict[str, Tensor]]:
    """The same by the stages."""
    context = batch if isinstance(batch, Mapping) else {}
    value, state = batch, dict(buffers)
    for part, names in zip(pieces, writes, strict=True):
        try:
            value, new = run(part, params, {**buffers, **context}, value)
        except Exception as error:
            after = " and ".join(repr(port.name) for port in part.begin) or "the input"
            raise ValueError(
                f"split: the stage after {after} does not run by itself ({type(error).__name__}: {error}). "
                f"Use other boundaries, or {BY_HAND}."
            ) from error
        changed = {name for name, now in new.items() if now._version or not _equal(now, buffers[name])}
        names |= changed
        state |= {name: new[name] for name in changed}
    return value, state


class _EqualDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets every random operation start from one seed, so that the order of drawing does not matter."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(0)
        return func(*args, **(kwargs or {}))


def _seeded(function: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return function()


def _perturbed(named: Iterable[tuple[str, Tensor]], low: float) -> dict[str, Tensor]:
    tensors = dict(named)
    noise = {
        name: torch.empty_like(x).uniform_(low, 0.01) for name, x in tensors.items() if x.is_floating_point()
    }
    return tensors | {name: tensors[name] + noise[name] for name in noise}


def _same(a: Any, b: Any) -> bool:
    """Whether all tensors of two values have the same bits; nan equals nan."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return all(_equal(x, y) for x, y in pairs if isinstance(x, Tensor))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
