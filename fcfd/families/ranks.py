"""Losses that part the classes by the teacher's ranking of them, and compare mass and shape part by part.

Logits are ``[..., classes]``, and one value for each example or token comes out, as in
`fcfd.families.logits`. Which classes are in a part is read from the teacher and gets no gradient. Among equal
logits the order decides. A part without a class, or with one, has no shape, and its divergence is 0.
"""

from math import inf

import torch
from torch import Tensor

from .._text import check_choice, check_integer, check_plain
from ._checks import check_finite, class_column, logit_pair, per_example
from ._parts import all_but, decoupled_divergence, split_divergence

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
    return decoupled_divergence(
        student,
        teacher,
        y,
        teacher.max(-1, keepdim=True).indices,
        teacher < teacher.gather(-1, y),
        label=(sharpness, alpha * label_temperature**2),
        among=(scale, beta * temperature**2),
    )


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
    student, teacher = _pair(name, prediction, target, k)
    first = _first(teacher, k, strategy == "best")
    scale = per_example(name, temperature, prediction=student)
    return split_divergence(student, teacher, (first, ~first), (w0, w1, w2), scale, temperature**2, reverse)


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
    student, teacher = _pair(name, prediction, target, k)
    very_first, first = teacher.max(-1, keepdim=True).indices, _first(teacher, k, True)
    parts = very_first, first.scatter(-1, very_first, False), ~first
    scale = per_example(name, temperature, prediction=student)
    return split_divergence(student, teacher, parts, (w0, 0.0, w1, w2), scale, temperature**2)


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
    some = 0 < k < prediction.shape[-1]
    counted = _first(teacher, k, True).scatter(-1, y, False) if some else all_but(y, teacher)
    label, among = ((scale, weight * temperature**2) for weight in (alpha, beta))
    return decoupled_divergence(student, teacher, y, y, counted, label=label, among=among)


# What they share


def _pair(function: str, prediction: Tensor, target: Tensor, k: int) -> list[Tensor]:
    """The logits of both networks, of more than k classes."""
    check_integer(function, "k", k, least=1)
    pair = logit_pair(function, prediction, target)
    if k >= prediction.shape[-1]:
        raise ValueError(
            f"{function}: k {k} must be below the number of classes, {prediction.shape[-1]}: a class must be "
            "left for the rest."
        )
    return pair


def _first(teacher: Tensor, k: int, best: bool) -> Tensor:
    """Which are the k highest classes, or the lowest that are not excluded.

    Among equal ones the first: what `topk` would take of them differs by device.
    """
    values = teacher if best else -torch.where(teacher == -inf, inf, teacher)
    last = values.topk(k).values[..., -1:]
    above, equal = values > last, values == last
    missing = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= missing))
