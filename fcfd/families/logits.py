"""Losses between logits ``[..., classes]``: the last axis is the class axis.

Every loss here that is defined per example returns ``[...]``, one value for each example or token; the caller
masks, weights and reduces. More than three axes are refused, because the last one may be the width of a map:
``dense(loss)`` of `fcfd.losses` reads the classes on axis 1.

Softmaxes stay in log space, and half-precision logits are read in float32. A class is excluded by the logit
−∞. What both networks exclude counts nothing, as if the class were not there. What only the student excludes
gives +∞ where the teacher finds it possible; the student's gradient is finite then, a teacher's may be NaN.
`reverse_kl` is +∞, with the gradient 0, where the teacher alone excludes a class.
"""

from math import inf, nan

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_integer, check_number, check_plain
from .._tree import shape
from ._checks import (
    are_probabilities,
    binary_logits,
    check_finite,
    check_layout,
    check_one_device,
    check_same_shape,
    check_tensor,
    class_column,
    class_labels,
    class_logits,
    floats,
    logit_pair,
    per_example,
)
from ._numerics import (
    binary_errors,
    binary_log_probabilities,
    covered_divergence,
    crossed,
    distributions,
    divergence,
    exact,
    label_errors,
    lifted,
    log_mixture,
    mean_of_classes,
    reverse_divergence,
    scaled,
    times,
)
from ._parts import all_but, decoupled_divergence
from ._softmaxes import FORWARD, REVERSE, jensen, softmax_divergence, softmax_errors

# From the labels


def cross_entropy(prediction: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy between logits and the labels.

    ```
    loss[b] = -log softmax(prediction)[b, labels[b]]                   integer labels
    loss[b] = -Σ_c labels[b, c] · log softmax(prediction)[b, c]        probabilities
    ```

    Args:
        prediction: Logits `[..., classes]`.
        labels: Integer classes `[...]`, or floating-point probabilities `[..., classes]` (mixed or smoothed
            labels). That a class lies in range is torch's own check: reading it here would synchronise with
            the device.

    Returns:
        `[...]`, in nats. NaN where probabilities do not sum to 1 (up to 1e-3, in half precision 1e-2): for
        classes that may hold together there is `binary_cross_entropy`.

    Raises:
        TypeError: The labels are bool, or one integer for each class (use `binary_cross_entropy`).
        ValueError: The labels fit neither form, or there is no example.

    Example:
        >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.6931])
    """
    name = "cross_entropy"
    logits = class_logits(name, prediction=prediction)
    if not are_probabilities(name, labels, prediction):
        return label_errors(logits, class_labels(name, labels, prediction=prediction))
    logits, soft = lifted(prediction, distributions(labels))
    return crossed(soft, F.log_softmax(logits, dim=-1))


def binary_cross_entropy(prediction: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every class by itself, where several may hold at once: multi-label classification.

    ```
    loss[b] = (1/C) Σ_c [softplus(z_bc) − labels[b, c] · z_bc]
    softplus(z) = log(1 + exp(z))
    ```

    Args:
        prediction: Logits z `[..., classes]`, each read by a sigmoid; one class is enough.
        labels: Whether each class holds, of the logits' shape: bool, 0 and 1, or probabilities. A number
            outside of [0, 1] makes the example NaN, since reading it would synchronise with the device.

    Returns:
        `[...]`, in nats, a mean over classes as in `kd_bce`.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> binary_cross_entropy(torch.tensor([[0.0, 60.0]]), torch.tensor([[1, 1]]))
        tensor([0.3466])

    Reference:
        The mean over classes of `torch.nn.functional.binary_cross_entropy_with_logits`. A class excluded by
        −∞ counts 0 where the label does not hold.
    """
    name = "binary_cross_entropy"
    (logits,) = binary_logits(name, prediction=prediction)
    check_tensor(name, "labels", labels)
    if labels.is_complex():
        raise TypeError(f"{name}: labels {shape(labels)} of {labels.dtype} must be bool or real numbers.")
    hint = "Labels say of each class whether it holds. For one class an example, use `cross_entropy`."
    check_same_shape(name, hint, prediction=prediction, labels=labels)
    check_one_device(name, prediction=prediction, labels=labels)
    wanted = labels if labels.is_floating_point() else labels.to(logits.dtype)
    logits, wanted = lifted(logits, wanted)
    outside = (wanted < 0) | (wanted > 1)
    return mean_of_classes(torch.where(outside, nan, binary_errors(logits, wanted)), logits)


def tf_nkd(prediction: Tensor, labels: Tensor) -> Tensor:
    """Teacher-free normalised distillation: the student's own confidence, smoothed, is its target.

    ```
    loss = -(1/B) Σ_b w_b · log p[b, y_b]
    w_b = stopgrad(p[b, y_b] + v_b − mean_b p[b, y_b])
    ```

    with v = 1. Of soft labels the two heaviest classes count, each as above with its mass as v; a class
    without mass gets w = 0.

    Args:
        prediction: Student logits `[batch, classes]`.
        labels: Integer classes `[batch]`, or probabilities `[batch, classes]` (mixup, CutMix); where these
            do not sum to 1 the value is NaN.

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
    name = "tf_nkd"
    logits = class_logits(name, prediction=prediction)
    check_layout(name, "batch, classes", prediction=prediction)
    if are_probabilities(name, labels, prediction):
        logits, soft = lifted(prediction, distributions(labels))
        # Stable, so that among classes without mass the same one is taken on every device.
        heaviest, order = soft.sort(dim=-1, descending=True, stable=True)
        mass, classes = heaviest[:, :2], order[:, :2]
    else:
        classes = class_column(name, labels, prediction=prediction)
        mass = torch.ones_like(classes, dtype=logits.dtype)
    log_confidence = F.log_softmax(logits, dim=-1).gather(-1, classes)
    confidence = log_confidence.exp()
    weight = (confidence + mass - confidence.mean(0)).detach()
    return -torch.where(mass <= 0, 0.0, weight * log_confidence).mean(0).sum()


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
    student, teacher, scale = _tempered("kl", prediction, target, temperature)
    return softmax_divergence(student, teacher, FORWARD, scale, temperature**2)


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
        against yzd-v/cls_KD `KDLoss`, whose weight alpha is left to the caller. At temperature 1 it is the
        forward KL of Ko et al.: DistiLLM, ICML 2024, arXiv 2402.03898 (mode-covering, token by token),
        checked against jongwooko/distillm `forward_kl`, which does not subtract the entropy either.
    """
    student, teacher, scale = _tempered("kd_ce", prediction, target, temperature)
    soft = F.softmax(scaled(teacher, scale), dim=-1)
    return softmax_errors(student, soft, scale, temperature**2)


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
    student, teacher = logit_pair("kd_bce", prediction, target)
    return mean_of_classes(binary_errors(student, F.softmax(teacher, dim=-1)), student)


def binary_kl(prediction: Tensor, target: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    """Kullback–Leibler divergence of every class by itself: distillation of multi-label classifiers.

    ```
    loss[b] = T² · Σ_c KL([p_t, 1 − p_t] ‖ [p_s, 1 − p_s]),    p = sigmoid(logits / T)
    ```

    Args:
        prediction: Student logits `[..., classes]`, each read by a sigmoid; one class is enough.
        target: Teacher logits of the same shape.
        temperature: T, a number or one for each example `[...]`; published 1.

    Returns:
        `[...]`, in nats, a sum over classes as published: divide by their number for the mean.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> binary_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 60.0]]))
        tensor([0.6931])

    Reference:
        Yang et al.: Multi-Label Knowledge Distillation, ICCV 2023, arXiv 2308.06453. Written from the formula
        of its multi-label logits distillation and compared with penghui-yang/L2D `MLD`, which bounds the
        probabilities to [1e−8, 1 − 1e−8] (log space here) and has no temperature.
    """
    name = "binary_kl"
    student, teacher = binary_logits(name, prediction=prediction, target=target)
    scale = per_example(name, temperature, prediction=prediction)
    log_student = binary_log_probabilities(scaled(student, scale))
    log_teacher = binary_log_probabilities(scaled(teacher, scale))
    return times(divergence(log_teacher, log_student).sum(-1), temperature**2)


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
    student, teacher = logit_pair("reverse_kl", prediction, target)
    return softmax_divergence(student, teacher, REVERSE)


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
    name = "jsd"
    check_plain(name, "beta", beta, least=0, most=1)
    student, teacher, scale = _tempered(name, prediction, target, temperature)
    return softmax_divergence(student, teacher, jensen(beta), scale)


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
    name = "skew_forward_kl_ce"
    check_plain(name, "skew", skew, least=0, below=1)
    log_student, log_teacher = _log_softmaxes(*logit_pair(name, prediction, target))
    if skew == 0:
        return crossed(log_teacher.exp(), log_student)
    return -(log_teacher.exp() * log_mixture(log_teacher, log_student, skew)).sum(-1)


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
    name = "skew_reverse_kl"
    check_plain(name, "skew", skew, least=0, below=1)
    log_student, log_teacher = _log_softmaxes(*logit_pair(name, prediction, target))
    if skew == 0:
        return reverse_divergence(log_student, log_teacher)
    return covered_divergence(log_student, log_mixture(log_student, log_teacher, skew))


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
    student, teacher = logit_pair("total_variation", prediction, target)
    return 0.5 * (F.softmax(teacher, dim=-1) - F.softmax(student, dim=-1)).abs().sum(-1)


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
        prediction: Student logits `[..., classes]`. Where no class remains beside the label, because all
            others are excluded, their part is 0.
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
    name = "dkd"
    check_finite(name, alpha=alpha, beta=beta)
    student, teacher, scale = _tempered(name, prediction, target, temperature)
    y = class_column(name, labels, prediction=prediction)
    label, among = ((scale, weight * temperature**2) for weight in (alpha, beta))
    return decoupled_divergence(student, teacher, y, y, all_but(y, teacher), label=label, among=among)


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
        prediction: Student logits `[..., classes]`. Where no class remains beside the label, because all
            others are excluded, the value is NaN.
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
    student, teacher, y = _labelled("nkd", prediction, target, labels, temperature, gamma=gamma)
    others_s, others_t = _without(student, y), _without(teacher, y)
    others = crossed(F.softmax(others_t, dim=-1), F.log_softmax(others_s, dim=-1), temperature**2)
    return _confident_errors(prediction, target, y) + gamma * others


def wsld(prediction: Tensor, target: Tensor, labels: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    """Weighted soft labels: distil less where the student already does better than the teacher.

    ```
    loss[b] = −w_b · T² · Σ_c p_t · log p_s,    p = softmax(logits / T)
    w_b = stopgrad(1 − exp(−CE_s / (CE_t + 1e−7)))
    CE = cross-entropy with the label at T = 1
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
    student, teacher, y = _labelled("wsld", prediction, target, labels, temperature)
    # Bounded, so that a label which both networks exclude is as hard for one as for the other.
    error_s, error_t = (label_errors(z, y.squeeze(-1)).clamp(max=1e30) for z in lifted(prediction, target))
    weight = -torch.expm1(-error_s / (error_t + 1e-7)).detach()
    soft = crossed(F.softmax(teacher, dim=-1), F.log_softmax(student, dim=-1), temperature**2)
    return weight * soft


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
    loss[b] = −Σ_c [(p_t[c] + 1[c = y])^γ − 1[c = y]] · log p_s[c]
    p = softmax(logits / T)
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
    student, teacher, y = _labelled("ofa", prediction, target, labels, temperature, gamma=gamma)
    probability = F.softmax(teacher, dim=-1)
    enhanced = (probability.gather(-1, y) + 1) ** gamma - 1
    weight = (probability**gamma).scatter(-1, y, enhanced)
    log_student = torch.where(weight == 0, 0.0, F.log_softmax(student, dim=-1))
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
    loss[b] = −stopgrad(p_t[y]) · log p_s[y] + γ · Σ_ij u_i K_ij v_j c_ij
    i, j over classes other than y,    q = softmax(logits / T without class y)
    c = max(cost, 0) + 1e−8,    K = exp(−c / regularization)
    u = 1 / (C − 1), and `iterations` times
        v = q_t / (Kᵀ u + 1e−8),    u = q_s / (K v + 1e−8)
    ```

    The 1e−8 bounds u and v, so the iteration needs no logarithms. A label's own mass is zero, so it drops
    out of sums over all classes: one K serves the batch, in B·C + C² memory instead of B·C².

    Args:
        prediction: Student logits `[..., classes]`. Where no class remains beside the label, because all
            others are excluded, the value is NaN.
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
    name = "wkd_logit"
    check_number(name, "regularization", regularization, above=0)
    check_integer(name, "iterations", iterations, least=1)
    student, teacher, y = _labelled(name, prediction, target, labels, temperature, gamma=gamma)
    (price,) = floats(name, "classes, classes", cost=cost)
    check_one_device(name, prediction=prediction, cost=cost)
    classes = prediction.shape[-1]
    if cost.shape != (classes, classes):
        raise ValueError(
            f"{name}: cost {shape(cost)} must be [{classes}, {classes}], a row and a column for each "
            f"class of the logits {shape(prediction)}."
        )
    student, teacher, price = lifted(student, teacher, price)
    student, teacher = (F.softmax(_without(logits, y), dim=-1) for logits in (student, teacher))
    price = F.relu(price) + 1e-8
    kernel = torch.exp(-price / regularization)
    start = _without(torch.where(_excluded(prediction, target), -inf, torch.zeros_like(student)), y)
    u, v = F.softmax(start, dim=-1), teacher
    with exact(prediction):
        for _ in range(iterations):
            v = teacher / (u @ kernel + 1e-8)
            u = student / (v @ kernel.mT + 1e-8)
        transport = (u * (v @ (kernel * price).mT)).sum(-1)
    return _confident_errors(prediction, target, y) + gamma * transport


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
    loss = T² · [β · (1 − mean_b r(p_s[b, :], p_t[b, :]))
               + γ · (1 − mean_c r(p_s[:, c], p_t[:, c]))]
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
    name = "dist"
    check_finite(name, beta=beta, gamma=gamma)
    student, teacher = _batch_probabilities(name, prediction, target, temperature)
    counted = (torch.maximum(prediction, target) > -inf).to(student.dtype)
    over_classes = _correlation(student, teacher, counted, -1)
    over_batch = _correlation(student, teacher, counted, 0)
    alike = times(over_classes, beta) + times(over_batch, gamma)
    return times(beta + gamma - alike, temperature**2)


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
        A scalar: the products couple the batch. Memory holds B² or C², about the smaller of them.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> student, teacher = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
        >>> mlkd_class_corr(student, teacher, temperature=1.0)
        tensor(1.)

    Reference:
        Jin, Wang, Lin: Multi-Level Logit Distillation, CVPR 2023. Checked against `cc_loss` of
        Jin-Ying/Multi-Level-Logit-Distillation, without the trainer's confidence masks: those multiply this
        scalar.
    """
    student, teacher = _batch_probabilities("mlkd_class_corr", prediction, target, temperature)
    counted = ~_excluded(prediction, target).all(0)
    return _gram_distance(student.mT, teacher.mT) / counted.sum()


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
        A scalar: the products couple the batch. Memory holds B² or C², about the smaller of them.

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


def _tempered(
    function: str, prediction: Tensor, target: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor, float | Tensor]:
    """The logits of both networks, and the temperature in a shape to divide them by, checked."""
    student, teacher = logit_pair(function, prediction, target)
    return student, teacher, per_example(function, temperature, prediction=prediction)


def _labelled(
    function: str,
    prediction: Tensor,
    target: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    **weights: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The softened logits of both networks, and the labels as a column. Weights are checked too."""
    check_finite(function, **weights)
    student, teacher, scale = _tempered(function, prediction, target, temperature)
    y = class_column(function, labels, prediction=prediction)
    return scaled(student, scale), scaled(teacher, scale), y


def _log_softmaxes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)


def _confident_errors(prediction: Tensor, target: Tensor, y: Tensor) -> Tensor:
    """The student's error at the label, times the teacher's probability of it, which is held constant."""
    student, teacher = (label_errors(z, y.squeeze(-1)) for z in lifted(prediction, target))
    confidence = (-teacher).exp().detach()
    return confidence * torch.where(confidence == 0, 0.0, student)


def _excluded(prediction: Tensor, target: Tensor) -> Tensor:
    """Where both networks exclude a class."""
    return (prediction == -inf) & (target == -inf)


def _without(logits: Tensor, y: Tensor) -> Tensor:
    """Logits in which each example's label is excluded."""
    return logits.scatter(-1, y, -inf)


def _batch_probabilities(
    function: str, prediction: Tensor, target: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Probabilities `[batch, classes]` of both networks, for a loss that couples the batch."""
    check_number(function, "temperature", temperature, above=0)
    student, teacher = logit_pair(function, prediction, target)
    check_layout(function, "batch, classes", prediction=prediction)
    return F.softmax(scaled(student, temperature), -1), F.softmax(scaled(teacher, temperature), -1)


def _correlation(a: Tensor, b: Tensor, counted: Tensor, axis: int) -> Tensor:
    """The mean over correlations along an axis, of what counts; where one side is constant it is 0."""
    number = counted.sum(axis, keepdim=True)
    size = number.clamp(min=1)
    a, b = ((x - x.sum(axis, keepdim=True) / size) * counted for x in (a, b))
    norms: Tensor = torch.linalg.vector_norm(a, dim=axis) * torch.linalg.vector_norm(b, dim=axis)
    correlations = (a * b).sum(axis) / (norms + 1e-8)
    return correlations.sum() / (number > 0).sum()


def _gram_distance(x: Tensor, y: Tensor) -> Tensor:
    """``‖x xᵀ − y yᵀ‖²``, by products of the shorter axis.

    With e = x − y and m = x + y, ``x xᵀ − y yᵀ = (e mᵀ + m eᵀ) / 2``, whose square needs eᵀe, mᵀm and eᵀm
    only. Nothing cancels where x nears y, unlike in the expansion into three traces.
    """
    with exact(x):
        if x.shape[0] <= 2 * x.shape[1]:
            return (x @ x.mT - y @ y.mT).square().sum()
        e, m = x - y, x + y
        cross = e.mT @ m
        return ((e.mT @ e) * (m.mT @ m) + cross * cross.mT).sum() / 2
