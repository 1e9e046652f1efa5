"""Detectors of two stages: the pyramid, the heads on given regions, and the regions themselves."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..splitting import Network
from ..stages import Buffers, Params, Stage, stage
from ._parts import Images, Pyramid, check_two_stage, first, has_masks, listed, with_batch
from .batch import Found, Prepared


def two_stage(detector: nn.Module) -> Network:
    """A Faster R-CNN or Mask R-CNN as two stages: the pyramid, and the heads on given regions.

    | path | value |
    |---|---|
    | `"s"` | the pyramid: maps by the names of its levels |
    | `"ss"`: `classes` | `[regions, classes]`, of all images in a row |
    | `boxes` | `[regions, 4 · classes]` |
    | `masks`, of a mask head | `[positives, classes, height, width]` |

    Args:
        detector: The detector. Its parts are not touched; their modes are read at every call.

    Raises:
        TypeError: It is no detector of two stages.
        ValueError: It has a keypoint head.
    """
    heads: Any = check_two_stage("two_stage", detector).roi_heads
    batch, pools = ["sizes", "regions"], [heads.box_roi_pool]
    if has_masks(detector):
        batch.append("positives")
        pools.append(heads.mask_roi_pool)
    levels = frozenset(name for pool in pools for name in pool.featmap_names)
    return Network(
        stages=(
            partial(first, stage(Pyramid(detector))),
            partial(with_batch, stage(_Heads(detector), protect=False), batch),
        ),
        params=dict(detector.named_parameters()),
        buffers=dict(detector.named_buffers()),
        names=("backbone", "roi_heads"),
        shapes=(None, None),
        cuts=(),
        proof="",
        layouts=("b c h w", None),
        reads=(None, levels),
    )


def proposals(detector: nn.Module) -> Stage:
    """The regions of a student with its labels, as a stage of the input `(prepared, pyramid)`.

    The detector's own region proposals, its own matching to targets and its own sampling, which draw from
    torch's generator as it does. Regions get no gradient, as in the detector.

    Args:
        detector: A Faster R-CNN or Mask R-CNN in train mode.

    Returns:
        A stage `(params, buffers, (prepared, pyramid)) -> (found, new_buffers)`. `found.losses` are the
        losses of the region proposals; those of the heads are terms, of `found.labels`.

    Raises:
        TypeError: It is no detector of two stages.
        ValueError: It has a keypoint head. The stage: the detector is in eval mode, or has no targets.
    """
    check_two_stage("proposals", detector)
    return partial(_of_proposals, stage(_Proposals(detector), protect=False))


def _of_proposals(run: Stage, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    """Statistics of the heads belong to the path through them, and not to the proposals."""
    found, new = run(params, buffers, x)
    return found, {name: tensor for name, tensor in new.items() if name.startswith("rpn.")}


class _Heads(nn.Module):
    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.roi_heads = detector.roi_heads
        self.has_masks = has_masks(detector)

    def forward(self, x: Any) -> dict[str, Tensor]:
        heads: Any = self.roi_heads
        pyramid, sizes, regions = x[0], listed(x[1]), x[2]
        if not regions:
            raise ValueError("the batch holds no regions yet; fill it: fcfd.detection.with_regions")
        classes, boxes = heads.box_predictor(heads.box_head(heads.box_roi_pool(pyramid, regions, sizes)))
        out = {"classes": classes, "boxes": boxes}
        if self.has_masks:
            out["masks"] = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(pyramid, x[3], sizes)))
        return out


class _Proposals(nn.Module):
    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.rpn = detector.rpn
        self.roi_heads = detector.roi_heads
        self.has_masks = has_masks(detector)

    def forward(self, x: tuple[Prepared, dict[str, Tensor]]) -> Found:
        (inputs, targets), pyramid = x
        rpn: Any = self.rpn
        if not rpn.training:
            raise ValueError("the detector is in eval mode, and has no losses there; call train().")
        if targets is None:
            raise ValueError("there are no targets; give prepare(detector, images, targets).")
        heads: Any = self.roi_heads
        boxes, losses = rpn(Images(inputs["images"], listed(inputs["sizes"])), pyramid, targets)
        regions, matched, classes, deltas = heads.select_training_samples(boxes, targets)
        labels = {"classes": torch.cat(classes), "boxes": torch.cat(deltas)}
        if not self.has_masks:
            return Found(losses, labels, regions)
        positive = [own > 0 for own in classes]
        positives = [own[kept] for own, kept in zip(regions, positive, strict=True)]
        size = self._mask_size(pyramid)
        masks, own_classes = [], []
        for target, boxes_of_one, at, kept in zip(targets, positives, matched, positive, strict=True):
            masks.append(self._cropped(target["masks"], boxes_of_one, at[kept], size))
            own_classes.append(target["labels"][at[kept]])
        labels |= {"masks": torch.cat(masks), "mask_classes": torch.cat(own_classes)}
        return Found(losses, labels, regions, positives)

    def _mask_size(self, pyramid: dict[str, Tensor]) -> int:
        """The side of the masks that the head draws."""
        heads: Any = self.roi_heads
        level = next(iter(pyramid.values()))
        pooled = level.detach().new_zeros(1, level.shape[1], *heads.mask_roi_pool.output_size)
        with torch.no_grad():
            size: int = heads.mask_predictor(heads.mask_head(pooled)).shape[-1]
        return size

    def _cropped(self, masks: Tensor, boxes: Tensor, at: Tensor, size: int) -> Tensor:
        """The masks of matched objects, cut out by their regions, as the detector's own loss reads them."""
        heads: Any = self.roi_heads
        kind = type(heads.mask_roi_pool)
        pool = kind(["0"], size, -1)
        order = at.argsort(stable=True)
        rows = [boxes[order][at[order] == one] for one in range(len(masks))]
        if not len(boxes):
            return boxes.new_zeros(0, size, size)
        drawn: Tensor = pool({"0": masks[:, None].to(boxes)}, rows, [tuple(masks.shape[-2:])] * len(masks))
        return drawn[order.argsort(), 0]
