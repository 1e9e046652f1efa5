"""Losses between logits ``[..., classes]``: the last axis is the class axis.

Every loss here that is defined per example returns ``[...]``, one value for each example (or token); the
caller masks, weights and reduces. Softmaxes stay in log space, and half-precision logits are read in float32.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .._tree import shape as _shape
from ._checks import check_class_indices, check_rank, check_same_shape
from ._numerics import exact, upcast

_CLASSES = "Give both networks the same classes, or select the shared ones before the loss."

_IMPOSSIBLE = -1e30
"""The log-probability of an excluded class: finite, so that zero times it is zero."""


# From the labels


def cross_entropy(prediction: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy between logits and the labels.

    ```
    loss[b] = -log softmax(prediction)[b, labels[b]]                   integer labels
    loss[b] = -Σ_c labels[b, c] · log softmax(prediction)[b, c]        probabilities
    ```

    Args:
        prediction: Logits `[..., classes]`.
        labels: Integer classes `[...]`, or probabilities `[..., classes]` (mixed or smoothed labels). That
            a class lies in range is torch's own check: reading it here would synchronise with the device.

    Returns:
        `[...]`, in nats.

    Raises:
        ValueError: The labels fit neither form, or there is no example.

    Example:
        >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.6931])
    """
    check_rank("cross_entropy", "..., classes", prediction=prediction)
    log_probability = F.log_softmax(upcast(prediction), dim=-1)
    if labels.is_floating_point() and labels.shape == prediction.shape:
        return -(labels * log_probability).sum(-1)
    check_class_indices("cross_entropy", labels, prediction)
    return -log_probability.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)


def tf_nkd(prediction: Tensor, labels: Tensor) -> Tensor:
    """Teacher-free normalised distillation: the student's own confidence, smoothed, is its target.

    ```
    loss = -(1/B) Σ_b w_b · log p[b, y_b],    w_b = stopgrad(p[b, y_b] + v_b − mean_b p[b, y_b])
    ```

    with v = 1. Of soft labels the two heaviest classes count, each as above with its mass as v; a class
    without mass gets w = 0.

    Args:
        prediction: Student logits `[batch, classes]`.
        labels: Integer classes `[batch]`, or probabilities `[batch, classes]` (mixup, CutMix).

    Returns:
        A scalar: the mean confidence couples the batch. Not bounded below, since w may be negative.

    Raises:
        ValueError: The labels fit neither form, or there is no example.

    Example:
        >>> tf_nkd(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor(0.6931)

    Reference:
        Yang et al.: Rethinking Knowledge Distillation via Cross-Entropy, 2022, arXiv 2208.10139. Checked
        against the distiller of yzd-v/cls_KD. No deviation.
    """
    check_rank("tf_nkd", "batch, classes", prediction=prediction)
    if labels.is_floating_point() and labels.shape == prediction.shape:
        # Stable, so that among classes without mass the same one is taken on every device.
        sorted_labels, order = upcast(labels).sort(dim=-1, descending=True, stable=True)
        mass, classes = sorted_labels[:, :2], order[:, :2]
    else:
        check_class_indices("tf_nkd", labels, prediction)
        classes = labels.long().unsqueeze(-1)
        mass = torch.ones_like(classes, dtype=upcast(prediction).dtype)
    log_confidence = F.log_softmax(upcast(prediction), dim=-1).gather(-1, classes)
    confidence = log_confidence.exp()
    weight = torch.where(mass > 0, confidence + mass - confidence.mean(0), 0.0).detach()
    return -(weight * log_confidence).mean(0).sum()


# From the teacher's probabilities


def kl(prediction: Tensor, target: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    """Kullback–Leibler divergence of softened logits: knowledge distillation.

    ```
    loss[b] = T² · Σ_c p_t (log p_t − log p_s),    p = softmax(logits / T)
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape; −∞ excludes a class.
        temperature: T, a number or one for each example `[...]`; published 4 on CIFAR-100, 1 on ImageNet.

    Returns:
        `[...]`, in nats; its mean is the usual "batchmean" (never the mean over classes).

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, -1.0]])
        >>> kl(logits, logits, temperature=4.0)
        tensor([0.])

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531. Checked
        against megvii-research/mdistiller `kd_loss` and the FCFD authors' `_loss_kl`. No deviation.
    """
    log_student, log_teacher = _log_probabilities("kl", prediction, target, temperature)
    return _divergence(log_teacher, log_student) * temperature**2


def kd_ce(prediction: Tensor, target: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    """Cross-entropy of softened logits: `kl` without the teacher's entropy, so with the same gradient.

    ```
    loss[b] = −T² · Σ_c p_t · log p_s,    p = softmax(logits / T)
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape.
        temperature: T, a number or one for each example `[...]`; published 4 on CIFAR-100, 1 on ImageNet.

    Returns:
        `[...]`, in nats. At equality it is T² times the teacher's entropy, not zero.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> kd_ce(torch.zeros(1, 2), torch.zeros(1, 2), temperature=2.0)
        tensor([2.7726])

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531. Checked
        against yzd-v/cls_KD `KDLoss`, whose weight alpha is left to the caller.
    """
    log_student, log_teacher = _log_probabilities("kd_ce", prediction, target, temperature)
    return _cross_entropy(log_teacher, log_student) * temperature**2


def kd_bce(prediction: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every student logit with the teacher's probability of that class.

    ```
    loss[b] = (1/C) Σ_c [softplus(z_s) − p_t · z_s],    p_t = softmax(target)
    ```

    Args:
        prediction: Student logits z_s `[..., classes]`, each read by a sigmoid.
        target: Teacher logits of the same shape, read by a softmax.

    Returns:
        `[...]`, in nats, a mean over classes. Not zero at equality.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> kd_bce(torch.zeros(1, 4), torch.zeros(1, 4))
        tensor([0.6931])

    Reference:
        Hao et al.: Revisit the Power of Vanilla Knowledge Distillation, NeurIPS 2023, arXiv 2305.15781.
        Checked against Hao840/vanillaKD `BinaryKLDiv`. No deviation.
    """
    _check_pair("kd_bce", prediction, target)
    logits, probability = upcast(prediction), F.softmax(upcast(target), dim=-1)
    return F.binary_cross_entropy_with_logits(logits, probability, reduction="none").mean(-1)


def forward_kl_ce(prediction: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the teacher's distribution, token by token: mode-covering.

    ```
    loss[...] = −Σ_v p_t · log p_s
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        target: Teacher logits of the same shape.

    Returns:
        `[...]`, in nats, one for each token. Mask and average it outside: `(loss * mask).sum() / mask.sum()`.

    Raises:
        ValueError: The shapes differ, or there is no token.

    Example:
        >>> forward_kl_ce(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
        tensor([[1.3863, 1.3863]])

    Reference:
        Ko et al.: DistiLLM, ICML 2024, arXiv 2402.03898. Checked against jongwooko/distillm `forward_kl`,
        which does not subtract the teacher's entropy either: it is `kd_ce` at temperature 1.
    """
    log_student, log_teacher = _log_probabilities("forward_kl_ce", prediction, target)
    return _cross_entropy(log_teacher, log_student)


def reverse_kl(prediction: Tensor, target: Tensor) -> Tensor:
    """Kullback–Leibler divergence from the student's side: mode-seeking.

    ```
    loss[...] = Σ_v p_s (log p_s − log p_t)
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        target: Teacher logits of the same shape.

    Returns:
        `[...]`, in nats, one for each token; the caller masks and averages.

    Raises:
        ValueError: The shapes differ, or there is no token.

    Example:
        >>> reverse_kl(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
        tensor([[0., 0.]])

    Reference:
        Gu et al.: MiniLLM, ICLR 2024, arXiv 2306.08543. Checked against jongwooko/distillm `reverse_kl`.
        No deviation.
    """
    log_student, log_teacher = _log_probabilities("reverse_kl", prediction, target)
    return _divergence(log_student, log_teacher)


def jsd(
    prediction: Tensor, target: Tensor, *, beta: float = 0.5, temperature: float | Tensor = 1.0
) -> Tensor:
    """Generalised Jensen–Shannon divergence, between forward and reverse KL.

    ```
    loss[...] = β · KL(p_t ‖ m) + (1 − β) · KL(p_s ‖ m),    m = β p_t + (1 − β) p_s
    loss[...] = KL(p_t ‖ p_s) at β = 0,    KL(p_s ‖ p_t) at β = 1
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        target: Teacher logits of the same shape.
        beta: The teacher's weight in the mixture, in [0, 1]; published 0.5, and 0.1 and 0.9.
        temperature: A number or one for each token `[...]`; published 1. There is no factor T².

    Returns:
        `[...]`, in nats, one for each token; the caller masks and averages.

    Raises:
        ValueError: The shapes differ, or there is no token.

    Example:
        >>> jsd(torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]]))
        tensor([0.6931])

    Reference:
        Agarwal et al.: On-Policy Distillation of Language Models, ICLR 2024, arXiv 2306.13649. Checked
        against huggingface/trl `generalized_jsd_loss`, which without labels divides by the batch only.
    """
    log_student, log_teacher = _log_probabilities("jsd", prediction, target, temperature)
    if beta == 0:
        return _divergence(log_teacher, log_student)
    if beta == 1:
        return _divergence(log_student, log_teacher)
    log_mixture = _log_mixture(log_teacher, log_student, beta)
    return beta * _divergence(log_teacher, log_mixture) + (1 - beta) * _divergence(log_student, log_mixture)


def skew_forward_kl_ce(prediction: Tensor, target: Tensor, *, skew: float = 0.1) -> Tensor:
    """Cross-entropy of the teacher's distribution with a mixture that holds some of it.

    ```
    loss[...] = −Σ_v p_t · log(λ p_t + (1 − λ) p_s)
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        target: Teacher logits of the same shape.
        skew: λ in [0, 1), the TEACHER's share of the mixture; published 0.1.

    Returns:
        `[...]`, in nats, one for each token; the caller masks and averages.

    Raises:
        ValueError: The shapes differ, or there is no token.

    Example:
        >>> skew_forward_kl_ce(torch.zeros(1, 4), torch.zeros(1, 4))
        tensor([1.3863])

    Reference:
        Ko et al.: DistiLLM, ICML 2024, arXiv 2402.03898. Checked against jongwooko/distillm
        `skewed_forward_kl`, which does not subtract the teacher's entropy; its log of a sum of
        probabilities is NaN in float32 where `logaddexp` here is finite.
    """
    log_student, log_teacher = _log_probabilities("skew_forward_kl_ce", prediction, target)
    return _cross_entropy(log_teacher, _log_mixture(log_teacher, log_student, skew))


def skew_reverse_kl(prediction: Tensor, target: Tensor, *, skew: float = 0.1) -> Tensor:
    """Divergence of the student's distribution from a mixture that holds some of it.

    ```
    loss[...] = Σ_v p_s (log p_s − log(λ p_s + (1 − λ) p_t))
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        target: Teacher logits of the same shape.
        skew: λ in [0, 1), the STUDENT's share of the mixture; published 0.1.

    Returns:
        `[...]`, in nats, at most −log λ, one for each token; the caller masks and averages.

    Raises:
        ValueError: The shapes differ, or there is no token.

    Example:
        >>> skew_reverse_kl(torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]]))
        tensor([2.3026])

    Reference:
        Ko et al.: DistiLLM, ICML 2024, arXiv 2402.03898. Checked against jongwooko/distillm
        `skewed_reverse_kl`. No deviation.
    """
    log_student, log_teacher = _log_probabilities("skew_reverse_kl", prediction, target)
    return _divergence(log_student, _log_mixture(log_student, log_teacher, skew))


def total_variation(prediction: Tensor, target: Tensor) -> Tensor:
    """Total variation distance of two distributions: a bounded loss.

    ```
    loss[...] = ½ Σ_v |p_t − p_s|
    ```

    Args:
        prediction: Student logits `[..., classes]`, usually `[batch, length, vocabulary]`.
        target: Teacher logits of the same shape.

    Returns:
        `[...]` in [0, 1], one for each token; the caller masks and averages.

    Raises:
        ValueError: The shapes differ, or there is no token.

    Example:
        >>> total_variation(torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]]))
        tensor([1.])

    Reference:
        Wen et al.: f-Divergence Minimization for Sequence-Level Knowledge Distillation, ACL 2023, arXiv
        2307.15190. Checked against jongwooko/distillm `tv_distance`. No deviation.
    """
    _check_pair("total_variation", prediction, target)
    student, teacher = F.softmax(upcast(prediction), dim=-1), F.softmax(upcast(target), dim=-1)
    return 0.5 * (teacher - student).abs().sum(-1)


# From the teacher's probabilities and the labels


def dkd(
    prediction: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation: `kl` split into the label against the rest, and the rest among themselves.

    ```
    loss[b] = T² · (α · KL([p_t[y], 1 − p_t[y]] ‖ [p_s[y], 1 − p_s[y]]) + β · KL(q_t ‖ q_s))
    p = softmax(logits / T),    q = softmax(logits / T without class y)
    ```

    Args:
        prediction: Student logits `[..., classes]`, at least two classes.
        target: Teacher logits of the same shape.
        labels: Integer classes y `[...]`.
        temperature: T, a number or one for each example `[...]`; published 4 on CIFAR-100, 1 on ImageNet.
        alpha: Weight of the label's part; published 1.
        beta: Weight of the other classes' part; published 8 on CIFAR-100 (2 to 8 by pair), 0.5 on ImageNet.

    Returns:
        `[...]`, in nats.

    Raises:
        ValueError: The shapes differ, the labels are not one class for each example, or there is no example.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, -1.0]])
        >>> dkd(logits, logits, torch.tensor([0]))
        tensor([0.])

    Reference:
        Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679. Checked against
        megvii-research/mdistiller `dkd_loss`, which masks the label by −1000 (exactly here) and takes logs
        of probabilities (log-odds here): equal wherever it is finite. Its warm-up is a schedule outside.
    """
    _check_pair("dkd", prediction, target)
    label_s, others_s = _decoupled("dkd", prediction, labels, temperature)
    label_t, others_t = _decoupled("dkd", target, labels, temperature)
    divergence = alpha * _divergence(label_t, label_s) + beta * _divergence(others_t, others_s)
    return divergence * temperature**2


def nkd(
    prediction: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """Normalised distillation: the label by the teacher's confidence, the other classes renormalised.

    ```
    loss[b] = −stopgrad(p_t[y]) · log p_s[y] − γ · T² · Σ_{c≠y} q_t · log q_s
    p = softmax(logits),    q = softmax(logits / T without class y)
    ```

    Args:
        prediction: Student logits `[..., classes]`, at least two classes.
        target: Teacher logits of the same shape.
        labels: Integer classes y `[...]`.
        temperature: T of the other classes only, a number or one for each example `[...]`; published 1.
        gamma: Weight of the other classes; published 1.5.

    Returns:
        `[...]`, in nats. A cross-entropy, so not zero at equality.

    Raises:
        ValueError: The shapes differ, the labels are not one class for each example, or there is no example.

    Example:
        >>> nkd(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0]))
        tensor([1.4059])

    Reference:
        Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023, arXiv
        2303.13005. Checked against yzd-v/cls_KD `NKDLoss`. Soft labels, which it replaces by their
        largest class, are refused.
    """
    _check_pair("nkd", prediction, target)
    others_s = _bounded_log_softmax(_without_label("nkd", prediction, labels, temperature))
    others_t = _bounded_log_softmax(_without_label("nkd", target, labels, temperature))
    confidence = (-cross_entropy(target, labels)).exp().detach()
    others = _cross_entropy(others_t, others_s) * temperature**2
    return confidence * cross_entropy(prediction, labels) + gamma * others


def wsld(prediction: Tensor, target: Tensor, labels: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    """Weighted soft labels: distil less where the student already does better than the teacher.

    ```
    loss[b] = −w_b · T² · Σ_c p_t · log p_s,    p = softmax(logits / T)
    w_b = stopgrad(1 − exp(−CE_s / (CE_t + 1e−7))),    CE = cross-entropy with the label at T = 1
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape.
        labels: Integer classes `[...]`.
        temperature: T, a number or one for each example `[...]`; published 4 on CIFAR-100.

    Returns:
        `[...]`, in nats. A cross-entropy, so not zero at equality.

    Raises:
        ValueError: The shapes differ, the labels are not one class for each example, or there is no example.

    Example:
        >>> wsld(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), temperature=1.0)
        tensor([0.4382])

    Reference:
        Zhou et al.: Rethinking Soft Labels for Knowledge Distillation, ICLR 2021, arXiv 2102.00650. Checked
        against open-mmlab/mmrazor `WSLD` and yzd-v/cls_KD `WSLDLoss`, whose weight 2.25 is the caller's.
    """
    log_student, log_teacher = _log_probabilities("wsld", prediction, target, temperature)
    check_class_indices("wsld", labels, prediction)
    ratio = cross_entropy(prediction, labels) / (cross_entropy(target, labels) + 1e-7)
    weight = -torch.expm1(-ratio).detach()
    return weight * _cross_entropy(log_teacher, log_student) * temperature**2


def ofa(
    prediction: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """One-for-all distillation: the teacher's probabilities, with the label's enhanced.

    ```
    loss[b] = −Σ_c [(p_t[c] + 1[c = y])^γ − 1[c = y]] · log p_s[c],    p = softmax(logits / T)
    ```

    Args:
        prediction: Student logits `[..., classes]`, of a head on any stage of any architecture.
        target: Teacher logits of the same shape.
        labels: Integer classes y `[...]`.
        temperature: T, a number or one for each example `[...]`; published 1. There is no factor T².
        gamma: The exponent, on all classes; published 1.5 for a transformer teacher of a convolutional
            student. At 1, the code's default, the loss is the soft cross-entropy.

    Returns:
        `[...]`, in nats. Not zero at equality. The subtracted 1[c = y] is one `cross_entropy` with the
        label, which the published objective adds as a term of its own.

    Raises:
        ValueError: The shapes differ, the labels are not one class for each example, or there is no example.

    Example:
        >>> ofa(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.8253])

    Reference:
        Hao et al.: One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation,
        NeurIPS 2023, arXiv 2310.19444. Checked against Hao840/OFAKD `ofa_loss` (there `eps` is γ). No
        deviation.
    """
    log_student, log_teacher = _log_probabilities("ofa", prediction, target, temperature)
    check_class_indices("ofa", labels, prediction)
    probability, y = log_teacher.exp(), labels.long().unsqueeze(-1)
    enhanced = (probability.gather(-1, y) + 1) ** gamma - 1
    weight = (probability**gamma).scatter(-1, y, enhanced)
    return -(weight * log_student).sum(-1)


def wkd_logit(
    prediction: Tensor,
    target: Tensor,
    labels: Tensor,
    cost: Tensor,
    *,
    temperature: float | Tensor = 2.0,
    gamma: float = 30.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """Wasserstein distillation: probability of the other classes is moved at the price of their unlikeness.

    ```
    loss[b] = −stopgrad(p_t[y]) · log p_s[y] + γ · Σ_ij u_i K_ij v_j c_ij          over classes other than y
    c = max(cost, 0) + 1e−8,    K = exp(−c / regularization),    u = 1 / (C − 1), and `iterations` times
    v = q_t / (Kᵀ u + 1e−8),    u = q_s / (K v + 1e−8),    q = softmax(logits / T without class y)
    ```

    The 1e−8 bounds u and v, so the iteration needs no logarithms. A label's own mass is zero, so it drops
    out of sums over all classes: one K serves the batch, in B·C + C² memory instead of B·C².

    Args:
        prediction: Student logits `[..., classes]`, at least two classes.
        target: Teacher logits of the same shape.
        labels: Integer classes y `[...]`.
        cost: Unlikeness `[classes, classes]` of student class i and teacher class j, about 0 to 1.
        temperature: T of the other classes, a number or one for each example `[...]`; published 2.
        gamma: Weight of the transport; published 30. There is no factor T².
        regularization: Strength of the entropy, in units of the cost; published 0.05.
        iterations: Sinkhorn iterations, all differentiated; published 10.

    Returns:
        `[...]`. Not zero at equality: the label's part is a cross-entropy, and regularised transport blurs.
        Time `iterations`·B·C².

    Raises:
        ValueError: The shapes differ, the labels are not one class for each example, or there is no example.

    Example:
        >>> logits = torch.tensor([[9.0, 1.0, -1.0]])
        >>> wkd_logit(logits, logits, torch.tensor([0]), 1 - torch.eye(3)).round(decimals=3)
        tensor([0.])

    Reference:
        Lv, Yang, Li: Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation,
        NeurIPS 2024, arXiv 2412.08139. Checked against JiamingLv/WKD `wkd_logit_loss_with_speration`. No
        deviation.
    """
    _check_pair("wkd_logit", prediction, target)
    classes = prediction.shape[-1]
    if cost.shape != (classes, classes):
        raise ValueError(
            f"wkd_logit: cost {_shape(cost)} must be [{classes}, {classes}], a row and a column for each "
            f"class of the logits {_shape(prediction)}."
        )
    student = _without_label("wkd_logit", prediction, labels, temperature).softmax(-1)
    teacher = _without_label("wkd_logit", target, labels, temperature).softmax(-1)
    price = F.relu(upcast(cost)) + 1e-8
    kernel = torch.exp(-price / regularization)
    y = labels.long().unsqueeze(-1)
    u, v = torch.full_like(student, 1 / (classes - 1)).scatter(-1, y, 0.0), teacher
    with exact(prediction):
        for _ in range(iterations):
            v = teacher / (u @ kernel + 1e-8)
            u = student / (v @ kernel.mT + 1e-8)
        transport = (u * (v @ (kernel * price).mT)).sum(-1)
    confidence = (-cross_entropy(target, labels)).exp().detach()
    return confidence * cross_entropy(prediction, labels) + gamma * transport


# Of the whole batch


def dist(
    prediction: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Correlation with a stronger teacher: only the order and spacing of probabilities count.

    ```
    loss = T² · [β · (1 − mean_b r(p_s[b, :], p_t[b, :])) + γ · (1 − mean_c r(p_s[:, c], p_t[:, c]))]
    p = softmax(logits / T),    r(a, b) = ⟨a − ā, b − b̄⟩ / (‖a − ā‖ ‖b − b̄‖ + 1e−8)
    ```

    Args:
        prediction: Student logits `[batch, classes]`.
        target: Teacher logits of the same shape.
        temperature: T; published 1 on ImageNet, 4 on CIFAR-100.
        beta: Weight of the correlation over classes; published 1.
        gamma: Weight of the correlation over the batch; published 1.

    Returns:
        A scalar: the second part couples the batch.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> logits = torch.tensor([[3.0, 0.0, -1.0], [0.0, 1.0, 2.0]])
        >>> dist(logits, logits).round(decimals=4)
        tensor(0.)

    Reference:
        Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv 2205.10536. Checked
        against hunto/image_classification_sota `DIST`. No deviation.
    """
    student, teacher = _batch_probabilities("dist", prediction, target, temperature)
    over_classes = 1 - _pearson(student, teacher, -1).mean()
    over_batch = 1 - _pearson(student, teacher, 0).mean()
    return temperature**2 * (beta * over_classes + gamma * over_batch)


def mlkd_class_corr(prediction: Tensor, target: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Class-level alignment: which classes are confused with which, over the batch.

    ```
    loss = (1/C) · ‖P_tᵀ P_t − P_sᵀ P_s‖²_F,    P = softmax(logits / T)
    ```

    Args:
        prediction: Student logits `[batch, classes]`.
        target: Teacher logits of the same shape.
        temperature: T; published 2, 3, 4, 5 and 6, averaged. There is no factor T².

    Returns:
        A scalar: the products couple the batch. The smaller of B² and C² is what memory holds.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> mlkd_class_corr(torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]]), temperature=1.0)
        tensor(1.)

    Reference:
        Jin, Wang, Lin: Multi-Level Logit Distillation, CVPR 2023. Checked against `cc_loss` of
        Jin-Ying/Multi-Level-Logit-Distillation, without the trainer's confidence masks: those multiply this
        scalar.
    """
    student, teacher = _batch_probabilities("mlkd_class_corr", prediction, target, temperature)
    return _gram_distance(student.mT, teacher.mT) / student.shape[1]


def mlkd_batch_corr(prediction: Tensor, target: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Batch-level alignment: which examples look alike, by their probabilities.

    ```
    loss = (1/B) · ‖P_t P_tᵀ − P_s P_sᵀ‖²_F,    P = softmax(logits / T)
    ```

    Args:
        prediction: Student logits `[batch, classes]`.
        target: Teacher logits of the same shape.
        temperature: T; published 2, 3, 4, 5 and 6, averaged. There is no factor T².

    Returns:
        A scalar: the products couple the batch. The smaller of B² and C² is what memory holds.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> logits = torch.tensor([[60.0, 0.0], [0.0, 60.0]])
        >>> mlkd_batch_corr(logits, logits.flip(1), temperature=1.0)
        tensor(0.)

    Reference:
        Jin, Wang, Lin: Multi-Level Logit Distillation, CVPR 2023. Checked against `bc_loss` of
        Jin-Ying/Multi-Level-Logit-Distillation, without the trainer's confidence masks. It divides by B,
        although the matrix has B² entries.
    """
    student, teacher = _batch_probabilities("mlkd_batch_corr", prediction, target, temperature)
    return _gram_distance(student, teacher) / len(student)


# What the losses share


def _check_pair(function: str, prediction: Tensor, target: Tensor) -> None:
    check_rank(function, "..., classes", prediction=prediction, target=target)
    check_same_shape(function, _CLASSES, prediction=prediction, target=target)


def _per_example(function: str, name: str, value: float | Tensor, logits: Tensor) -> float | Tensor:
    """A hyper-parameter that may differ by example, shaped to multiply `[..., classes]`."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.shape != logits.shape[:-1]:
        raise ValueError(
            f"{function}: {name} {_shape(value)} must be a number or have one value for each example, "
            f"{list(logits.shape[:-1])}, of the logits {_shape(logits)}."
        )
    return value.unsqueeze(-1)


def _log_probabilities(
    function: str, prediction: Tensor, target: Tensor, temperature: float | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Check a pair of logits; the student's and the teacher's log-probabilities at a temperature."""
    _check_pair(function, prediction, target)
    student, teacher = upcast(prediction), upcast(target)
    if temperature is not None:
        scale = _per_example(function, "temperature", temperature, prediction)
        student, teacher = student / scale, teacher / scale
    return F.log_softmax(student, dim=-1), _bounded_log_softmax(teacher)


def _bounded_log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities that are finite where a class is excluded by −∞."""
    return F.log_softmax(logits, dim=-1).clamp(min=_IMPOSSIBLE)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last axis."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """−Σ p log q over the last axis."""
    return -(log_p.exp() * log_q).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight · p + (1 − weight) · q)."""
    if weight == 0:
        return log_q
    return torch.logaddexp(log_p + math.log(weight), log_q + math.log1p(-weight))


def _without_label(function: str, logits: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    """Softened logits in which each example's label is excluded."""
    check_class_indices(function, labels, logits)
    if logits.shape[-1] < 2:
        raise ValueError(f"{function}: logits {_shape(logits)} must have a class besides the label.")
    scaled = upcast(logits) / _per_example(function, "temperature", temperature, logits)
    return scaled.scatter(-1, labels.long().unsqueeze(-1), -math.inf)


def _decoupled(
    function: str, logits: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[..., 2]` of the label and of the rest, and `[..., classes]` among the rest."""
    others = _without_label(function, logits, labels, temperature)
    own = upcast(logits).gather(-1, labels.long().unsqueeze(-1))
    own = own / _per_example(function, "temperature", temperature, logits)
    log_odds = own - others.logsumexp(-1, keepdim=True)
    return F.logsigmoid(torch.cat([log_odds, -log_odds], -1)), _bounded_log_softmax(others)


def _batch_probabilities(
    function: str, prediction: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    check_rank(function, "batch, classes", prediction=prediction, target=target)
    check_same_shape(function, _CLASSES, prediction=prediction, target=target)
    return F.softmax(upcast(prediction) / temperature, -1), F.softmax(upcast(target) / temperature, -1)


def _pearson(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Correlation along an axis, zero where one side is constant."""
    a, b = a - a.mean(axis, keepdim=True), b - b.mean(axis, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(a, dim=axis) * torch.linalg.vector_norm(b, dim=axis)
    return (a * b).sum(axis) / (norms + 1e-8)


def _gram_distance(x: Tensor, y: Tensor) -> Tensor:
    """``‖x xᵀ − y yᵀ‖²``, by products of the shorter axis.

    With e = x − y and m = x + y, ``x xᵀ − y yᵀ = (e mᵀ + m eᵀ) / 2``, whose square needs eᵀe, mᵀm and eᵀm
    only. Nothing cancels where x nears y, unlike in the expansion into three traces.
    """
    with exact(x):
        if x.shape[0] <= x.shape[1]:
            return (x @ x.mT - y @ y.mT).square().sum()
        e, m = x - y, x + y
        cross = e.mT @ m
        return ((e.mT @ e) * (m.mT @ m) + cross * cross.mT).sum() / 2
