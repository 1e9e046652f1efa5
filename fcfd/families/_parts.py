"""The divergence of softmaxes, split into parts of the classes: what each has in all, and what is within it.

A part is a mask `[..., classes]`, or one class of each example as a column of integers. A part without a
class, or with one, has no shape: its divergence is 0.
"""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from ._closed import Closed
from ._numerics import (
    binary_log_probabilities,
    divergence,
    log_sum,
    reverse_divergence,
    scaled,
    times,
    times_,
    where_above_,
)
from ._softmaxes import FORWARD

_OUTSIDE = -1e30
"""The logit of a class that is not in a part: finite, so that a softmax over no class is a number."""

_NOTHING = _OUTSIDE / 2
"""Below this is what comes of no class."""


def all_but(y: Tensor, like: Tensor) -> Tensor:
    """The part of all classes but one of each example, a column."""
    return torch.ones_like(like, dtype=torch.bool).scatter(-1, y, False)


# One class against all others, and the shape of a part


def decoupled_divergence(
    student: Tensor,
    teacher: Tensor,
    y: Tensor,
    first: Tensor,
    part: Tensor,
    *,
    label: tuple[float | Tensor, float | Tensor],
    among: tuple[float | Tensor, float | Tensor],
) -> Tensor:
    """The student's class y as the teacher's `first`, each against all others, and the KL within a part.

    `label` and `among` are what the logits are divided by, and a factor, of either divergence.
    """
    (label_scale, label_factor), (scale, factor) = label, among
    return _DECOUPLED(
        student,
        teacher,
        y,
        first,
        part,
        label_scale=label_scale,
        label_factor=label_factor,
        scale=scale,
        factor=factor,
    )


def _decoupled(
    student: Tensor,
    teacher: Tensor,
    y: Tensor,
    first: Tensor,
    part: Tensor,
    label_scale: float | Tensor,
    label_factor: float | Tensor,
    scale: float | Tensor,
    factor: float | Tensor,
) -> Tensor:
    student, teacher = _below_highest(student), _below_highest(teacher)
    log_odds_p = _log_odds(scaled(teacher, label_scale), first)
    log_odds_q = _log_odds(scaled(student, label_scale), y)
    log_p, log_q = binary_log_probabilities(log_odds_p), binary_log_probabilities(log_odds_q)
    of_label = divergence(log_p, log_q, label_factor)
    log_p, log_q = (_log_shape(scaled(z, scale), part) for z in (teacher, student))
    return of_label + divergence(log_p, log_q, factor)


def _below_highest(logits: Tensor) -> Tensor:
    """The logits less their highest, so that a sum of exponentials has all its digits."""
    return logits - logits.detach().amax(-1, keepdim=True)


def _log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log p / (1 − p) of one class `[...]`."""
    return (logits.gather(-1, y) - log_sum(logits.scatter(-1, y, -inf))).squeeze(-1)


def _log_shape(logits: Tensor, part: Tensor) -> Tensor:
    """Log-probabilities among the classes of a part; −∞ of all where it has none."""
    kept = torch.where(part, logits, _OUTSIDE)
    empty = kept.detach().amax(-1, keepdim=True) <= _NOTHING
    return torch.where(empty, -inf, F.log_softmax(kept, dim=-1))


def _known_decoupled(
    student: Tensor,
    teacher: Tensor,
    y: Tensor,
    first: Tensor,
    part: Tensor,
    label_scale: float,
    label_factor: float,
    scale: float,
    factor: float,
) -> tuple[Tensor, Tensor]:
    both = _both(student, teacher)
    for_label = scaled(both, label_scale)
    values, gradient = _known_label(for_label, torch.stack((first, y)))
    values, gradient = times_(values, label_factor), times_(gradient, label_factor / label_scale)
    among = for_label if scale == label_scale else scaled(both, scale)
    of_shape, shape_gradient = _known_shape(*_within(among, part))
    return values.add_(of_shape, alpha=factor), gradient.add_(shape_gradient, alpha=factor / scale)


def _both(student: Tensor, teacher: Tensor) -> Tensor:
    """Both networks in one tensor, teacher first, for half as many operations. Their highest logits are 0."""
    both = torch.stack((teacher, student))
    return both.sub_(both.amax(-1, keepdim=True))


def _known_label(both: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    others = both.scatter(-1, y, _OUTSIDE)
    shares = F.softmax(others, dim=-1)
    log_odds = both.gather(-1, y).sub_(_log_sums(others, shares)).squeeze(-1)
    logs = binary_log_probabilities(log_odds.masked_fill_(log_odds >= -_NOTHING, inf))
    (log_p, log_q), (p, q) = logs, logs.exp()
    values, slopes, _ = FORWARD.known(log_p, log_q, p, q)
    slope = slopes.add_(q)[..., 1:]  # that of the label is the same with the other sign
    return values, shares[1].mul_(slope).scatter_(-1, y[1], -slope)


def _within(both: Tensor, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits in a part, their softmax, and log Σ exp."""
    kept = torch.where(part, both, _OUTSIDE)
    shares = F.softmax(kept, dim=-1)
    return kept, shares, _log_sums(kept, shares)


def _log_sums(logits: Tensor, shares: Tensor) -> Tensor:
    """log Σ exp `[..., 1]`, from logits and softmax, which are highest at one class."""
    highest: Tensor = logits.amax(-1, keepdim=True)
    return highest.sub_(shares.amax(-1, keepdim=True).log_())


def _known_shape(kept: Tensor, shares: Tensor, log_sums: Tensor) -> tuple[Tensor, Tensor]:
    """KL within a part, and its gradient; 0 where the teacher has no class in it."""
    (p, q), (sum_p, sum_q) = shares, log_sums
    gap = (kept[0] - kept[1]).sub_(sum_p - sum_q)
    values, gradient = where_above_(p, gap).mul_(p).sum(-1), q.sub_(p)
    counts = sum_p > _NOTHING
    return values.mul_(counts.squeeze(-1)), gradient.mul_(counts)


_DECOUPLED = Closed(_decoupled, _known_decoupled)


# The masses of all parts, and the shape of each


def split_divergence(
    student: Tensor,
    teacher: Tensor,
    parts: tuple[Tensor, ...],
    weights: tuple[float, ...],
    scale: float | Tensor,
    factor: float | Tensor,
    reverse: float = 0.0,
) -> Tensor:
    """factor · (w₀ KL(masses) + Σ wₖ D(within part k)), of logits / scale and parts that are all classes.

    D is KL, of which a share may be in reverse.
    """
    if reverse:
        return _split(student, teacher, *parts, weights=weights, scale=scale, factor=factor, reverse=reverse)
    return _SPLIT(student, teacher, *parts, weights=weights, scale=scale, factor=factor)


def _split(
    student: Tensor,
    teacher: Tensor,
    *parts: Tensor,
    weights: tuple[float, ...],
    scale: float | Tensor,
    factor: float | Tensor,
    reverse: float = 0.0,
) -> Tensor:
    of_masses, *within = weights
    networks = [scaled(_below_highest(logits), scale) for logits in (teacher, student)]
    log_p, log_q = (_log_masses(z, parts) for z in networks)
    values = divergence(log_p, log_q, of_masses)
    for part, weight in zip(parts, within, strict=True):
        if weight:
            log_p, log_q = (_log_shape(z, part) for z in networks)
            if reverse < 1:
                values = values + divergence(log_p, log_q, weight * (1 - reverse))
            if reverse:
                values = values + weight * reverse * reverse_divergence(log_q, log_p)
    return times(values, factor)


def _log_masses(logits: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """The logarithm of each part's probability, `[..., parts]`."""
    sums = [
        log_sum(torch.where(part, logits, -inf)) if part.dtype == torch.bool else logits.gather(-1, part)
        for part in parts
    ]
    return F.log_softmax(torch.cat(sums, dim=-1), dim=-1)


def _known_split(
    student: Tensor,
    teacher: Tensor,
    *parts: Tensor,
    weights: tuple[float, ...],
    scale: float,
    factor: float,
) -> tuple[Tensor, Tensor]:
    both = times_(_both(student, teacher), 1 / scale)
    of_masses, *within = weights
    found = [_within(both, part) if part.dtype == torch.bool else None for part in parts]
    sums = torch.cat(
        [
            both.gather(-1, torch.stack((part, part))) if inside is None else inside[-1]
            for part, inside in zip(parts, found, strict=True)
        ],
        dim=-1,
    )
    log_p, log_q = F.log_softmax(sums.masked_fill(sums <= _NOTHING, -inf), dim=-1)
    p, q = log_p.exp(), log_q.exp()
    values, slopes, _ = FORWARD.known(log_p, log_q, p, q)
    of_parts = times_(slopes.add_(q), of_masses).split(1, dim=-1)
    values, gradient = times_(values, of_masses), torch.zeros_like(student)
    for part, weight, slope, inside in zip(parts, within, of_parts, found, strict=True):
        if inside is None:
            gradient.scatter_add_(-1, part, slope)
            continue
        gradient.addcmul_(inside[1][1], slope)
        if weight:
            of_shape, shape_gradient = _known_shape(*inside)
            values.add_(of_shape, alpha=weight)
            gradient.add_(shape_gradient, alpha=weight)
    return times_(values, factor), times_(gradient, factor / scale)


_SPLIT = Closed(_split, _known_split)
