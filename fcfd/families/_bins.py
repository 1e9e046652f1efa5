"""Divergences over a few listed classes, and one bin for all others together."""

from math import expm1, inf

import torch
from torch import Tensor
from torch.nn import functional as F

from ._closed import Closed
from ._numerics import where_above_
from ._softmaxes import Divergence, known_log_softmax_at


def bins_divergence(
    student: Tensor, at: Tensor, log_p: Tensor, rest_p: Tensor, measure: Divergence, floor: float
) -> Tensor:
    """D over the listed classes and the others' bin, which counts at least 1 − exp(−floor).

    The teacher's bins are given, the student's come of its logits. A listed class of probability 0 is no bin:
    it is one of the others.
    """
    least = -expm1(-floor)
    log_p = torch.cat((log_p, rest_p.clamp(min=least).log()), dim=-1)
    return _BINS(student, at, log_p, measure=measure, least=least)


def _bins(student: Tensor, at: Tensor, log_p: Tensor, measure: Divergence, least: float) -> Tensor:
    no_bin = log_p[..., :-1] == -inf
    log_q = F.log_softmax(student, dim=-1)
    # The others are added up: one minus a sum near one would have no digits left.
    others = log_q.exp() * torch.ones_like(student).scatter(-1, at, no_bin.to(student.dtype))
    log_rest = others.sum(-1, keepdim=True).clamp(min=least).log()
    listed = torch.where(no_bin, -inf, log_q.gather(-1, at))
    return measure.plain(log_p, torch.cat((listed, log_rest), dim=-1))


def _known_bins(
    student: Tensor, at: Tensor, log_p: Tensor, measure: Divergence, least: float
) -> tuple[Tensor, Tensor]:
    no_bin = log_p[..., :-1] == -inf
    others = F.softmax(student, dim=-1)
    log_q = known_log_softmax_at(student, others, at).masked_fill_(no_bin, -inf)
    others.scatter_(-1, at, others.gather(-1, at).mul_(no_bin))
    rest = others.sum(-1, keepdim=True)
    log_q = torch.cat((log_q, rest.clamp(min=least).log_()), dim=-1)
    q = log_q.exp()
    values, slopes, _ = measure.known(log_p.clone(), log_q, log_p.exp(), q)
    slopes = slopes.add_(q, alpha=measure.lacking) if measure.lacking else slopes
    of_listed, of_rest = slopes[..., :-1], where_above_(rest, slopes[..., -1:], least)
    total = of_listed.sum(-1, keepdim=True).add_(of_rest)
    gradient = others.mul_(of_rest.div_(rest.clamp_(min=least)).sub_(total))
    return values, gradient.scatter_add_(-1, at, of_listed.addcmul_(q[..., :-1], total, value=-1))


_BINS = Closed(_bins, _known_bins)
