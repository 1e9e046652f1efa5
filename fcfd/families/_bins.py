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
    """As above, in fewer passes over all classes. The others, one by one, are an output that is kept."""

    @staticmethod
    def forward(student: Tensor, at: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_q = F.log_softmax(student, dim=-1)
        listed = log_q.gather(-1, at)
        others = log_q.exp_().scatter_(-1, at, torch.where(left_out, listed.exp(), 0.0))
        return listed, others.sum(-1, keepdim=True), others

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, at, left_out = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(at, left_out, *output)
        ctx.save_for_forward(at, left_out, *output)

    @staticmethod
    def backward(
        ctx: Any, of_listed: Tensor | None, of_rest: Tensor | None, of_others: Tensor | None
    ) -> tuple[Tensor, None, None]:
        at, left_out, listed, rest, others = ctx.saved_tensors
        counted = torch.where(left_out, 0.0, listed.exp())
        of_listed = torch.zeros_like(counted) if of_listed is None else of_listed
        of_rest = torch.zeros_like(rest) if of_rest is None else of_rest
        # A class that the rest holds adds q (1 − rest) to it; any other takes q rest away.
        of_all = of_listed.sum(-1, keepdim=True)
        of_each = counted.sum(-1, keepdim=True) * of_rest - of_all
        of_counted = -rest * of_rest - of_all
        if of_others is not None:
            of_all = (others * of_others).sum(-1, keepdim=True)
            of_each, of_counted = of_each + of_others - of_all, of_counted - of_all
        gradient = (others * of_each).scatter_add_(-1, at, of_listed + counted * of_counted)
        return gradient, None, None

    @staticmethod
    def jvp(ctx: Any, of_student: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor]:
        at, left_out, listed, _, others = ctx.saved_tensors
        counted = torch.where(left_out, 0.0, listed.exp())
        at_listed, at_others = of_student.gather(-1, at), others * of_student
        of_total = (counted * at_listed).sum(-1, keepdim=True) + at_others.sum(-1, keepdim=True)
        of_listed = at_listed - of_total
        return of_listed, -(counted * of_listed).sum(-1, keepdim=True), at_others - others * of_total

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> Any:
        # A generated rule would write rows of a batch into a student that has none.
        batched = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, dims, strict=True)
        ]
        return _Bins.apply(*batched), (0, 0, 0)  # type: ignore[no-untyped-call]
