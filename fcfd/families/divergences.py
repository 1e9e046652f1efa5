"""More divergences between logits ``[..., classes]``, and mixtures of two networks that stand between them.

As in `fcfd.families.logits`: one value for each example or token, softmaxes in log space, half precision read
in float32. A class excluded by −∞ in both networks counts nothing.
"""

from functools import partial
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_number, check_plain
from ._checks import (
    check_finite,
    check_one_device,
    check_same_shape,
    floats,
    logit_pair,
    per_example,
)
from ._numerics import crossed, distributions, divergence, lifted, reverse_divergence, scaled
from ._softmaxes import FORWARD, REVERSE, Divergence, softmax_divergence, softmax_errors

_FAR = 0.05
"""From here on, the digits that the formula of the α-β divergence loses near its limits are few."""

_SHARE = {"least": 0.0, "most": 1.0}

# With a variance in place of a divergence


def ikl(
    prediction: Tensor,
    target: Tensor,
    *,
    prior: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    weight_temperature: float | Tensor = 100.0,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Tensor:
    """Improved KL: the variance of the difference of logits, whose gradient reaches every class.

    ```
    loss[b] = β · ½ Var_w(z_t − z_s) + α · CE(stopgrad(p_t), p_s)
    p = softmax(logits / T)
    Var_w(d) = Σ_c w_c (d_c − Σ_j w_j d_j)²,    w = softmax(z_t / T_w), or a prior
    ```

    Args:
        prediction: Student logits z_s `[..., classes]`.
        target: Teacher logits z_t of the same shape. It is held constant in the cross-entropy only.
        prior: Probabilities `[..., classes]` as the weights: those of the class of each example, say.
        temperature: T of the cross-entropy, a number or one for each example `[...]`; published 1. There is
            no factor T².
        weight_temperature: T_w, the same; published 100: nearly equal weights.
        alpha: Weight of the cross-entropy; published 1.
        beta: Weight of the variance; published 1.

    Returns:
        `[...]`. Not zero at equality, for its cross-entropy. Time and memory B·C: the published sum over
        pairs of classes, `¼ Σ_jk w_j w_k (d_j − d_k)²`, is half a variance.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> ikl(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), alpha=0.0)
        tensor([0.5000])

    Reference:
        Cui et al.: Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024, arXiv 2305.13948. Checked
        against `dkl_loss` of jiequancui/DKL (first version). A prior that does not sum to 1 gives NaN.
    """
    name = "ikl"
    student, teacher, wanted, log_w = _weighted(
        name, prediction, target, prior, temperature, weight_temperature, alpha=alpha, beta=beta
    )
    return beta * _half_variance(student, teacher, log_w) + alpha * wanted


def gkl(
    prediction: Tensor,
    target: Tensor,
    *,
    prior: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    weight_temperature: float | Tensor = 1.0,
    gamma: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Tensor:
    """Generalised KL: as `ikl`, the weights raised to a power, and shared by the batch.

    ```
    loss = β · Σ_b W_b² ½ Var_{w_b / W_b}(z_t − z_s) / Σ_b W_b²
         + α · mean_b CE(stopgrad(p_t), p_s)
    w = softmax(z_t / T_w)^γ, or prior^γ;    W_b = Σ_c w_bc
    ```

    Args:
        prediction: Student logits z_s `[..., classes]`.
        target: Teacher logits z_t of the same shape. It is held constant in the cross-entropy only.
        prior: Probabilities `[..., classes]` as the weights, published: the mean prediction by class.
        temperature: T of the cross-entropy, a number or one for each example `[...]`; published 1 and, for
            distillation, 4. There is no factor T².
        weight_temperature: T_w, the same.
        gamma: γ, above 0; published 1 and, for distillation, 0.05.
        alpha: Weight of the cross-entropy; published 1.
        beta: Weight of the variance; published 1 and, for distillation, 16.

    Returns:
        A scalar: an example with flatter weights counts more, so that the batch is coupled. For γ = 1 it is
        the mean of `ikl`. Not zero at equality, for its cross-entropy. Time and memory B·C.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> gkl(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), alpha=0.0)
        tensor(0.5000)

    Reference:
        Cui et al.: Generalized Kullback-Leibler Divergence Loss, 2025, arXiv 2503.08038. Checked against
        `dkl_loss` of jiequancui/DKL (second version). A prior that does not sum to 1 gives NaN.
    """
    name = "gkl"
    check_number(name, "gamma", gamma, above=0)
    student, teacher, wanted, log_w = _weighted(
        name, prediction, target, prior, temperature, weight_temperature, alpha=alpha, beta=beta
    )
    log_w = scaled(log_w, 1 / gamma)
    total = log_w.logsumexp(-1, keepdim=True)
    share = (2 * total).flatten().softmax(0).reshape(total.shape[:-1])
    variances = _half_variance(student, teacher, log_w - total)
    return beta * (share * variances).sum() + alpha * wanted.mean()


# Between the forward and the reverse divergence


def ab_divergence(
    prediction: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """The α-β divergence, of which the forward and the reverse KL are two corners.

    ```
    loss[...] = −1/(αβ) Σ_c [p^α q^β − α/(α+β) p^(α+β) − β/(α+β) q^(α+β)]
    p of the teacher, q of the student, softmax(logits / T)
    ```

    Its limits are taken where one of α, β and α + β is 0, and near them:

    ```
    β = 0        1/α² Σ_c [α p^α (log p − log q) − p^α + q^α]
    α = 0        the same, p and q exchanged, α and β exchanged
    α + β = 0    1/α² Σ_c [(p/q)^α − 1 − α (log p − log q)]
    α = β = 0    ½ Σ_c (log p − log q)²
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape.
        alpha: α; published 0.2 for language models, 0.8 on CIFAR-100. More of it covers what the teacher
            finds likely.
        beta: β; published 0.7 and 0.3. (1, 0) is `kl` at temperature 1, and (0, 1) `reverse_kl`.
        temperature: T, a number or one for each example `[...]`; published 1. There is no factor T².

    Returns:
        `[...]`, one value for each example or token.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> s, t = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        >>> ab_divergence(s, t, alpha=1.0, beta=0.0)
        tensor([0.4323])

    Reference:
        Wang et al.: ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
        α-β-Divergence, ICML 2025, arXiv 2505.04560. Checked against `ab_div` of ghwang-s/abkd and of
        aailab-kaist/AMiD. Deviations from the first: its limits of one parameter have 1/α, here the square
        that makes them limits, as in the second; classes of probability 0 keep what they contribute.
    """
    name = "ab_divergence"
    check_plain(name, "alpha", alpha)
    check_plain(name, "beta", beta)
    log_p, log_q = _log_probabilities(name, prediction, target, temperature)
    if alpha > _FAR and beta > _FAR:
        total = alpha + beta
        both = (alpha * log_p + beta * log_q).exp().sum(-1)
        p, q = ((total * log).exp().sum(-1) for log in (log_p, log_q))
        return (alpha / total * p + beta / total * q - both) / (alpha * beta)
    excluded = (log_p == -inf) & (log_q == -inf)
    log_p, log_q = (torch.where(excluded, 0.0, log) for log in (log_p, log_q))
    if alpha == 0 and beta == 0:
        return 0.5 * (log_p - log_q).square().sum(-1)
    if abs(alpha) < abs(beta):  # the same with everything exchanged, and the larger is a safe divisor
        log_p, log_q, alpha, beta = log_q, log_p, beta, alpha
    # [(q^s − p^s) / s − (p^α q^β − p^s) / β] / α with s = α + β: every limit is one of a difference.
    gap, total = log_q - log_p, alpha + beta
    whole = gap
    if total:
        whole = _difference(total * log_q, total * log_p, total * gap) / total
    if beta:
        part = _difference(alpha * log_p + beta * log_q, total * log_p, beta * gap) / beta
    else:
        part = (alpha * log_p).exp() * torch.where(log_p == -inf, 0.0, gap)
    return torch.where(excluded, 0.0, whole - part).sum(-1) / alpha


def akl(prediction: Tensor, target: Tensor, *, mu: float = 0.5) -> Tensor:
    """Adaptive KL: the forward divergence counts by the error in the head, the reverse one by the rest.

    ```
    loss[...] = g_h / (g_h + g_l) · KL(p ‖ q) + g_l / (g_h + g_l) · KL(q ‖ p)
    g = Σ |p − stopgrad(q)| over the head (h), and over the rest (l)
    head: the classes by falling p whose cumulative p is at most μ, and always the first
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        target: Teacher logits of the same shape.
        mu: μ in [0, 1]; published 0.5. The class that crosses it is of the rest.

    Returns:
        `[...]`, in nats. 0 at equality, where the formula has 0/0. Which of equally likely classes is in the
        head is decided by their order. It sorts the classes.

    Raises:
        ValueError: The shapes differ, or there is no token.

    Example:
        >>> s, t = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        >>> akl(s, t).round(decimals=4)
        tensor([0.4590])

    Reference:
        Wu et al.: Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models,
        COLING 2025, arXiv 2404.02657. Checked against `get_ratio` and `get_kl` of wutaiqiang/LLM_KD_AKL. Two
        other public copies differ in the head: SakanaAI/TAID and songmzhang/KDFlow.
    """
    name = "akl"
    check_plain(name, "mu", mu, least=0, most=1)
    adaptive = Divergence(partial(_adaptive, mu), partial(_known_adaptive, mu))
    student, teacher = logit_pair(name, prediction, target)
    return softmax_divergence(student, teacher, adaptive)


def _adaptive(mu: float, log_p: Tensor, log_q: Tensor) -> Tensor:
    share = _share_of_head(log_p.exp(), log_q.exp().detach(), mu)
    backward = reverse_divergence(log_q, log_p)
    return share * divergence(log_p, log_q) + torch.where(share == 1, 0.0, (1 - share) * backward)


def _known_adaptive(
    mu: float, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    share = _share_of_head(p, q, mu)
    backward, of_backward, total = REVERSE.known(log_p.clone(), log_q.clone(), p, q)
    forward, of_forward, _ = FORWARD.known(log_p, log_q, p, q)
    rest, head = (1 - share).unsqueeze(-1), share.unsqueeze(-1)
    values = share * forward + torch.where(share == 1, 0.0, (1 - share) * backward)
    return values, of_backward.mul_(rest).addcmul_(of_forward, head), total * rest - head


def _share_of_head(p: Tensor, q: Tensor, mu: float) -> Tensor:
    """g_h / (g_h + g_l), ½ at equality."""
    falling, order = p.sort(dim=-1, descending=True, stable=True)
    head = falling.cumsum(-1) <= mu
    head[..., 0] = True
    gap = (falling - q.gather(-1, order)).abs()
    total = gap.sum(-1)
    return torch.where(total == 0, 0.5, (gap * head).sum(-1) / torch.where(total == 0, 1.0, total))


# From between the networks


def alpha_mixture(
    prediction: Tensor, target: Tensor, *, alpha: float = 0.5, share: float | Tensor = 0.5
) -> Tensor:
    """An assistant between student and teacher, as logits: their generalised mean.

    ```
    out = log r,    r ∝ (λ p^e + (1 − λ) q^e)^(1/e),    e = (1 − α) / 2
    r ∝ p^λ q^(1−λ) at α = 1
    p = softmax(target), q = softmax(prediction)
    ```

    It composes with every divergence between logits: ``kl(alpha_mixture(s, t), t, temperature=1.0)`` is
    KL(p ‖ r), ``kl(s, alpha_mixture(s, t), temperature=1.0)`` is KL(r ‖ q).

    Args:
        prediction: Student logits `[..., classes]`. The student learns through r too: detach it for a
            constant assistant.
        target: Teacher logits of the same shape.
        alpha: α: −1 is the arithmetic mixture of DistiLLM's skewed divergences, 1 the geometric one of
            `taid`; published 0.5.
        share: λ, the teacher's share: a number in [0, 1], or a tensor with one for each example or token,
            `[...]`; published 0.5.

    Returns:
        `[..., classes]`, normalised logits: log-probabilities.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> s, t = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
        >>> alpha_mixture(s, t, alpha=-1.0, share=0.25).exp()
        tensor([[0.7500, 0.2500]])

    Reference:
        Shin et al.: AMiD: Knowledge Distillation for LLMs with α-mixture Assistant Distribution, 2025, arXiv
        2510.15982. Checked against `amid` of aailab-kaist/AMiD. Deviation: its code has the geometric mixture
        for every α above 1.
    """
    name = "alpha_mixture"
    check_plain(name, "alpha", alpha)
    log_p, log_q = _log_probabilities(name, prediction, target, 1.0)
    weight = per_example(name, share, "share", _SHARE, prediction=prediction)
    if alpha == 1:
        return _geometric(log_p, log_q, weight)
    exponent = (1 - alpha) / 2
    parts = (
        log_weight + exponent * log.clamp(min=_LOWEST)
        for log_weight, log in zip(_logs_of_share(weight, log_p), (log_p, log_q), strict=True)
    )
    return _normalized(torch.logaddexp(*parts) / exponent)


def taid(prediction: Tensor, target: Tensor, *, share: float | Tensor = 0.4) -> Tensor:
    """Cross-entropy with a target that moves from the student to the teacher as training goes on.

    ```
    loss[...] = −Σ_c r_c log softmax(z_s)_c
    r = softmax((1 − t) · stopgrad(z_s) + t · z_t)
    ```

    Args:
        prediction: Student logits z_s `[..., classes]`, usually `[batch, length, vocabulary]`.
        target: Teacher logits z_t of the same shape.
        share: t, a number in [0, 1] or one for each token `[...]`; published from 0.4 to 1, by
            `fcfd.schedules.taid`.

    Returns:
        `[...]`, in nats. A cross-entropy, so not zero at equality. At t = 1 it is `kd_ce` at temperature 1;
        at t = 0 its gradient is 0.

    Raises:
        ValueError: The shapes differ, or there is no token.

    Example:
        >>> taid(torch.zeros(1, 2), torch.tensor([[8.0, 0.0]]), share=0.5).round(decimals=4)
        tensor([0.6931])

    Reference:
        Shing et al.: TAID: Temporally Adaptive Interpolated Distillation, ICLR 2025, arXiv 2501.16937.
        Checked against `TAID.compute_loss` of SakanaAI/TAID. No deviation.
    """
    name = "taid"
    student, teacher = logit_pair(name, prediction, target)
    weight = per_example(name, share, "share", _SHARE, prediction=prediction)
    held = student.detach()
    if isinstance(weight, Tensor) or weight in (0, 1):
        log_p, log_q = (F.log_softmax(z, dim=-1) for z in (teacher, held))
        return softmax_errors(student, _geometric(log_p, log_q, weight).exp())
    mixed = torch.add(teacher * weight, held, alpha=1 - weight)
    return softmax_errors(student, F.softmax(mixed, dim=-1))


# What they share

_LOWEST = -1e30
"""A finite log-probability of what cannot be: the gradient of −∞ would be NaN."""


def _log_probabilities(
    function: str, prediction: Tensor, target: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both networks, teacher first."""
    student, teacher = logit_pair(function, prediction, target)
    scale = per_example(function, temperature, prediction=prediction)
    return F.log_softmax(scaled(teacher, scale), -1), F.log_softmax(scaled(student, scale), -1)


def _weighted(
    function: str,
    prediction: Tensor,
    target: Tensor,
    prior: Tensor | None,
    temperature: float | Tensor,
    weight_temperature: float | Tensor,
    **weights: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both logits, the cross-entropy by example, and the log-weights of the classes."""
    check_finite(function, **weights)
    student, teacher = logit_pair(function, prediction, target)
    scale = per_example(function, temperature, prediction=prediction)
    width = per_example(function, weight_temperature, "weight_temperature", prediction=prediction)
    soft = F.softmax(scaled(teacher.detach(), scale), dim=-1)
    errors = crossed(soft, F.log_softmax(scaled(student, scale), dim=-1))
    if prior is None:
        return student, teacher, errors, F.log_softmax(scaled(teacher, width), dim=-1)
    (weight,) = floats(function, "..., classes", prior=prior)
    hint = "Give the prior of each example, as `priors[labels]`."
    check_same_shape(function, hint, prediction=prediction, prior=prior)
    check_one_device(function, prediction=prediction, prior=prior)
    student, teacher, errors, weight = lifted(student, teacher, errors, distributions(prior))
    nothing = (weight == 0) | ((student == -inf) & (teacher == -inf))
    log_weight = torch.where(nothing, -inf, torch.where(nothing, 1.0, weight).log())
    return student, teacher, errors, F.log_softmax(log_weight, dim=-1)


def _half_variance(student: Tensor, teacher: Tensor, log_weight: Tensor) -> Tensor:
    """½ Var of the difference of logits; +∞ where one network excludes a class that has weight."""
    weight = log_weight.exp()
    difference = torch.where(weight == 0, 0.0, teacher - student)
    excluded = difference.isinf()
    difference = torch.where(excluded, 0.0, difference)
    mean = (weight * difference).sum(-1, keepdim=True)
    variance = (weight * (difference - mean).square()).sum(-1)
    return torch.where(excluded.any(-1), inf, 0.5 * variance)


def _difference(x: Tensor, y: Tensor, gap: Tensor) -> Tensor:
    """exp(x) − exp(y), with x − y = gap: exact where that is small, and finite where the exponentials are."""
    rises = gap > 0  # no clamp: its gradient at the bound is 1 in torch up to 2.13, and 0 from 2.14 on
    higher = -x.exp() * torch.expm1(torch.where(rises, -gap, 0.0))
    return torch.where(rises, higher, y.exp() * torch.expm1(torch.where(rises, 0.0, gap)))


def _logs_of_share(share: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """log λ and log(1 − λ), of which −∞ has the gradient 0."""
    given = share if isinstance(share, Tensor) else like.new_tensor(share)
    found = []
    for part in (given, 1 - given):
        found.append(torch.where(part == 0, -inf, torch.where(part == 0, 1.0, part).log()))
    return found[0], found[1]


def _geometric(log_p: Tensor, log_q: Tensor, share: float | Tensor) -> Tensor:
    """log of p^λ q^(1−λ), normalised."""
    return _normalized(share * log_p.clamp(min=_LOWEST) + (1 - share) * log_q.clamp(min=_LOWEST))


def _normalized(logits: Tensor) -> Tensor:
    """Log-probabilities; what is as good as excluded is."""
    log_r = F.log_softmax(logits, dim=-1)
    return torch.where(log_r < 1e-5 * _LOWEST, -inf, log_r)
