"""Losses between features of one shape, compared value by value; ``[batch, ...]`` unless stated."""

from collections.abc import Callable
from math import log, nan, pi
from typing import Any

import torch
from einops import reduce
from torch import Tensor
from torch.nn import functional as F

from .._text import check_number
from .._tree import shape
from ..layouts import average
from ._checks import alike, check_one_device, check_positions, check_same_shape, check_tensor, floats
from ._numerics import lifted, mean_by_example, safe_normalize, sum_by_example

_BRIDGE = "Bridge one feature into the other's space first."


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of two features: numerical similarity, the hint loss.

    ```
    loss[b] = mean over all other axes of (prediction − target)²
    ```

    Args:
        prediction: Feature `[batch, ...]`, already in the target's space.
        target: Feature of the same shape.

    Returns:
        `[batch]`.

    Raises:
        ValueError: The shapes differ (torch's own `mse_loss` would broadcast), or there is no example.

    Example:
        >>> squared_error(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
        tensor([1., 1.])

    Reference:
        Romero et al.: FitNets, ICLR 2015, arXiv 1412.6550. Checked against HobbitLong/RepDistiller
        `HintLoss`. No deviation.
    """
    student, teacher = _pair("squared_error", prediction, target)
    return mean_by_example(F.mse_loss(student, teacher, reduction="none"))


def relative_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error as a share of the target's energy, so that depths of any scale and size compare.

    ```
    loss[b] = Σ (prediction − target)² / max(Σ target², 1e-12)
    ```

    Args:
        prediction: Feature or logits `[batch, ...]`, already in the target's space.
        target: The same shape.

    Returns:
        `[batch]`: 0 at equality, 1 for a prediction of zeros.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> relative_squared_error(torch.full((1, 4), 3.0), torch.full((1, 4), 2.0))
        tensor([0.2500])

    Reference:
        The distance of functional latent alignment (2025); no published code was compared.
    """
    student, teacher = _pair("relative_squared_error", prediction, target)
    error = sum_by_example(F.mse_loss(student, teacher, reduction="none"))
    return error / sum_by_example(teacher.square()).clamp(min=1e-12)


def pooled_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of what a classifier reads of two features: rectified, averaged over space.

    ```
    loss[b] = mean_c (pool(prediction) − pool(target))²
    pool(f) = mean over space of max(f, 0)
    ```

    Args:
        prediction: Map `[batch, channels, height, width]` or tokens `[batch, tokens, width]`, already in the
            target's space. A map whose first two sizes alone are equal has its channels last.
        target: Feature of the same shape.

    Returns:
        `[batch]`.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> pooled_squared_error(torch.ones(2, 3, 4, 4), -torch.ones(2, 3, 4, 4))
        tensor([1., 1.])

    Reference:
        Liu et al.: Function-Consistent Feature Distillation, ICLR 2023, arXiv 2304.11832. Checked against
        the authors' code. No deviation.
    """
    student, teacher = _channel_pair("pooled_squared_error", prediction, target)
    return (average(F.relu(student)) - average(F.relu(teacher))).square().mean(1)


def attended_squared_error(prediction: Tensor, target: Tensor, attention: Tensor) -> Tensor:
    """Mean squared error of two features after pooling both with one attention, usually the teacher's.

    ```
    loss[b] = mean_c (Σ_n attention[b, n] · (prediction − target)[b, c, n])²
    ```

    Args:
        prediction: Feature `[batch, channels, ...]`, already in the target's space.
        target: Feature of the same shape.
        attention: A weight for each position, `[batch, ...]`: of space, of tokens, or of a bag's instances.
            It is used as given; give it the sum 1 for a weighted mean.

    Returns:
        `[batch]`.

    Raises:
        ValueError: The shapes differ, or the attention has other positions than the features.

    Example:
        >>> teacher, attention = torch.tensor([[[1.0, 5.0]]]), torch.tensor([[1.0, 0.0]])
        >>> attended_squared_error(torch.zeros(1, 1, 2), teacher, attention)
        tensor([1.])

    Reference:
        The plain form of matching features that attention selected, as multiple-instance methods for slide
        images do; no published code was compared.
    """
    name = "attended_squared_error"
    student, teacher = _channel_pair(name, prediction, target)
    (weight,) = floats(name, "batch, ...", attention=attention)
    check_one_device(name, prediction=prediction, attention=attention)
    if attention.shape != prediction.shape[:1] + prediction.shape[2:]:
        raise ValueError(
            f"{name}: attention {shape(attention)} must have one weight for each position, "
            f"{list(prediction.shape[:1] + prediction.shape[2:])}, of the features {shape(prediction)}."
        )
    student, teacher, weight = lifted(student, teacher, weight)
    difference = (student - teacher) * weight.unsqueeze(1)
    return reduce(difference, "batch channels ... -> batch channels", "sum").square().mean(1)


def cosine_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine between two embeddings.

    ```
    loss[b] = 1 − ⟨prediction, target⟩ / (‖prediction‖ · ‖target‖)
    ```

    Args:
        prediction: Embeddings `[..., dimensions]`.
        target: Embeddings of the same shape.

    Returns:
        `[...]`, between 0 (one direction) and 2; 1 where an embedding is zero.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        Towards image and text embeddings at once, as VL2V-ADiP does, up to the constant 1:

        >>> student, image, text = torch.eye(3), torch.eye(3), torch.eye(3).flip(0)
        >>> 0.5 * cosine_distance(student, image) + 0.5 * cosine_distance(student, text)
        tensor([0.5000, 0.0000, 0.5000])

    Reference:
        Addepalli et al.: Leveraging Vision-Language Models for Improving Domain Generalization in Image
        Classification, CVPR 2024, arXiv 2310.08255. Checked against val-iisc/VL2V-ADiP `dfc_loss`, which
        takes the negative cosine, so that its minimum is −1.
    """
    name = "cosine_distance"
    student, teacher = alike(name, "..., dimensions", _BRIDGE, prediction=prediction, target=target)
    check_positions(name, prediction=prediction)
    lengths = [torch.linalg.vector_norm(x, dim=-1) for x in (student, teacher)]
    both: Tensor = lengths[0] * lengths[1]
    return 1 - (student * teacher).sum(-1) / (both + (both <= 1e-24))


def vkd(prediction: Tensor, target: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Huber error of a projected embedding with the teacher's, which is normalised.

    ```
    loss[b] = mean_d huber(prediction − (target − mean_d) / √(var_d + eps))
    huber(e) = e²/2 for |e| < 1, else |e| − 1/2;    population variance
    ```

    Args:
        prediction: Student embeddings `[..., dimensions]`, projected orthogonally: by
            `fcfd.bridges.Orthogonal`.
        target: Teacher embeddings of the same shape, such as the mean of a map over space.
        eps: Added to the variance; published 1e-5.

    Returns:
        `[...]`. Not zero at equality: only the target is normalised.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> vkd(torch.tensor([[-1.0, 1.0]]), torch.tensor([[2.0, 6.0]])).round(decimals=4)
        tensor([0.])

    Reference:
        Miles, Elezi, Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections, CVPR 2024,
        arXiv 2403.06213. Checked against the training loop of roymiles/vkd. No deviation.
    """
    name = "vkd"
    check_number(name, "eps", eps, least=0)
    student, teacher = alike(name, "..., dimensions", _BRIDGE, prediction=prediction, target=target)
    check_positions(name, prediction=prediction)
    given: Any = eps
    if isinstance(given, Tensor):
        centred = teacher - teacher.mean(-1, keepdim=True)
        normalised = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    else:
        normalised = F.layer_norm(teacher, teacher.shape[-1:], eps=eps)
    return F.smooth_l1_loss(student, normalised, reduction="none").mean(-1)


def factor_transfer(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two factors, each of length one.

    ```
    loss[b] = mean over all other axes of |prediction / ‖prediction‖ − target / ‖target‖|
    ```

    Args:
        prediction: The translator's output `[batch, ...]` (a learned module on the student's feature).
        target: The paraphraser's output of the same shape (on the teacher's feature).

    Returns:
        `[batch]`.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> factor_transfer(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        tensor([1.])

    Reference:
        Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS
        2018, arXiv 1802.04977. Checked against open-mmlab/mmrazor `FTLoss`. HobbitLong/RepDistiller's
        `FactorTransfer` first reduces the factors to attention maps, which is another function.
    """
    pair = _pair("factor_transfer", prediction, target)
    student, teacher = (safe_normalize(factor.reshape(len(factor), -1)) for factor in pair)
    return mean_by_example(F.l1_loss(student, teacher, reduction="none"))


def activation_boundary(prediction: Tensor, target: Tensor, *, margin: float = 1.0) -> Tensor:
    """Squared hinge that puts every neuron on the side of zero where the teacher's neuron is.

    ```
    loss[b] = Σ max(margin − y · prediction, 0)²,    y = 1 where target > 0, else −1
    ```

    Args:
        prediction: Feature `[batch, ...]` before its activation, already in the target's space.
        target: Feature of the same shape before its activation; only its signs are read.
        margin: How far beyond zero a neuron must be; published 1.

    Returns:
        `[batch]`, a sum over all other axes. Not zero at equality where a neuron is closer to zero than the
        margin. The target gets no gradient.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> activation_boundary(torch.tensor([[0.5, -3.0]]), torch.tensor([[2.0, -1.0]]))
        tensor([0.2500])

    Reference:
        Heo et al.: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
        AAAI 2019, arXiv 1811.03233. Checked against HobbitLong/RepDistiller `ABLoss`, whose weights
        (3/1000 and a power of two for each stage) are left to the caller.
    """
    name = "activation_boundary"
    check_number(name, "margin", margin)
    student, teacher = _pair(name, prediction, target)
    side = 2 * (teacher > 0).to(student.dtype) - 1
    side = torch.where(teacher.isnan(), nan, side)
    return sum_by_example(F.relu(margin - side * student).square())


def ofd(prediction: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Partial squared error of pre-activation features: where both are below zero, nothing is asked.

    ```
    loss[b] = Σ (prediction − m)² · [prediction > m or m > 0],    m = max(target, margin)
    ```

    Args:
        prediction: Feature `[batch, channels, ...]` before its activation, already in the target's space.
        target: Feature of the same shape before its activation.
        margin: A negative number for each channel, `[channels]`: `bn_margin` of the batch norm before.

    Returns:
        `[batch]`, a sum over all other axes.

    Raises:
        ValueError: The shapes differ, or there is not one margin for each channel.

    Example:
        >>> student, teacher = torch.tensor([[-2.0, 2.0]]), torch.tensor([[-1.0, 1.0]])
        >>> ofd(student, teacher, torch.tensor([-0.5, -0.5]))
        tensor([1.])

    Reference:
        Heo et al.: A Comprehensive Overhaul of Feature Distillation, ICCV 2019, arXiv 1904.01866. Checked
        against clovaai/overhaul-distillation `distillation_loss`, which sums over the batch and divides by
        1000 (CIFAR) or 10000 (ImageNet); those weights are the caller's.
    """
    name = "ofd"
    student, teacher = _channel_pair(name, prediction, target)
    student, teacher, lowest = lifted(student, teacher, _per_channel(name, prediction, margin=margin))
    goal = torch.maximum(teacher, lowest)
    asked = (student > goal) | (goal > 0)
    return sum_by_example(F.mse_loss(student, goal, reduction="none") * asked)


def bn_margin(gamma: Tensor, beta: Tensor) -> Tensor:
    """The expected negative response of a channel after batch norm: the margin of `ofd`.

    ```
    margin[c] = E[x | x < 0],  x ~ N(β, γ²)    = β − |γ| · φ(z) / Φ(z),  z = −β / |γ|
    margin[c] = −3 |γ|   where Φ(z) ≤ 0.001, as almost nothing is negative there
    ```

    Args:
        gamma: The weight of a batch norm, `[channels]` (or any shape).
        beta: Its bias, of the same shape.

    Returns:
        `[channels]`, negative.

    Raises:
        ValueError: The shapes differ, or there is no channel.

    Example:
        >>> bn_margin(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 9.0]))
        tensor([-0.7979, -3.0000])

    Reference:
        Heo et al.: A Comprehensive Overhaul of Feature Distillation, ICCV 2019, arXiv 1904.01866. Checked
        against clovaai/overhaul-distillation `get_margin_from_BN`; the ratio is taken in log space here.
    """
    hint = "Give the weight and the bias of one batch norm."
    weight, mean = alike("bn_margin", "...", hint, gamma=gamma, beta=beta)
    deviation = weight.abs()
    z = -mean / deviation.clamp_min(1e-12)
    log_below = torch.special.log_ndtr(z)
    expected = mean - deviation * torch.exp(-z.square() / 2 - log(2 * pi) / 2 - log_below)
    return torch.where(log_below <= log(0.001), -3 * deviation, expected)


def vid(prediction: Tensor, target: Tensor, log_scale: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Negative log-likelihood of a feature under a Gaussian with a learned variance for each channel.

    ```
    loss[b] = mean over all other axes of ½ ((prediction − target)² / v_c + log v_c)
    v_c = log(1 + exp(log_scale_c)) + eps
    ```

    Args:
        prediction: The regressor's mean `[batch, channels, ...]` (published: three 1×1 convolutions).
        target: Feature of the same shape. Where the maps differ in size, pool the larger one *before* the
            regressor.
        log_scale: Learned, `[channels]`; published start log(exp(5 − eps) − 1), a variance of 5. Give it to
            the optimizer: one public implementation forgets to.
        eps: The smallest variance; published 1e-5.

    Returns:
        `[batch]`, in nats up to a constant; negative where the variance is small, and not zero at equality.

    Raises:
        ValueError: The shapes differ, or there is not one scale for each channel.

    Example:
        >>> vid(torch.ones(1, 2, 4), torch.zeros(1, 2, 4), torch.full([2], 0.541325))
        tensor([0.5000])

    Reference:
        Ahn et al.: Variational Information Distillation for Knowledge Transfer, CVPR 2019, arXiv
        1904.05835. Checked against HobbitLong/RepDistiller `VIDLoss`, whose log(1 + exp(x)) overflows.
    """
    name = "vid"
    check_number(name, "eps", eps, least=0)
    student, teacher = _channel_pair(name, prediction, target)
    student, teacher, scale = lifted(student, teacher, _per_channel(name, prediction, log_scale=log_scale))
    variance = torch.logaddexp(scale, torch.zeros_like(scale)) + eps
    error = F.mse_loss(student, teacher, reduction="none")
    return 0.5 * mean_by_example(error / variance + variance.log())


def mgd(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    generator: Callable[[Tensor], Tensor],
    *,
    alpha: float = 2e-5,
) -> Tensor:
    """Squared error of the teacher's feature as generated from a masked one of the student.

    ```
    loss[b] = alpha · Σ (generator(mask · prediction) − target)²
    ```

    Args:
        prediction: Feature `[batch, channels, ...]`, already in the target's space (published: a 1×1
            convolution where the channels differ).
        target: Feature of the same shape.
        mask: 1 where the feature is kept and 0 elsewhere, each axis of the feature's size or 1. Published:
            `torch.rand(batch, channels, 1, 1) >= 0.15` for classification, one mask for all channels,
            `torch.rand(batch, 1, height, width) < 0.35`, for detection and segmentation.
        generator: Learned; published two 3×3 convolutions with a ReLU between them.
        alpha: Weight; published 7e-5 for classification, 2e-5 for detection and segmentation.

    Returns:
        `[batch]`, a sum over all other axes. The mask gets no gradient.

    Raises:
        ValueError: The shapes of prediction, target or the generated feature differ, or the mask's axes fit
            neither the feature nor 1.

    Example:
        >>> feature, keep = torch.ones(2, 3, 4, 4), torch.rand(2, 3, 1, 1) >= 0.15
        >>> mgd(feature, feature, keep, lambda masked: torch.ones_like(masked))
        tensor([0., 0.])

    Reference:
        Yang et al.: Masked Generative Distillation, ECCV 2022, arXiv 2205.01529. Checked against
        yzd-v/MGD, both its classification and its detection code, with their masks as inputs.
    """
    name = "mgd"
    check_number(name, "alpha", alpha)
    _, teacher = _channel_pair(name, prediction, target)
    check_tensor(name, "mask", mask)
    if mask.is_complex():
        raise TypeError(f"{name}: mask {shape(mask)} of {mask.dtype} must be bool, or 0 and 1.")
    if not callable(generator):
        raise TypeError(f"{name}: generator is of type {type(generator).__name__} and must be a function.")
    check_one_device(name, prediction=prediction, mask=mask)
    sizes = list(zip(mask.shape, prediction.shape, strict=False))
    if mask.ndim != prediction.ndim or any(size not in (1, full) for size, full in sizes):
        raise ValueError(
            f"{name}: mask {shape(mask)} must have 1 or the feature's size in each axis of the prediction "
            f"{shape(prediction)}."
        )
    made = generator(prediction * mask.detach().to(prediction.dtype))
    check_tensor(name, "generated", made)
    check_same_shape(name, "The generator must keep the shape.", generated=made, target=target)
    made, teacher = lifted(made, teacher)
    return alpha * sum_by_example(F.mse_loss(made, teacher, reduction="none"))


def srd(prediction: Tensor, target: Tensor, *, exponent: float = 4.0, eps: float = 1e-4) -> Tensor:
    """Log of the summed powers of the differences between two batch-normalised features.

    ```
    loss = 2 · log Σ_b Σ_d |n(prediction) − n(target)|^exponent
    n(f) = (f − mean_b f) / √(var_b f + eps)
    ```

    Args:
        prediction: Pooled feature `[batch, dimensions]` after the learned linear projector.
        target: Pooled feature of the same shape.
        exponent: Published 4.
        eps: Added to the variance (of the population); published 1e-4.

    Returns:
        A scalar: the statistics couple the batch. It falls with the logarithm of what is summed, may be
        negative, and ends (without a gradient) at the logarithm of the smallest float, where the published
        one is −∞ at equality.

    Raises:
        ValueError: The shapes differ, or the batch has fewer than two examples.

    Example:
        The published objective adds `kl(student_logits, teacher_logits, temperature=1.0).mean()`.

        >>> srd(torch.tensor([[1.0], [-1.0]]), torch.tensor([[-2.0], [2.0]]), eps=0.0)
        tensor(6.9315)

    Reference:
        Miles, Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation, AAAI 2024,
        arXiv 2303.11098. Checked against roymiles/Simple-Recipe-Distillation, ImageNet code. torchdistill's
        `SRDLoss` has the exponent 1 by default and leaves the batch norms to its caller.
    """
    name = "srd"
    check_number(name, "exponent", exponent, above=0)
    check_number(name, "eps", eps, least=0)
    pair = alike(name, "batch, dimensions", _BRIDGE, prediction=prediction, target=target)
    if len(prediction) < 2:
        raise ValueError(
            f"{name}: prediction {shape(prediction)} has one example; batch statistics need two."
        )

    def normalized(feature: Tensor) -> Tensor:
        variance, mean = torch.var_mean(feature, dim=0, correction=0)
        return (feature - mean) * (variance + eps).rsqrt()

    distance = (normalized(pair[0]) - normalized(pair[1])).abs().pow(exponent).sum()
    return 2 * distance.clamp_min(torch.finfo(distance.dtype).tiny).log()


# What the losses share


def _pair(function: str, prediction: Tensor, target: Tensor) -> list[Tensor]:
    """The features of both networks, checked."""
    return alike(function, "batch, ...", _BRIDGE, prediction=prediction, target=target)


def _channel_pair(function: str, prediction: Tensor, target: Tensor) -> list[Tensor]:
    """The features of both networks, checked to have channels."""
    return alike(function, "batch, channels, ...", _BRIDGE, prediction=prediction, target=target)


def _per_channel(function: str, feature: Tensor, /, **value: Tensor) -> Tensor:
    """One value for each channel, shaped to meet a feature `[batch, channels, ...]`."""
    (checked,) = floats(function, "...", **value)
    check_one_device(function, feature=feature, **value)
    if checked.shape != feature.shape[1:2]:
        raise ValueError(
            f"{function}: {next(iter(value))} {shape(checked)} must have one value for each channel, "
            f"{list(feature.shape[1:2])}, of the feature {shape(feature)}."
        )
    return checked.reshape(-1, *[1] * (feature.ndim - 2))
