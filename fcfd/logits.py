"""Losses between logits ``[..., classes]``: the last axis is the class axis.

Every loss here that is defined per example returns ``[...]``, one value for each example (or token); the
caller reduces. Softmaxes stay in log space, and half-precision logits are read in float32.
"""

from torch import Tensor
from torch.nn import functional as F

from ._check import class_indices, rank, same_shape
from ._check import shape as _shape
from ._precision import upcast

_CLASSES = "Give both networks the same classes, or select the shared ones before the loss."


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
    rank("cross_entropy", "..., classes", prediction=prediction)
    log_probability = F.log_softmax(upcast(prediction), dim=-1)
    if labels.is_floating_point() and labels.shape == prediction.shape:
        return -(labels * log_probability).sum(-1)
    class_indices("cross_entropy", labels, prediction)
    return -log_probability.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)


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


def kl(prediction: Tensor, target: Tensor, *, temperature: float | Tensor = 4.0) -> Tensor:
    """Kullback–Leibler divergence of softened logits: knowledge distillation.

    ```
    loss[b] = T² · Σ_c p_t (log p_t − log p_s),    p = softmax(logits / T)
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits of the same shape.
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
    rank("kl", "..., classes", prediction=prediction, target=target)
    same_shape("kl", _CLASSES, prediction=prediction, target=target)
    scale = _per_example("kl", "temperature", temperature, prediction)
    log_student = F.log_softmax(upcast(prediction) / scale, dim=-1)
    log_teacher = F.log_softmax(upcast(target) / scale, dim=-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return divergence * temperature**2
