"""Losses of tokens whose teacher is known at some classes only: its top k, as it is stored, or a sample.

The teacher is two tensors: ``ids [..., k]``, and ``log_probabilities [..., k]`` of those classes among ALL
classes: ``log_p, ids = teacher.log_softmax(-1).topk(k)``. The student's own top k are as good a choice of
classes: ``ids = student.topk(k).indices``, ``log_p = teacher.log_softmax(-1).gather(-1, ids)``. Ids of one
token must differ, but for those of a sample. That is not checked, since it would read them.

What to do with all other classes, the ``tail``, is a choice. With p of the teacher and q of the student, over
the listed classes S:

```
"bucket"        one more bin:  1 − Σ_S p  and  1 − Σ_S q
"renormalize"   p / Σ_S p  and  q / Σ_S q
"zero"          p / Σ_S p  and  q as it is: the teacher finds nothing else possible
"drop"          p and q as they are
```

Only a bucket and what is renormalised are divergences: zero at equality and positive elsewhere. What is
dropped may be negative. A listed class of probability 0 (−∞) is no bin: the student's share of it is in the
tail.
"""

import math
from math import inf, nan

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_choice, check_flag, check_plain
from .._tree import shape
from ._bins import bins_divergence
from ._checks import check_one_device, check_same_shape, class_logits, floats, indices
from ._closed import Closed
from ._numerics import label_errors, lifted, log_remainder
from ._softmaxes import FORWARD, REVERSE, Divergence, jensen, known_log_softmax_at

_LOWEST = -1e30
"""A finite logit of what is not there: where nothing else is, the gradient of −∞ would be NaN."""

_FLOOR = 1e-30
"""From here on, a bucket at its floor is a number in float32, and needs no logarithm."""

TAILS = ("bucket", "renormalize", "zero", "drop")


def topk_kl(
    prediction: Tensor,
    ids: Tensor,
    log_probabilities: Tensor,
    *,
    tail: str = "bucket",
    floor: float = 1e-7,
) -> Tensor:
    """Forward divergence from a teacher of whom k classes are known.

    ```
    loss[...] = Σ_bins p (log p − log q)
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        ids: The k classes, `[..., k]`.
        log_probabilities: The teacher's, among all classes, `[..., k]`; −∞ for a class it excludes.
        tail: The other classes: `"bucket"`, `"renormalize"`, `"zero"` or `"drop"`, as above.
        floor: A bucket below this counts as this much. A stored teacher is rounded, and its bucket with it;
            published 1e−7, and 0 is exact.

    Returns:
        `[...]`, in nats. With a bucket at most `kl` at temperature 1, which it is if all classes are listed.
        NaN where the probabilities sum to more than 1 (by 1e-3, in half precision 1e-2).

    Raises:
        ValueError: The shapes do not fit, more classes are listed than there are, or there is no token.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, 0.0]])
        >>> log_p, ids = torch.zeros(1, 3).log_softmax(-1).topk(2)
        >>> topk_kl(student, ids, log_p).round(decimals=3)
        tensor([0.4740])

    Reference:
        Checked against huggingface/trl `ServerDistillationTrainer` (published with k = 1 and a bucket) and
        `compute_topk_self_distillation_loss` (k = 100 of the student's classes, renormalised),
        arcee-ai/DistillKit `sparse_kl_div_inner` ("zero") and verl-project/verl `kl_divergence` ("drop").
        No deviation.
    """
    return _listed_divergence("topk_kl", prediction, ids, log_probabilities, FORWARD, tail, floor)


def topk_reverse_kl(
    prediction: Tensor,
    ids: Tensor,
    log_probabilities: Tensor,
    *,
    tail: str = "bucket",
    floor: float = 1e-7,
) -> Tensor:
    """Reverse divergence to a teacher of whom k classes are known: mode-seeking.

    ```
    loss[...] = Σ_bins q (log q − log p)
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        ids: The k classes, `[..., k]`: the teacher's top k, or the student's.
        log_probabilities: The teacher's, among all classes, `[..., k]`; −∞ for a class it excludes.
        tail: The other classes: `"bucket"`, `"renormalize"`, `"zero"` or `"drop"`, as above.
        floor: A bucket below this counts as this much, as in `topk_kl`. With 0, a teacher whose listed
            classes sum to 1 gives +∞.

    Returns:
        `[...]`, in nats. With a bucket at most `reverse_kl`, which it is if all classes are listed.

    Raises:
        ValueError: The shapes do not fit, more classes are listed than there are, or there is no token.

    Example:
        >>> log_p, ids = torch.tensor([[1.0, 0.0, 0.0]]).log_softmax(-1).topk(1)
        >>> topk_reverse_kl(torch.zeros(1, 3), ids, log_p).round(decimals=3)
        tensor([0.1190])

    Reference:
        Checked against `_jsd_divergence` at β = 1 of huggingface/trl (server distillation) and its
        `compute_topk_self_distillation_loss`. No deviation.
    """
    return _listed_divergence("topk_reverse_kl", prediction, ids, log_probabilities, REVERSE, tail, floor)


def topk_jsd(
    prediction: Tensor,
    ids: Tensor,
    log_probabilities: Tensor,
    *,
    beta: float = 0.5,
    tail: str = "bucket",
    floor: float = 1e-7,
) -> Tensor:
    """Generalised Jensen–Shannon divergence with a teacher of whom k classes are known.

    ```
    loss[...] = Σ_bins β · p (log p − log m) + (1 − β) · q (log q − log m)
    m = β p + (1 − β) q;    topk_kl at β = 0, topk_reverse_kl at β = 1
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        ids: The k classes, `[..., k]`: the teacher's top k, or the student's.
        log_probabilities: The teacher's, among all classes, `[..., k]`; −∞ for a class it excludes.
        beta: The teacher's weight in the mixture, in [0, 1]; published 0.5.
        tail: The other classes: `"bucket"`, `"renormalize"`, `"zero"` or `"drop"`, as above.
        floor: A bucket below this counts as this much, as in `topk_kl`.

    Returns:
        `[...]`, in nats. With a bucket at most `jsd`, which it is if all classes are listed.

    Raises:
        ValueError: The shapes do not fit, more classes are listed than there are, or there is no token.

    Example:
        >>> log_p, ids = torch.tensor([[60.0, 0.0, 0.0]]).log_softmax(-1).topk(1)
        >>> topk_jsd(torch.tensor([[0.0, 0.0, 60.0]]), ids, log_p)
        tensor([0.6931])

    Reference:
        Checked against `_jsd_divergence` of huggingface/trl (server distillation) and its
        `compute_topk_self_distillation_loss`, which names the student's classes first and so has 1 − β.
    """
    check_plain("topk_jsd", "beta", beta, least=0, most=1)
    return _listed_divergence("topk_jsd", prediction, ids, log_probabilities, jensen(beta), tail, floor)


def sampled_kl(
    prediction: Tensor,
    ids: Tensor,
    log_probabilities: Tensor,
    *,
    log_proposal: Tensor | None = None,
    self_normalized: bool = False,
) -> Tensor:
    """An unbiased estimate of the forward divergence from classes that were drawn at random.

    ```
    loss[...] = Σ_n w_n (log p[i_n] − log q[i_n]),    w_n = p[i_n] / (N π[i_n])
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        ids: N classes i drawn from π with repetition, `[..., N]`; a repeated one counts repeatedly.
        log_probabilities: The teacher's log p at the ids, among all classes, `[..., N]`.
        log_proposal: log π at the ids, `[..., N]`. By default the teacher was the proposal, so that
            w = 1 / N; uniform draws have −log C.
        self_normalized: Divide w by its sum: less spread, and no longer unbiased.

    Returns:
        `[...]`, in nats. One sample may be negative; its mean over samples is `kl` at temperature 1.

    Raises:
        ValueError: The shapes do not fit, or there is no token.

    Example:
        >>> teacher = torch.tensor([[1.0, 0.0]]).log_softmax(-1)
        >>> ids = torch.tensor([[0, 0, 1, 0]])
        >>> sampled_kl(torch.zeros(1, 2), ids, teacher.gather(-1, ids)).round(decimals=3)
        tensor([0.1300])

    Reference:
        Anshumann et al.: Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, ACL 2025, arXiv
        2503.16870. No code was published: from the formula. almogtavor/SE-KD3x, which renormalises the
        teacher over the sample, differs by a constant in the student.
    """
    name = "sampled_kl"
    check_flag(name, "self_normalized", self_normalized)
    student, at, log_p = _listed(name, prediction, ids, log_probabilities)
    if log_proposal is None:
        return _OWN_DRAWS(student, at, log_p)
    (log_pi,) = floats(name, "..., sampled", log_proposal=log_proposal)
    named = {"log_probabilities": log_probabilities, "log_proposal": log_proposal}
    check_same_shape(name, "Give the proposal of every id.", **named)
    check_one_device(name, prediction=prediction, log_proposal=log_proposal)
    student, log_p, log_pi = lifted(student, log_p, log_pi)
    weight = (log_p - log_pi).exp() / log_p.shape[-1]
    if self_normalized:
        weight = weight / weight.sum(-1, keepdim=True)
    log_q = F.log_softmax(student, dim=-1).gather(-1, at)
    return (weight * torch.where(log_p == -inf, 0.0, log_p - log_q)).sum(-1)


def _own_draws(student: Tensor, at: Tensor, log_p: Tensor) -> Tensor:
    log_q = F.log_softmax(student, dim=-1).gather(-1, at)
    return torch.where(log_p == -inf, 0.0, log_p - log_q).mean(-1)


def _known_own_draws(student: Tensor, at: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    q = F.softmax(student, dim=-1)
    log_q = known_log_softmax_at(student, q, at)
    none = log_p == -inf
    share = torch.full_like(log_p, 1 / log_p.shape[-1]).masked_fill_(none, 0.0)
    gradient = q.mul_(share.sum(-1, keepdim=True)).scatter_add_(-1, at, -share)
    return log_q.neg_().add_(log_p).masked_fill_(none, 0.0).mean(-1), gradient


_OWN_DRAWS = Closed(_own_draws, _known_own_draws, least=2**16)


# What they share


def _listed(
    function: str, prediction: Tensor, ids: Tensor, log_probabilities: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, listed classes and the teacher's log-probabilities of these, checked."""
    student = class_logits(function, prediction=prediction)
    at = indices(function, "..., k", ids=ids)
    (log_p,) = floats(function, "..., k", log_probabilities=log_probabilities)
    hint = "Give the log-probability of every id."
    check_same_shape(function, hint, ids=ids, log_probabilities=log_probabilities)
    check_one_device(function, prediction=prediction, ids=ids, log_probabilities=log_probabilities)
    if ids.shape[:-1] != prediction.shape[:-1]:
        raise ValueError(
            f"{function}: ids {shape(ids)} must list classes for each token of the logits, prediction "
            f"{shape(prediction)}: {list(prediction.shape[:-1])} and their number."
        )
    student, log_p = lifted(student, log_p)
    return student, at, log_p


def _listed_divergence(
    function: str,
    prediction: Tensor,
    ids: Tensor,
    log_probabilities: Tensor,
    measure: Divergence,
    tail: str,
    floor: float,
) -> Tensor:
    """The divergence over the listed classes and perhaps a bucket."""
    check_choice(function, "tail", tail, TAILS)
    check_plain(function, "floor", floor, least=0, below=1)
    student, at, log_p = _listed(function, prediction, ids, log_probabilities)
    classes, listed = prediction.shape[-1], ids.shape[-1]
    if listed > classes:
        raise ValueError(
            f"{function}: ids {shape(ids)} list {listed} classes, and prediction {shape(prediction)} has "
            f"{classes}."
        )
    tolerance = 1e-3 if log_probabilities.dtype in (torch.float32, torch.float64) else 1e-2
    total = log_p.exp().sum(-1, keepdim=True)
    log_p = torch.where(total > 1 + tolerance, nan, log_p)
    if tail == "bucket" and floor >= _FLOOR:
        rest = torch.zeros_like(total) if listed == classes else 1 - total
        return bins_divergence(student, at, log_p, rest, measure, floor)
    if tail == "bucket":
        return measure.plain(*_exact_bins(student, at, log_p, floor))
    if tail == "renormalize":
        own = torch.where(log_p == -inf, -inf, student.gather(-1, at))
        return measure.plain(F.log_softmax(log_p, dim=-1), F.log_softmax(own, dim=-1))
    log_q = torch.where(log_p == -inf, -inf, F.log_softmax(student, dim=-1).gather(-1, at))
    return measure.plain(log_p if tail == "drop" else F.log_softmax(log_p, dim=-1), log_q)


def _exact_bins(student: Tensor, at: Tensor, log_p: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Bins with a bucket whose probability may be too small for anything but its logarithm."""
    picked = student.gather(-1, at)
    own = torch.where(log_p == -inf, -inf, picked)
    log_q = F.log_softmax(torch.cat((own, _log_rest(student, at, picked, log_p)), dim=-1), dim=-1)
    nothing = torch.full_like(log_p[..., :1], -inf)
    rest_p = nothing if at.shape[-1] == student.shape[-1] else log_remainder(log_p)
    return _raised(torch.cat((log_p, rest_p), dim=-1), floor), _raised(log_q, floor)


def _log_rest(student: Tensor, at: Tensor, picked: Tensor, log_p: Tensor) -> Tensor:
    """log Σ exp of the logits that are not listed: one minus a sum near one would have no digits left."""
    others = student.scatter(-1, at, torch.where(log_p == -inf, picked, _LOWEST))
    highest, where = others.max(-1)
    # The fused cross-entropy is log Σ exp less one logit, in fewer passes than torch's logsumexp.
    log_rest = label_errors(others, where) + highest
    return torch.where(log_rest < 0.1 * _LOWEST, -inf, log_rest).unsqueeze(-1)


def _raised(log_bins: Tensor, floor: float) -> Tensor:
    """The bins with the last one raised to a floor, as published: to 1 − exp(−floor)."""
    if floor == 0:
        return log_bins
    raised = log_bins[..., -1:].clamp(min=math.log(-math.expm1(-floor)))
    return torch.cat((log_bins[..., :-1], raised), dim=-1)
