"""torchvision on a CPU-only PyTorch, where the installed wheel was built for CUDA.

Its operators do not load there, and `import torchvision` stops at `operator torchvision::nms does not exist`.
`prepare` puts CPU versions of the operators that detection models need in their place. With a matching
torchvision it does nothing.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_BLOCK = 512  # boxes whose overlaps are one matrix
_libraries: list[torch.library.Library] = []  # an operator lives as long as the library that defines it


def prepare() -> None:
    """Make `import torchvision` work; call it before the first import. A second call changes nothing.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if hasattr(torch.ops.torchvision, "nms") or _compiled_operators_load():
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    library.impl("nms", _nms, "CPU")
    library.impl("roi_align", _roi_align, "CompositeImplicitAutograd")
    _libraries.append(library)
    # Only after its import: torchvision registers shapes and gradients for operators that are not here.
    for user in ("torchvision.extension", "torchvision.ops.roi_align"):
        vars(import_module(user))["_has_ops"] = lambda: True


def _compiled_operators_load() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("prepare: torchvision is not installed.")
    try:
        for extension in Path(spec.origin).parent.glob("_C*"):
            torch.ops.load_library(extension)
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Keep the best box, drop what overlaps it by more than the threshold, go on with the rest."""
    rest = scores.argsort(descending=True, stable=True)
    kept = [rest[:0]]
    while len(rest):
        best, rest = rest[:_BLOCK], rest[_BLOCK:]
        best = best[_survivors(_overlap(boxes[best], boxes[best], threshold))]
        rest = rest[~_overlap(boxes[rest], boxes[best], threshold).any(1)]
        kept.append(best)
    return torch.cat(kept)


def _survivors(overlaps: Tensor) -> Tensor:
    """Which boxes stay, of their overlaps, best first. By numpy, whose calls on few numbers are fast."""
    rows, dropped = overlaps.numpy(), np.zeros(len(overlaps), dtype=bool)
    for at, row in enumerate(rows):
        if not dropped[at]:
            dropped[at + 1 :] |= row[at + 1 :]
    return torch.from_numpy(~dropped)


def _overlap(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Which boxes overlap by more than the threshold; a NaN (no area) overlaps nothing."""
    return _iou(a[:, None], b) > threshold


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes `[..., 4]` as corners."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def _roi_align(
    maps: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool
) -> Tensor:
    """Average over `ratio²` bilinear samples in each of `height × width` cells of every region.

    Regions are rows `(image, x1, y1, x2, y2)`. A ratio of 0 or less means one sample a pixel of a cell.
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    image, corners = rois[:, 0].long(), rois[:, 1:].detach().to(dtype) * scale - (0.5 if aligned else 0)
    start, size = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        size = size.clamp(min=1)
    tall = _stacked(maps.to(dtype))

    def align(image: Tensor, start: Tensor, size: Tensor, per_x: int, per_y: int) -> Tensor:
        x = start[:, :1] + size[:, :1] * _centres(width * per_x, size)
        y = start[:, 1:] + size[:, 1:] * _centres(height * per_y, size)
        samples = _samples(tall, image, y, x, *maps.shape[2:])
        return reduce(samples, "c k (h y) (w x) -> k c h w", "mean", y=per_y, x=per_x)

    if ratio > 0:
        return align(image, start, size, ratio, ratio).to(maps.dtype)
    counts = (size / size.new_tensor([width, height])).ceil().int().clamp(min=1).tolist()
    regions = zip(image[:, None], start[:, None], size[:, None], counts, strict=True)
    empty = tall.new_empty(0, maps.shape[1], height, width)
    return torch.cat([empty, *(align(i, at, by, *count) for i, at, by, count in regions)]).to(maps.dtype)


def _centres(count: int, like: Tensor) -> Tensor:
    """The centres of `count` equal parts of `[0, 1]`."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count


def _stacked(maps: Tensor) -> Tensor:
    """The batch as one tall map; a copy of its outer rows keeps each image's samples from its neighbours'."""
    return rearrange(F.pad(maps, (0, 0, 1, 1), mode="replicate"), "n c h w -> 1 c (n h) w")


def _samples(tall: Tensor, image: Tensor, y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Values `[c, k, y, x]` at pixel coordinates: clamped to the map, zero beyond one pixel outside."""
    inside = ((y >= -1) & (y <= height))[:, :, None] & ((x >= -1) & (x <= width))[:, None, :]
    y = y.clamp(0, height - 1) + 1 + image[:, None] * (height + 2)
    x = x.clamp(0, width - 1)
    unit_y, unit_x = 2 * y / (tall.shape[2] - 1) - 1, 2 * x / max(width - 1, 1) - 1
    grid = torch.stack(torch.broadcast_tensors(unit_x[:, None, :], unit_y[:, :, None]), -1)
    flat = rearrange(grid, "k y x two -> 1 (k y) x two")
    values = F.grid_sample(tall, flat, padding_mode="border", align_corners=True)
    return rearrange(values, "1 c (k y) x -> c k y x", y=y.shape[1]) * inside
