"""What a torchvision detector is recognised by, and the stages and checks that all detectors share."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .._text import check_mapping
from ..stages import Buffers, Params, Stage

Sizes = Sequence[Sequence[int]]
TWO = "a Faster R-CNN or a Mask R-CNN of torchvision"
ONE = "a RetinaNet, a FCOS or a SSD of torchvision"


class Images(NamedTuple):
    """What anchors are made for; the names are torchvision's."""

    tensors: Tensor
    image_sizes: Sizes


def listed(sizes: Sizes | Tensor) -> list[tuple[int, int]]:
    rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(height, width) for height, width in rows]


class Pyramid(nn.Module):
    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        backbone: Any = self.backbone
        maps = backbone(images)
        return {"0": maps} if isinstance(maps, Tensor) else dict(maps)


def changed(module: Any, **parts: Any) -> Any:
    """A module with other parts. It shares the rest with the original, which stays as it is."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {**module._modules, **parts}
    return twin


# Stages that read the batch


def first(run: Stage, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    check_mapping("detection", "the batch", x, "fcfd.detection.prepare(detector, images).inputs")
    return run(params, buffers, x["images"])


def with_batch(
    run: Stage, names: Sequence[str], params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    """Run a stage on a feature and entries of the batch, which a walk puts among the buffers."""
    for name in names:
        if name not in buffers:
            raise ValueError(
                f"the batch has no {name!r}; give each network its own: "
                "{'s': prepare(student, images).inputs, ...}"
            )
    return run(params, buffers, (x, *(buffers[name] for name in names)))


# Checks


def check_parts(function: str, detector: Any, parts: Sequence[str], wanted: str) -> Any:
    missing = [name for name in parts if not hasattr(detector, name)]
    if not isinstance(detector, nn.Module) or missing:
        raise TypeError(
            f"{function}: detector is of type {type(detector).__name__}, without {', '.join(missing)}; "
            f"give {wanted}."
        )
    return detector


def check_two_stage(function: str, detector: Any) -> Any:
    heads = check_parts(function, detector, ("transform", "backbone", "rpn", "roi_heads"), TWO).roi_heads
    parts = ("box_roi_pool", "box_head", "box_predictor", "select_training_samples")
    check_parts(function, heads, parts, f"the heads of {TWO}")
    if getattr(heads, "keypoint_predictor", None) is not None:
        raise ValueError(
            f"{function}: {type(detector).__name__} has a keypoint head, of which no recipe knows. Set its "
            "roi_heads.keypoint_predictor to None to leave it out, or split the detector at 'backbone' for "
            "hints."
        )
    return detector


def has_masks(detector: Any) -> bool:
    heads = getattr(detector, "roi_heads", None)
    return getattr(heads, "mask_predictor", None) is not None
