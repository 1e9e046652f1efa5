"""Transforms and policies that compose with any loss between logits, instead of multiplying the losses.

A *transform* changes both networks' logits first: ``kl(standardize_logits(s), standardize_logits(t))``.
A *temperature policy* gives one temperature for each example: ``dkd(s, t, y, temperature=...)``.
A *weight policy* gives one weight for each example: ``(weight.detach() * kl(s, t)).mean()``.
A class that is excluded by the logit −∞ counts nothing in any of them, and a transform leaves it excluded.
"""

import math
from math import inf, nan

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_number, check_plain
from .._tree import shape
from ._checks import check_finite, check_one_device, check_positions, class_logits, floats, logit_pair
from ._numerics import crossed, filled, lifted, poisoned, scaled

# Transforms


def standardize_logits(logits: Tensor) -> Tensor:
    """Each example's logits at mean 0 and deviation 1, so that only their relations are distilled.

    ```
    out[b, c] = (logits[b, c] − mean_c) / (1e−7 + std_c)
    std over classes, divided by C − 1
    ```

    Args:
        logits: Logits `[..., classes]` of either network, at least two classes.

    Returns:
        `[..., classes]`. Constant logits give zeros.

    Raises:
        ValueError: There is no example, or only one class.

    Example:
        >>> standardize_logits(torch.tensor([[10.0, 20.0, 30.0]]))
        tensor([[-1.,  0.,  1.]])

    Reference:
        Sun et al.: Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv 2403.01427. Checked
        against `normalize` of sunshangquan/logit-standardization-KD. No deviation.
    """
    name = "standardize_logits"
    (checked,) = floats(name, "..., classes", logits=logits)
    check_positions(name, logits=logits)
    if logits.shape[-1] < 2:
        raise ValueError(f"{name}: logits {shape(logits)} of one class have no deviation.")
    centred, number, excluded = _centred(checked, -1)
    # Of a norm, unlike of a root, torch has the gradient 0 at 0.
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    deviation = norm / (number - 1).clamp(min=1).sqrt()
    return filled(centred / (1e-7 + deviation), excluded, -inf)


def batch_standardize_logits(logits: Tensor) -> Tensor:
    """Each class's logits at mean 0 and deviation 1 over the batch: LumiNet's perception.

    ```
    out[b, c] = (logits[b, c] − mean_b) / √(var_b + 1e−5)
    var over the batch, divided by B
    ```

    The loss of the paper is ``α² / T² · kl(...)`` of both networks' results, published with α = 33, T = 4.

    Args:
        logits: Logits `[batch, classes]` of either network.

    Returns:
        `[batch, classes]`. The statistics couple the batch; one example alone gives zeros.

    Raises:
        ValueError: The logits are no matrix, or there is no example.

    Example:
        >>> batch_standardize_logits(torch.tensor([[100.0, 0.0], [300.0, 0.0]]))
        tensor([[-1.,  0.],
                [ 1.,  0.]])

    Reference:
        Hossain et al.: LumiNet, 2023, arXiv 2310.03669. Checked against `perception` of
        ismail31416/LumiNet. No deviation.
    """
    (checked,) = floats("batch_standardize_logits", "batch, classes", logits=logits)
    centred, number, excluded = _centred(checked, 0)
    variance = centred.square().sum(0) / number.clamp(min=1)
    return filled(centred / torch.sqrt(variance + 1e-5), excluded, -inf)


def grad_reverse(x: Tensor, *, scale: float = -1.0) -> Tensor:
    """The same value, with its gradient scaled: below zero, what learned to lower a loss learns to raise it.

    ```
    out = x,    d loss / dx = scale · d loss / d out
    ```

    Args:
        x: Any tensor of finite numbers.
        scale: Factor on the gradient, NEGATIVE to reverse it. CTKD's goes from 0 to −1 in ten epochs:
            ``schedules.cosine(epoch, steps=10, start=0.0, end=-1.0)``.

    Returns:
        A tensor like `x`, in float32 where that is half precision.

    Raises:
        ValueError: There is nothing in it.

    Example:
        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> torch.autograd.grad(grad_reverse(x, scale=-0.5).sum(), x)
        (tensor([-0.5000]),)

    Reference:
        Li et al.: Curriculum Temperature for Knowledge Distillation, AAAI 2023, arXiv 2211.16231. Checked
        against `GradientReversalFunction` of zhengli97/CTKD, whose comment promises a minus that its code
        leaves to the schedule, as here.
    """
    name = "grad_reverse"
    check_number(name, "scale", scale)
    (checked,) = floats(name, "...", x=x)
    return checked.detach() + scale * (checked - checked.detach())


# Temperatures


def learned_temperature(parameter: Tensor, *, start: float = 1.0, span: float = 20.0) -> Tensor:
    """A temperature that is trained: bounded, and against the student when its gradient is reversed.

    ```
    T = start + span · sigmoid(parameter)
    ```

    CTKD is ``kl(s, t, temperature=learned_temperature(grad_reverse(parameter, scale=scale)))``.

    Args:
        parameter: One number `[]` for all, or one for each example `[...]`, from any network.
        start: The lowest temperature; published 1.
        span: The highest is `start + span`; published 20 (the code calls it the end).

    Returns:
        Temperatures of the parameter's shape. The published parameter starts at 1, so T at 15.62.

    Raises:
        ValueError: There is nothing in the parameter.

    Example:
        >>> learned_temperature(torch.tensor(0.0))
        tensor(11.)

    Reference:
        Li et al.: Curriculum Temperature for Knowledge Distillation, AAAI 2023, arXiv 2211.16231. Checked
        against the training loop of zhengli97/CTKD. No deviation.
    """
    name = "learned_temperature"
    check_finite(name, start=start, span=span)
    (checked,) = floats(name, "...", parameter=parameter)
    return start + span * torch.sigmoid(checked)


def energy(logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Free energy of logits: low where the network is sure.

    ```
    E[b] = −T · log Σ_c exp(logits[b, c] / T)
    ```

    Args:
        logits: The teacher's logits `[..., classes]`.
        temperature: T; published 4.

    Returns:
        `[...]`, in units of the logits.

    Raises:
        ValueError: There is no example.

    Example:
        >>> energy(torch.tensor([[8.0, 8.0], [0.0, 0.0]])).round(decimals=2)
        tensor([-10.7700,  -2.7700])

    Reference:
        Kim et al.: Maximizing Discrimination Capability of Knowledge Distillation with Energy Function,
        2023, arXiv 2311.14334. Checked against `cal_energy` of Seonghak35/EnergyKD, which overflows in
        float32 at logits of 350.
    """
    name = "energy"
    check_number(name, "temperature", temperature, above=0)
    (checked,) = floats(name, "..., classes", logits=logits)
    check_positions(name, logits=logits)
    return -temperature * torch.logsumexp(scaled(checked, temperature), dim=-1)


def energy_thresholds(energies: Tensor, *, low_rate: float = 0.2, high_rate: float = 0.2) -> Tensor:
    """The two energies that cut off a data set's surest and least sure examples.

    ```
    out = [E_sorted[⌊n · low_rate⌋], E_sorted[n − 1 − ⌊n · high_rate⌋]],    E ascending
    ```

    Args:
        energies: `energy` of the teacher's logits for a whole training set `[n]`, computed once.
        low_rate: Share of examples below the first threshold; published 0.2.
        high_rate: Share of examples above the second; published 0.2.

    Returns:
        `[2]`: order statistics, not interpolated.

    Raises:
        ValueError: The energies are no vector, or there is none.

    Example:
        >>> energy_thresholds(torch.tensor([-5.0, -1.0, -4.0, -2.0, -3.0]))
        tensor([-4., -2.])

    Reference:
        As `energy`. The code leaves out the last, partial batch of a loader and sees augmented images; what
        is given here is the caller's choice.
    """
    name = "energy_thresholds"
    check_plain(name, "low_rate", low_rate, least=0, below=1)
    check_plain(name, "high_rate", high_rate, least=0, below=1)
    (checked,) = floats(name, "n", energies=energies)
    n = len(energies)
    ascending = checked.sort().values
    low, high = ascending[int(n * low_rate)], ascending[n - 1 - int(n * high_rate)]
    return poisoned(torch.stack([low, high]), checked)


def energy_temperature(
    energies: Tensor, thresholds: Tensor, *, below: float = 6.0, between: float = 4.0, above: float = 2.0
) -> Tensor:
    """A temperature for each example: what the teacher is sure of is softened more.

    ```
    T[b] = below if E[b] < thresholds[0],  above if E[b] > thresholds[1],  else between
    ```

    Args:
        energies: `energy` of the teacher's logits `[...]`.
        thresholds: Low and high energy `[2]`, from `energy_thresholds`.
        below: T of low energies; 6 in the paper's direction.
        between: T of the rest; published 4.
        above: T of high energies; 2 in the paper's direction.

    Returns:
        `[...]`: a constant of the optimisation, since it comes from comparisons.

    Raises:
        ValueError: The thresholds are not two, or there is no example.

    Example:
        >>> energy_temperature(torch.tensor([-5.0, -3.0, -1.0]), torch.tensor([-4.0, -2.0]))
        tensor([6., 4., 2.])

    Reference:
        As `energy`. The paper gives low energies the HIGHER temperature, and so do the defaults; the
        published code does the reverse, which is ``below=2.0, above=6.0``. Checked in both directions.
    """
    name = "energy_temperature"
    for key, value in {"below": below, "between": between, "above": above}.items():
        check_plain(name, key, value, above=0)
    (given,) = floats(name, "...", energies=energies)
    (limits,) = floats(name, "thresholds", thresholds=thresholds)
    check_one_device(name, energies=energies, thresholds=thresholds)
    if thresholds.shape != (2,):
        raise ValueError(
            f"{name}: thresholds {shape(thresholds)} must be [2], the low and the high one, for energies "
            f"{shape(energies)}."
        )
    given, limits = lifted(given, limits)
    temperature = torch.full_like(given, between)
    temperature = torch.where(given > limits[1], above, temperature)
    temperature = torch.where(given < limits[0], below, temperature)
    return torch.where(given.isnan() | limits.isnan().any(), nan, temperature)


# Weights


def entropy(logits: Tensor, *, temperature: float = 4.0, eps: float = 0.0) -> Tensor:
    """Entropy of softened logits: as a weight, what the teacher doubts counts more.

    ```
    H[b] = −Σ_c p · log(p + eps),    p = softmax(logits / T)
    ```

    Args:
        logits: The teacher's logits `[..., classes]`.
        temperature: T; published 4.
        eps: Added inside the logarithm. Log space needs none; some published code has 1e−10.

    Returns:
        `[...]`, in nats, from 0 to log C.

    Raises:
        ValueError: There is no example.

    Example:
        >>> entropy(torch.tensor([[0.0, 0.0], [40.0, 0.0]]))
        tensor([6.9315e-01, 4.9940e-04])

    Reference:
        Su, Tseng, Lee: Entropy-Reweighted Knowledge Distillation, 2023, arXiv 2311.13621v1. Checked against
        cpsu00/ER-KD `er_kd_loss`. Its `er_dkd_loss` weights nothing: a `[B]` loss times a `[B, 1]` entropy is
        a matrix, whose mean is the product of the two means; `(entropy(t) * dkd(s, t, y)).mean()` does.
    """
    name = "entropy"
    checked = class_logits(name, logits=logits)
    return _entropy(name, checked, temperature, eps)


def ea_weight(
    prediction: Tensor,
    target: Tensor,
    *,
    bound: float | None = None,
    temperature: float = 3.0,
    eps: float = 0.0,
) -> Tensor:
    """Entropy-adaptive weight: what the teacher doubts counts more, the more so if the student doubts it too.

    ```
    w[b] = ½ · H_t · (1 + H_s / bound),    H = entropy of softmax(logits / T)
    ```

    The method is ``(ea_weight(s, t).detach() * loss(s, t)).mean()`` of any loss by example.

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape.
        bound: The largest entropy; log C by default, as published on ImageNet, with C the classes that not
            both networks exclude. On CIFAR-100 the code has the number of classes, 100.
        temperature: T; published 3.
        eps: Added inside the logarithms of the entropies; the published code has 1e−10.

    Returns:
        `[...]`. It has a gradient, which the method does not use.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> ea_weight(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([0.6931])

    Reference:
        Su et al.: EA-KD: Entropy-based Adaptive Knowledge Distillation, ICCV 2025, arXiv 2311.13621. Checked
        against cpsu00/EA-KD `get_w`. Deviation: `eps` and `bound`, see above.
    """
    name = "ea_weight"
    pair = logit_pair(name, prediction, target)
    student, teacher = (_entropy(name, logits, temperature, eps) for logits in pair)
    if bound is not None:
        check_number(name, "bound", bound, above=0)
        return 0.5 * teacher * (1 + student / bound)
    excluded = (prediction == -inf) & (target == -inf)
    classes = (prediction.shape[-1] - excluded.sum(-1)).clamp(min=2)
    return 0.5 * teacher * (1 + student / classes.to(student.dtype).log())


def _entropy(function: str, logits: Tensor, temperature: float, eps: float) -> Tensor:
    check_number(function, "temperature", temperature, above=0)
    check_plain(function, "eps", eps, least=0)
    log_p = F.log_softmax(scaled(logits, temperature), dim=-1)
    inner = log_p if eps == 0 else torch.logaddexp(log_p, log_p.new_tensor(math.log(eps)))
    return crossed(log_p.exp(), inner)


def _centred(logits: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits less their mean along an axis, how many count, and which are excluded: those count nothing."""
    excluded = logits == -inf
    number = logits.shape[axis] - excluded.sum(axis, keepdim=True, dtype=logits.dtype)
    finite = logits.masked_fill(excluded, 0.0)
    mean = finite.sum(axis, keepdim=True) / number.clamp(min=1)
    return filled(finite - mean, excluded), number, excluded
