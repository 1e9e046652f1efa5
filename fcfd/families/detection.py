"""Losses of detection heads, between classification logits of anchors ``[anchors, classes]``."""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_number
from ._checks import alike
from ._numerics import excluded_or


def kd_quality_focal(prediction: Tensor, target: Tensor, *, beta: float = 1.0) -> Tensor:
    """Quality focal loss with the teacher's score as the quality, class by class.

    ```
    loss[n, c] = |σ(prediction) − s|^β · BCE(σ(prediction), s),    s = σ(target)
    ```

    Args:
        prediction: Student logits `[..., classes]`, each read by a sigmoid σ: of a detection head, or of the
            teacher's head on the student's feature (CrossKD).
        target: Teacher logits of the same shape.
        beta: How much close scores are played down; published 1.

    Returns:
        `[..., classes]`, in nats: 0 at equality, with a kink there at β = 1. The caller weighs and divides
        as the detector does: ``(loss * weight.unsqueeze(-1)).sum() / positives``, or `loss.mean()`.

    Raises:
        ValueError: The shapes differ, or there is no anchor.

    Example:
        >>> kd_quality_focal(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 60.0]]))
        tensor([[0.0000, 0.3466]])

    Reference:
        Wang et al.: CrossKD, CVPR 2024, arXiv 2306.11369, after Li et al.: Generalized Focal Loss, NeurIPS
        2020, arXiv 2006.04388. Checked against jbwang1997/CrossKD `kd_quality_focal_loss`, which detaches
        the target itself and adds 2⁻²³ to the divisor that it is given.
    """
    name, hint = "kd_quality_focal", "Give both heads the same anchors and classes."
    check_number(name, "beta", beta, least=0)
    logits, teacher = alike(name, "..., classes", hint, prediction=prediction, target=target)
    score = teacher.sigmoid()
    finite = torch.where(logits == -inf, 0.0, logits)
    distance = (finite.sigmoid() - score).abs() ** beta
    errors = F.binary_cross_entropy_with_logits(finite, score, reduction="none")
    return excluded_or(distance * errors, logits, score)
