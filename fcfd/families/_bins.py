"""The student's probability of a few listed classes, and of all others together."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def listed_and_rest(student: Tensor, at: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the listed classes `[..., k]`, and the others' probability `[..., 1]`.

    A listed class that is left out counts among the others. Those are added up: one minus a sum near one
    would have no digits left.
    """
    if torch.compiler.is_compiling():
        log_q = F.log_softmax(student, dim=-1)
        others = torch.ones_like(student).scatter_(-1, at, left_out.to(student.dtype))
        return log_q.gather(-1, at), (log_q.exp() * others).sum(-1, keepdim=True)
    listed, rest, _ = _Bins.apply(student, at, left_out)  # type: ignore[no-untyped-call]
    return listed, rest


class _Bins(torch.autograd.Function):
    """As above, in fewer passes over all classes. The probabilities are an output that is kept."""

    @staticmethod
    def forward(student: Tensor, at: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_q = F.log_softmax(student, dim=-1)
        listed = log_q.gather(-1, at)
        q, own = log_q.exp_(), listed.exp()
        rest = _put_(q, at, torch.where(left_out, own, 0.0)).sum(-1, keepdim=True)
        return listed, rest, _put_(q, at, own)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, at, left_out = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(at, left_out, *output)
        ctx.save_for_forward(at, left_out, *output)

    @staticmethod
    def backward(ctx: Any, of_listed: Tensor | None, of_rest: Tensor | None, of_q: Tensor | None) -> Any:
        at, left_out, listed, rest, q = ctx.saved_tensors
        own = listed.exp()
        of_listed = torch.zeros_like(own) if of_listed is None else of_listed
        of_rest = torch.zeros_like(rest) if of_rest is None else of_rest
        # The derivative of the rest is q (1 − rest) at a class that it holds, and −q rest at any other.
        beside = torch.where(left_out, 0.0, own).sum(-1, keepdim=True)
        of_all = of_listed.sum(-1, keepdim=True)
        of_own = of_listed + own * (torch.where(left_out, beside, -rest) * of_rest - of_all)
        gradient = _put_(q * (beside * of_rest - of_all), at, of_own)
        if of_q is not None:
            gradient = gradient + q * (of_q - (q * of_q).sum(-1, keepdim=True))
        return gradient, None, None

    @staticmethod
    def jvp(ctx: Any, of_student: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor]:
        at, left_out, listed, _, q = ctx.saved_tensors
        of_log_q = of_student - (q * of_student).sum(-1, keepdim=True)
        of_q, of_listed = q * of_log_q, of_log_q.gather(-1, at)
        counted = torch.where(left_out, 0.0, listed.exp() * of_listed)
        return of_listed, -counted.sum(-1, keepdim=True), of_q

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> Any:
        # A generated rule would write rows of a batch into a student that has none.
        batched = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, dims, strict=True)
        ]
        return _Bins.apply(*batched), (0, 0, 0)  # type: ignore[no-untyped-call]


def _put_(into: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """`Tensor.scatter_` along the last axis, of which `torch.func.vmap` knows no batch."""
    rows = into.view(-1, into.shape[-1])
    row = torch.arange(len(rows), device=rows.device).unsqueeze(-1)
    rows.index_put_((row, at.reshape(len(rows), -1)), values.reshape(len(rows), -1))
    return into
