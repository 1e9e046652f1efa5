"""What losses need of numbers: one type, excluded classes, and gradients that are finite everywhere.

A class is excluded by the logit −∞, so by the log-probability −∞. It counts nothing: 0 · ∞ is 0 here.
What is NaN stays NaN: every comparison below is written so that NaN takes the branch of ordinary numbers.
"""

from contextlib import AbstractContextManager, nullcontext
from math import inf, nan

import torch
from torch import Tensor
from torch.nn import functional as F

# Types


def lifted(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one type: float64 where one of them is, else float32. What fits is not copied."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            dtype = torch.float64
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]


def exact(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does not send matrix products on the tensor's device back to half."""
    if tensor.device.type == "meta":
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def poisoned(value: Tensor, *sources: Tensor) -> Tensor:
    """The value, or NaN where a source holds NaN of which the value would not show it."""
    for source in sources:
        value = torch.where(source.isnan().any(), nan, value)
    return value


# Lengths


def safe_sqrt(tensor: Tensor) -> Tensor:
    """Square root with the subgradient 0 at 0 (and the value 0 below it), where torch has infinity."""
    return where_above_0(tensor, torch.where(tensor <= 0, 1.0, tensor).sqrt())


def safe_inverse(tensor: Tensor) -> Tensor:
    """1 / x, and 0 where x is not above 0."""
    return where_above_0(tensor, torch.where(tensor <= 0, 1.0, tensor).reciprocal())


def safe_normalize(tensor: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Divide by the 2-norm over some axes; what has no length stays where it is.

    `torch.nn.functional.normalize` divides a zero vector by 1e-12, so that its gradient, a trillion times too
    large, overflows half precision.
    """
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    return tensor / (norm + (norm <= 1e-12))


def mean_by_example(errors: Tensor) -> Tensor:
    """The mean over all axes but the first."""
    # A division of the few sums: the gradient of torch's mean is a tensor as large as the errors.
    return sum_by_example(errors) / (errors.numel() // len(errors))


def sum_by_example(errors: Tensor) -> Tensor:
    """The sum over all axes but the first."""
    return errors.reshape(len(errors), -1).sum(1)


# Probabilities


def scaled(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits divided by a temperature, of which an excluded class asks nothing."""
    if not isinstance(temperature, Tensor):
        return logits if temperature == 1 else logits * (1 / temperature)
    excluded = logits == -inf
    return torch.where(excluded, -inf, torch.where(excluded, 0.0, logits) / temperature)


def divergence(log_p: Tensor, log_q: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """factor · KL(p ‖ q) over the last axis. It is +∞ where q alone excludes a class."""
    return times(_expected(log_p.exp(), log_p - log_q), factor)


def crossed(p: Tensor, log_q: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """−factor · Σ p log q over the last axis. It is +∞ where q alone excludes a class."""
    return _expected(p, log_q) * -factor


def times(values: Tensor, factor: float | Tensor) -> Tensor:
    """The values times a factor, which costs nothing where that is the number 1."""
    return values if not isinstance(factor, Tensor) and factor == 1 else values * factor


def times_(values: Tensor, factor: float) -> Tensor:
    """`times`, written into the values."""
    return values if factor == 1 else values.mul_(factor)


def _expected(p: Tensor, x: Tensor) -> Tensor:
    """Σ p x over the last axis, with 0 · ∞ = 0."""
    return (p * where_above_0(p, x)).sum(-1)


# The one operation of torch that chooses by a number and not by a mask. It has no other name in Python, and
# takes a fraction of the time of `torch.where(p <= 0, 0.0, x)`.
_chosen = torch.ops.aten.threshold_backward


def where_above_0(p: Tensor, x: Tensor) -> Tensor:
    """x, and 0 where p is not above 0. Where p is NaN it is x."""
    found: Tensor = _chosen.default(x, p.detach(), 0.0)
    return found


def where_above_(p: Tensor, x: Tensor, least: float = 0.0) -> Tensor:
    """`where_above_0`, or above another number, written into x."""
    found: Tensor = _chosen.grad_input(x, p, least, grad_input=x)
    return found


def without_infinity(gap: Tensor) -> Tensor:
    """A new tensor with 0 in place of −∞, where it is given no weight; its gradient is the same."""
    if torch.compiler.is_compiling():
        return torch.where(gap == -inf, 0.0, gap)
    gap.detach().nan_to_num_(nan, inf, 0.0)
    return gap


def filled(values: Tensor, mask: Tensor, value: float = 0.0) -> Tensor:
    """A new tensor with a number where a mask says so; its gradient is the same."""
    if torch.compiler.is_compiling():
        return torch.where(mask, value, values)
    values.detach().masked_fill_(mask, value)
    return values


def covered_divergence(log_q: Tensor, log_m: Tensor) -> Tensor:
    """KL(q ‖ m) where m excludes no class: q may vary at little cost."""
    return (log_q.exp() * without_infinity(log_q - log_m)).sum(-1)


def reverse_divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q ‖ p), q of the student. Where it is +∞, as p alone excludes a class, its gradient is 0, no NaN."""
    far = torch.finfo(log_p.dtype).max / 2
    gap = without_infinity(log_q - log_p.clamp(min=-2 * far))
    widest = gap.detach().amax(-1)
    return torch.where(widest < far, (log_q.exp() * gap).sum(-1), widest * inf)


def log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share · p + (1 − share) · q), the share below 1; of what neither makes likely, something finite."""
    if share == 0:
        return log_q
    return log_of(torch.add(log_p.exp() * share, log_q.exp(), alpha=1 - share))


def log_of(probability: Tensor) -> Tensor:
    """The logarithm of a new tensor; of 0 the lowest one that has a finite gradient."""
    least = torch.finfo(probability.dtype).tiny
    if torch.compiler.is_compiling():
        return probability.clamp(min=least).log()
    probability.detach().clamp_min_(least)
    return probability.log()


def jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q; at β = 0 and 1 KL(p ‖ q) and KL(q ‖ p)."""
    if beta == 0:
        return divergence(log_p, log_q)
    if beta == 1:
        return reverse_divergence(log_q, log_p)
    p, q = log_p.exp() * beta, log_q.exp()
    log_m = log_of(torch.add(p, q, alpha=1 - beta))
    gap_p, gap_q = without_infinity(log_p - log_m), without_infinity(log_q - log_m)
    return torch.add(p * gap_p, q * gap_q, alpha=1 - beta).sum(-1)


def log_sum(logits: Tensor) -> Tensor:
    """log Σ exp of a new tensor over its last axis, which stays; of excluded classes alone −∞."""
    highest, at = logits.detach().max(-1, keepdim=True)
    logits = filled(logits, highest == -inf)
    # The fused cross-entropy is log Σ exp less one logit, in fewer passes than torch's logsumexp.
    total = label_errors(logits, at.squeeze(-1)).unsqueeze(-1) + logits.gather(-1, at)
    return torch.where(highest == -inf, -inf, total)


def log_remainder(log_p: Tensor) -> Tensor:
    """log(1 − Σ p) over the last axis, which stays; −∞ where nothing remains."""
    total = log_sum(log_p.clone())
    nothing = total >= 0
    return torch.where(nothing, -inf, (-torch.expm1(torch.where(nothing, -1.0, total))).log())


def distributions(labels: Tensor) -> Tensor:
    """Probabilities; those of an example are NaN unless they sum to 1."""
    tolerance = 1e-3 if labels.dtype in (torch.float32, torch.float64) else 1e-2
    total = labels.sum(-1, keepdim=True, dtype=torch.promote_types(labels.dtype, torch.float32))
    return torch.where((total - 1).abs() <= tolerance, labels, nan)


_NO_LABEL = -(2**63)
"""What `label_errors` ignores: −100, torch's default, is out of range as every other."""


def label_errors(logits: Tensor, y: Tensor) -> Tensor:
    """−log softmax at the labels, one class for each example."""
    if logits.ndim == 2:
        return F.cross_entropy(logits, y, reduction="none", ignore_index=_NO_LABEL)
    return label_errors(logits.reshape(-1, logits.shape[-1]), y.reshape(-1)).view(y.shape)


def binary_log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities `[..., 2]` of yes and no, for every logit that a sigmoid reads."""
    return F.logsigmoid(torch.stack((logits, -logits), dim=-1))


def binary_errors(logits: Tensor, probability: Tensor) -> Tensor:
    """Binary cross-entropy of every logit with a probability of that class, `excluded_or` as below."""
    errors = F.binary_cross_entropy_with_logits(
        torch.where(logits == -inf, 0.0, logits), probability, reduction="none"
    )
    return excluded_or(errors, logits, probability)


def excluded_or(errors: Tensor, logits: Tensor, probability: Tensor) -> Tensor:
    """The errors, but of an excluded class 0 where it has no probability, else +∞ without a gradient."""
    missed = probability.detach()
    return torch.where(logits == -inf, torch.where(missed == 0, 0.0, missed * inf), errors)


def mean_of_classes(errors: Tensor, logits: Tensor) -> Tensor:
    """The mean over the last axis, of the classes that are not excluded."""
    return errors.sum(-1) / (logits != -inf).sum(-1).clamp(min=1)
