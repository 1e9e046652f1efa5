"""Divergences between the softmaxes of two networks, with the gradient of the student's written down."""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._closed import Closed
from ._numerics import (
    crossed,
    divergence,
    jensen_shannon,
    log_of,
    reverse_divergence,
    scaled,
    times,
    times_,
    where_above_,
    without_infinity,
)


class Divergence(NamedTuple):
    """A divergence over the last axis, of probabilities p of the teacher and q of the student.

    Args:
        plain: From log p and log q to values `[...]`.
        known: The same without a tape, from log p, log q, p and q; the slopes ∂/∂ log q `[..., classes]`, and
            their sum, a number or `[..., 1]`. It may write into what it is given but q.
        lacking: The multiple of q that the slopes lack. To the logits of a softmax it makes no difference.
    """

    plain: Callable[[Tensor, Tensor], Tensor]
    known: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, float | Tensor]]
    lacking: float = 0.0


def _forward(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, float]:
    return where_above_(p, log_p.sub_(log_q)).mul_(p).sum(-1), p.neg_(), -1.0


def _reverse(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    far = torch.finfo(log_p.dtype).max / 2
    gap = without_infinity(log_q.sub_(log_p.clamp_(min=-2 * far)))
    infinite = gap.amax(-1, keepdim=True) >= far
    slopes = gap.mul_(q).masked_fill_(infinite, 0.0)
    total = slopes.sum(-1, keepdim=True)
    return total.masked_fill(infinite, inf).squeeze(-1), slopes, total


def _jensen_shannon(
    beta: float, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    log_m = log_of(torch.add(p * beta, q, alpha=1 - beta))
    of_p = p.mul_(without_infinity(log_p.sub_(log_m))).sum(-1)
    slopes = without_infinity(log_q.sub_(log_m)).mul_(q).mul_(1 - beta)
    total = slopes.sum(-1, keepdim=True)
    return torch.add(total.squeeze(-1), of_p, alpha=beta), slopes, total


FORWARD = Divergence(divergence, _forward)
REVERSE = Divergence(lambda log_p, log_q: reverse_divergence(log_q, log_p), _reverse, 1.0)


def jensen(beta: float) -> Divergence:
    """The generalised Jensen–Shannon divergence, β of the teacher."""
    if beta in (0, 1):
        return REVERSE if beta else FORWARD
    return Divergence(partial(jensen_shannon, beta=beta), partial(_jensen_shannon, beta))


# Between two networks


def softmax_divergence(
    student: Tensor,
    teacher: Tensor,
    measure: Divergence,
    scale: float | Tensor = 1.0,
    factor: float | Tensor = 1.0,
) -> Tensor:
    """factor · D(softmax(teacher / scale), softmax(student / scale)) over the last axis."""
    return _BETWEEN(student, teacher, measure=measure, scale=scale, factor=factor)


def _between(
    student: Tensor, teacher: Tensor, measure: Divergence, scale: float | Tensor, factor: float | Tensor
) -> Tensor:
    log_p, log_q = F.log_softmax(scaled(teacher, scale), -1), F.log_softmax(scaled(student, scale), -1)
    return times(measure.plain(log_p, log_q), factor)


def _known_between(
    student: Tensor, teacher: Tensor, measure: Divergence, scale: float, factor: float
) -> tuple[Tensor, Tensor]:
    (log_p, p), (log_q, q) = (_known_softmax(z, scale) for z in (teacher, student))
    values, slopes, total = measure.known(log_p, log_q, p, q)
    if isinstance(total, Tensor):
        gradient = slopes.addcmul_(q, total, value=-1)
    else:
        gradient = slopes.add_(q, alpha=-total)
    return times_(values, factor), times_(gradient, factor / scale)


def _known_softmax(logits: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The logarithm of softmax(logits / scale), and itself, in two new tensors.

    One from the other would take an exponential of every number, which is slow where it underflows.
    """
    below = times_(logits - logits.amax(-1, keepdim=True), 1 / scale)
    shares = F.softmax(below, dim=-1)
    return below.add_(shares.amax(-1, keepdim=True).log_()), shares


def known_log_softmax_at(logits: Tensor, shares: Tensor, at: Tensor) -> Tensor:
    """log softmax at some classes, from logits and softmax, which are highest at one class."""
    below = logits.gather(-1, at).sub_(logits.amax(-1, keepdim=True))
    return below.add_(shares.amax(-1, keepdim=True).log_())


_BETWEEN = Closed(_between, _known_between, least=2**16)


# From the student to probabilities


def softmax_errors(
    student: Tensor, p: Tensor, scale: float | Tensor = 1.0, factor: float | Tensor = 1.0
) -> Tensor:
    """−factor · Σ p log softmax(student / scale) over the last axis, of probabilities that sum to 1."""
    return _ERRORS(student, p, scale=scale, factor=factor)


def _errors(student: Tensor, p: Tensor, scale: float | Tensor, factor: float | Tensor) -> Tensor:
    return crossed(p, F.log_softmax(scaled(student, scale), dim=-1), factor)


def _known_errors(student: Tensor, p: Tensor, scale: float, factor: float) -> tuple[Tensor, Tensor]:
    log_q, q = _known_softmax(student, scale)
    values = where_above_(p, log_q).mul_(p).sum(-1)
    return times_(values, -factor), times_(q.sub_(p), factor / scale)


_ERRORS = Closed(_errors, _known_errors, least=2**16)
