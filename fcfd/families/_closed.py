"""Losses whose gradient is written down: fewer operations than a tape records, and less to keep."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._modes import has_tangents, is_traced


class Closed(NamedTuple):
    """A loss by example of logits that learn, and of tensors and settings that do not.

    Its gradient is used for a first derivative in eager mode, where enough is to be computed. Everywhere else
    the plain loss runs: a compiler fuses that better, a transform or a subclass of tensors sees operations of
    torch, and for few numbers a tape costs less, because it is made in C++ and this in Python.

    Args:
        plain: From logits `[..., classes]` and all else to values `[...]`, as torch differentiates it.
        known: The same without a tape, so that it may write into what it makes: the values, and the gradient
            `[..., classes]` of each by its own logits.
        least: From how many logits on its gradient is used.
    """

    plain: Callable[..., Tensor]
    known: Callable[..., tuple[Tensor, Tensor]]
    least: int = 0

    def __call__(self, logits: Tensor, *constants: Tensor, **settings: Any) -> Tensor:
        if self._is_used(logits, constants, settings):
            return _Closed.apply(self, settings, logits, *constants)  # type: ignore[no-any-return, no-untyped-call]
        return self.plain(logits, *constants, **settings)

    def _is_used(self, logits: Tensor, constants: tuple[Tensor, ...], settings: dict[str, Any]) -> bool:
        if is_traced() or has_tangents() or not torch.is_grad_enabled():
            return False
        learns = type(logits) is Tensor and logits.requires_grad and logits.numel() >= self.least
        others = [x.requires_grad for x in constants] + [isinstance(x, Tensor) for x in settings.values()]
        return learns and not any(others)


class _Closed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Closed, settings: dict[str, Any], *tensors: Tensor) -> Tensor:
        values, gradient = loss.known(*tensors, **settings)
        ctx.loss, ctx.settings = loss, settings
        ctx.save_for_backward(gradient, *tensors)
        return values

    @staticmethod
    def backward(ctx: Any, of_values: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # this derivative is to be differentiated
            values = ctx.loss.plain(*tensors, **ctx.settings)
            (found,) = torch.autograd.grad(values, tensors[0], of_values, create_graph=True)
        else:
            found = gradient * of_values.unsqueeze(-1)
        return None, None, found, *(None for _ in tensors[1:])
