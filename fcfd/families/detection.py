"""Losses of detection heads: between logits of anchors or regions, between their boxes, and with labels."""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_number
from .._tree import shape
from ._checks import alike, check_one_device, class_column, floats
from ._numerics import excluded_or, lifted, poisoned


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


def generalized_iou(prediction: Tensor, target: Tensor) -> Tensor:
    """How far boxes are from lying on each other, also where they do not meet (GIoU).

    ```
    loss = 1 − |A ∩ B| / |A ∪ B| + (|C| − |A ∪ B|) / |C|
    C the smallest box around A and B; 1e-7 is added to both divisors
    ```

    Args:
        prediction: Boxes `[..., 4]` as corners: left, top, right, bottom, in pixels.
        target: Boxes of the same shape.

    Returns:
        `[...]`, from 0 for equal boxes to 2. The caller weighs and divides.

    Raises:
        ValueError: The shapes differ, or their last axis is not 4.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
        >>> generalized_iou(boxes, boxes[:1].expand(2, 4))
        tensor([0.0000, 1.3333])

    Reference:
        Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019, arXiv 1902.09630. Checked against
        torchvision `generalized_box_iou_loss`.
    """
    hint = "Give as many boxes."
    ours, theirs = alike("generalized_iou", "..., 4", hint, prediction=prediction, target=target)
    if ours.shape[-1] != 4:
        raise ValueError(
            f"generalized_iou: prediction {shape(prediction)} must be boxes [..., 4] as corners."
        )
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (ours, theirs)]
    low, high = torch.maximum(ours, theirs), torch.minimum(ours, theirs)
    shared = (high[..., 2:] - low[..., :2]).clamp(min=0).prod(-1)
    union = areas[0] + areas[1] - shared
    around = (low[..., 2:] - high[..., :2]).prod(-1)
    return 1 - shared / (union + 1e-7) + (around - union) / (around + 1e-7)


def box_deltas(prediction: Tensor, target: Tensor, labels: Tensor, *, beta: float = 1 / 9) -> Tensor:
    """How far a box head's deltas are from those of the labels, in the class of each region (Fast R-CNN).

    ```
    loss[n] = [labels_n > 0] · Σ_4 smooth_l1(prediction[n, class labels_n] − target[n]; β)
    ```

    Its mean over all regions, those of the background included, is the published loss.

    Args:
        prediction: Deltas `[regions, 4 · classes]`, four of each class.
        target: The deltas of the matched boxes `[regions, 4]`.
        labels: The class of each region `[regions]`, 0 for the background.
        beta: Where the loss turns from square to linear; published 1/9.

    Returns:
        `[regions]`, 0 for the background.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> deltas = torch.tensor([[9.0, 9.0, 9.0, 9.0, 1.0, 0.0, 0.0, 0.0]]).expand(2, 8)
        >>> box_deltas(deltas, torch.zeros(2, 4), torch.tensor([1, 0]))
        tensor([0.9444, 0.0000])

    Reference:
        Girshick: Fast R-CNN, ICCV 2015, arXiv 1504.08083, with the β of detectron2. Checked against
        torchvision `fastrcnn_loss`, of which the mean is the box part.
    """
    check_number("box_deltas", "beta", beta, above=0)
    (deltas,) = floats("box_deltas", "regions, 4·classes", prediction=prediction)
    (wanted,) = floats("box_deltas", "regions, 4", target=target)
    if deltas.shape[1] % 4 or wanted.shape != (len(deltas), 4):
        raise ValueError(
            f"box_deltas: prediction {shape(prediction)} must be [regions, 4 · classes], and target "
            f"{shape(target)} [regions, 4] of the same regions."
        )
    check_one_device("box_deltas", prediction=prediction, target=target)
    deltas, wanted = lifted(deltas, wanted)
    of_class = deltas.unflatten(1, (-1, 4))
    column = class_column("box_deltas", labels, prediction=prediction)
    own = of_class.gather(1, column.unsqueeze(-1).expand(-1, 1, 4)).squeeze(1)
    errors = F.smooth_l1_loss(own, wanted, beta=beta, reduction="none").sum(-1)
    return poisoned(torch.where(labels > 0, errors, 0.0), prediction, target)
