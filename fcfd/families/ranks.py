"""Losses that part the classes by the teacher's ranking of them, and compare mass and shape part by part.

Logits are ``[..., classes]``, and one value for each example or token comes out, as in
`fcfd.families.logits`. Which classes are in a part is read from the teacher and gets no gradient. Among equal
logits the order decides. A part without a class, or with one, has no shape, and its divergence is 0.
"""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_choice, check_integer, check_plain
from ._checks import check_finite, class_column, logit_pair, per_example
from ._numerics import binary_log_probabilities, divergence, log_sum, reverse_divergence, scaled

STRATEGIES = ("best", "worst")


def rld(
    prediction: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 4.0,
    label_temperature: float | Tensor = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Refined logit distillation: the teacher's confidence goes to the label, its errors are left out.

    ```
    loss[b] = α T_y² · KL([p_t[m], 1 − p_t[m]] ‖ [p_s[y], 1 − p_s[y]])
            + β T² · KL(softmax_R(z_t / T) ‖ softmax_R(z_s / T))
    p = softmax(z / T_y),    m = argmax z_t,    R = {c : z_t[c] < z_t[y]}
    ```

    Args:
        prediction: Student logits z_s `[..., classes]`.
        target: Teacher logits z_t of the same shape.
        labels: Integer classes y `[...]`.
        temperature: T of the classes below the label, a number or one for each example `[...]`; published 4.
        label_temperature: T_y of the label's probability, the same; published 1.
        alpha: Weight of the label's part; published 1.
        beta: Weight of the classes that the teacher ranks below the label; published 8.

    Returns:
        `[...]`, in nats. Not zero at equality: the label is to be as likely as the teacher's first class.

    Raises:
        ValueError: The shapes differ, the labels are not one class for each example, or there is no example.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, -1.0]])
        >>> rld(logits, logits, torch.tensor([0]))
        tensor([0.])

    Reference:
        Sun et al.: Knowledge Distillation with Refined Logits, ICCV 2025, arXiv 2408.07703. Checked against
        `rld_loss` of zju-SWJ/RLD. Its standardisation is `standardize_logits`, before; its warm-up over 20
        epochs is a schedule outside.
    """
    name = "rld"
    check_finite(name, alpha=alpha, beta=beta)
    student, teacher = logit_pair(name, prediction, target)
    y = class_column(name, labels, prediction=prediction)
    scale = per_example(name, temperature, prediction=prediction)
    sharpness = per_example(name, label_temperature, "label_temperature", prediction=prediction)
    first = teacher.argmax(-1, keepdim=True)
    label_t = _odds(scaled(teacher, sharpness), first)
    label_s = _odds(scaled(student, sharpness), y)
    below = teacher < teacher.gather(-1, y)
    of_label = divergence(label_t, label_s) * label_temperature**2
    among = divergence(_among(scaled(teacher, scale), below), _among(scaled(student, scale), below))
    return alpha * of_label + beta * among * temperature**2


def gdkd(
    prediction: Tensor,
    target: Tensor,
    *,
    k: int = 5,
    strategy: str = "best",
    temperature: float | Tensor = 4.0,
    w0: float = 1.0,
    w1: float = 1.0,
    w2: float = 8.0,
    reverse: float = 0.0,
) -> Tensor:
    """Grouped decoupling: `kl` split into the classes that the teacher ranks first, and the rest.

    ```
    loss[b] = T² · (w0 · KL([Σ_A p_t, Σ_rest p_t] ‖ [Σ_A p_s, Σ_rest p_s])
                  + w1 · D(softmax_A) + w2 · D(softmax_rest))
    p = softmax(z / T),    D = (1 − reverse) · KL(t ‖ s) + reverse · KL(s ‖ t)
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape.
        k: How many classes are in the group A, at least 1 and fewer than there are; published 5.
        strategy: A are the teacher's k `"best"` classes, or its `"worst"`.
        temperature: T, a number or one for each example `[...]`; published 4.
        w0: Weight of the groups' masses; published 1.
        w1: Weight within A; published 1, or 2 for some pairs of networks.
        w2: Weight within the rest; published 8.
        reverse: The share of the reverse divergence within the groups, in [0, 1]; published 0 (1 is the
            code's "reverse", 0.5 its "both").

    Returns:
        `[...]`, in nats. For k = 1 it is `dkd` with the teacher's first class as the label.

    Raises:
        ValueError: The shapes differ, k leaves no class, or there is no example.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, -1.0]])
        >>> gdkd(logits, logits, k=2)
        tensor([0.])

    Reference:
        Zheng, Cheng: Rethinking Decoupled Knowledge Distillation: A Predictive Distribution Perspective,
        2025, arXiv 2512.04625. Checked against `gdkd_loss` of ZaberKo/GDKD, which gives NaN for k = the
        number of classes; here that is refused.
    """
    name = "gdkd"
    check_choice(name, "strategy", strategy, STRATEGIES)
    check_plain(name, "reverse", reverse, least=0, most=1)
    check_finite(name, w0=w0, w1=w1, w2=w2)
    student, teacher, ranks = _ranked(name, prediction, target, temperature, k, strategy == "best")
    first, rest = ranks < k, ranks >= k
    loss = w0 * _masses(student, teacher, (first, rest))
    loss = loss + w1 * _shapes(student, teacher, first, reverse)
    return (loss + w2 * _shapes(student, teacher, rest, reverse)) * temperature**2


def gdkd3(
    prediction: Tensor,
    target: Tensor,
    *,
    k: int = 5,
    temperature: float | Tensor = 4.0,
    w0: float = 1.0,
    w1: float = 1.0,
    w2: float = 8.0,
) -> Tensor:
    """Grouped decoupling in three: the teacher's first class, those that follow to rank k, and the rest.

    ```
    loss[b] = T² · (w0 · KL(masses_t ‖ masses_s)
                  + w1 · KL(softmax_{2..k}) + w2 · KL(softmax_rest))
    masses = Σ p over each of the three,    p = softmax(z / T)
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape.
        k: The last rank of the second group, at least 1 and fewer than there are classes; published 5.
        temperature: T, a number or one for each example `[...]`; published 4.
        w0: Weight of the groups' masses; published 1.
        w1: Weight within ranks 2 to k; published 1.
        w2: Weight within the rest; published 8.

    Returns:
        `[...]`, in nats. For k = 1 it is `gdkd`.

    Raises:
        ValueError: The shapes differ, k leaves no class, or there is no example.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, -1.0, -2.0]])
        >>> gdkd3(logits, logits, k=2)
        tensor([0.])

    Reference:
        As `gdkd`. Checked against `gdkd_loss` of its GDKD3. No deviation.
    """
    name = "gdkd3"
    check_finite(name, w0=w0, w1=w1, w2=w2)
    student, teacher, ranks = _ranked(name, prediction, target, temperature, k, True)
    first, second, rest = ranks < 1, (ranks >= 1) & (ranks < k), ranks >= k
    loss = w0 * _masses(student, teacher, (first, second, rest))
    loss = loss + w1 * _shapes(student, teacher, second, 0.0)
    return (loss + w2 * _shapes(student, teacher, rest, 0.0)) * temperature**2


def topk_nckd(
    prediction: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    k: int = 5,
    temperature: float | Tensor = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation of the teacher's first k classes: `dkd` without the long tail.

    ```
    loss[b] = T² · (α · KL([p_t[y], 1 − p_t[y]] ‖ [p_s[y], 1 − p_s[y]]) + β · KL(softmax_A))
    A = the teacher's k first classes without y,    p = softmax(z / T)
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape.
        labels: Integer classes y `[...]`.
        k: How many classes are counted, the label among them where it ranks so high. 0, and the number of
            classes, are all: that is `dkd`. Published by configuration, and growing by epoch in the paper.
        temperature: T, a number or one for each example `[...]`; published 4.
        alpha: Weight of the label's part; published 1.
        beta: Weight of the other classes' part; published 8.

    Returns:
        `[...]`, in nats. The form of DeepKD beside plain distillation weighs by the teacher's doubt, with w =
        1 − p_t[y]: ``topk_nckd(..., beta=0.0) + w * topk_nckd(..., alpha=0.0, beta=1.0)``.

    Raises:
        ValueError: The shapes differ, the labels are not one class for each example, or there is no example.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, -1.0]])
        >>> topk_nckd(logits, logits, torch.tensor([0]), k=2)
        tensor([0.])

    Reference:
        Huang et al.: DeepKD: A Deeply Decoupled and Denoised Knowledge Distillation Trainer, 2025, arXiv
        2505.15133. Checked against `deepkd_plugin` of haiduo/DeepKD. Deviations: where A is empty the second
        part is 0, where the code's mask of −1000 makes it one over all classes; beside plain distillation the
        code multiplies two means over the batch.
    """
    name = "topk_nckd"
    check_integer(name, "k", k, least=0)
    check_finite(name, alpha=alpha, beta=beta)
    student, teacher = logit_pair(name, prediction, target)
    y = class_column(name, labels, prediction=prediction)
    scale = per_example(name, temperature, prediction=prediction)
    others = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, y, False)
    if 0 < k < prediction.shape[-1]:
        others = others & (_ranks(teacher, True) < k)
    student, teacher = scaled(student, scale), scaled(teacher, scale)
    of_label = divergence(_odds(teacher, y), _odds(student, y))
    among = divergence(_among(teacher, others), _among(student, others))
    return (alpha * of_label + beta * among) * temperature**2


# What they share


def _ranked(
    function: str,
    prediction: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    k: int,
    best: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The softened logits of both networks, and the rank of every class in the teacher."""
    check_integer(function, "k", k, least=1)
    student, teacher = logit_pair(function, prediction, target)
    if k >= prediction.shape[-1]:
        raise ValueError(
            f"{function}: k {k} must be below the number of classes, {prediction.shape[-1]}: a class must be "
            "left for the rest."
        )
    scale = per_example(function, temperature, prediction=prediction)
    return scaled(student, scale), scaled(teacher, scale), _ranks(teacher, best)


def _ranks(teacher: Tensor, best: bool) -> Tensor:
    """The place of every class, from 0, excluded ones last. Stable, so the same on every device."""
    values = teacher if best else torch.where(teacher == -inf, inf, teacher)
    order = values.argsort(dim=-1, descending=best, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.zeros_like(order).scatter(-1, order, places)


def _odds(logits: Tensor, y: Tensor) -> Tensor:
    """Log-probabilities `[..., 2]` of one class, and of all others."""
    others = log_sum(logits.scatter(-1, y, -inf))
    return binary_log_probabilities((logits.gather(-1, y) - others).squeeze(-1))


def _among(logits: Tensor, counted: Tensor) -> Tensor:
    """Log-probabilities among the classes that count, or of none where none does."""
    kept = torch.where(counted, logits, -inf)
    nothing = (kept == -inf).all(-1, keepdim=True)
    return torch.where(nothing, -inf, F.log_softmax(torch.where(nothing, 0.0, kept), dim=-1))


def _masses(student: Tensor, teacher: Tensor, groups: tuple[Tensor, ...]) -> Tensor:
    """The divergence of what each group has in all."""
    sums = [torch.cat([_log_mass(z, group) for group in groups], -1) for z in (teacher, student)]
    return divergence(*(F.log_softmax(x, dim=-1) for x in sums))


def _log_mass(logits: Tensor, group: Tensor) -> Tensor:
    return log_sum(torch.where(group, logits, -inf))


def _shapes(student: Tensor, teacher: Tensor, group: Tensor, reverse: float) -> Tensor:
    """The divergence within a group, forward and in reverse."""
    log_p, log_q = _among(teacher, group), _among(student, group)
    if reverse == 0:
        return divergence(log_p, log_q)
    backward = reverse_divergence(log_q, log_p)
    return backward if reverse == 1 else (1 - reverse) * divergence(log_p, log_q) + reverse * backward
