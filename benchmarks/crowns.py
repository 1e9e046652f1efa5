"""Crowns of trees from the air: real images with real boxes, small enough to install.

The package `deepforest` (MIT) brings aerial photographs of three sites, with boxes in Pascal VOC's format.
Nothing of it is imported: it is where the files lie. Training tiles are cut at random from one part of the
photographs, test tiles side by side from the others.
"""

import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from PIL import Image
from torch import Tensor

from .scenes import Sample, tensor

CLASSES = ("Tree",)
PHOTOGRAPHS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "SOAP_061"),
    "test": ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029"),
}
SEEN = 0.5  # of a box's area, or the tile leaves the box out


class Photograph(NamedTuple):
    """An image `[3, height, width]` from 0 to 1, and its boxes `[trees, 4]` as corners."""

    image: Tensor
    boxes: Tensor


def photographs(part: str) -> list[Photograph]:
    """The photographs for `"train"` or for `"test"`.

    Raises:
        ValueError: The package is not installed, or has other files; the text says what to install.
    """
    spec = find_spec("deepforest")
    folder = Path(spec.origin or "").parent / "data" if spec is not None else Path()
    found = []
    for name in PHOTOGRAPHS[part]:
        image, boxes = folder / f"{name}.png", folder / f"{name}.xml"
        if not (image.is_file() and boxes.is_file()):
            raise ValueError(
                f"crowns: there is no {name} with its boxes; run `pip install --no-deps deepforest==2.1.0`."
            )
        found.append(Photograph(tensor(Image.open(image).convert("RGB")), read_voc(boxes)))
    return found


def read_voc(file: Path) -> Tensor:
    """Corners of all boxes of a file in Pascal VOC's format, whatever they are named."""
    boxes = [
        [float(box.findtext(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
        for box in ElementTree.parse(file).iter("bndbox")
    ]
    return torch.tensor(boxes).view(-1, 4)


def tile(photograph: Photograph, left: int, top: int, side: int) -> Sample:
    """A square of a photograph, with the boxes of which half is seen."""
    image, boxes = photograph
    corner = torch.tensor([left, top, left, top])
    inside = (boxes - corner).clamp(0, side)
    seen = _areas(inside) >= SEEN * _areas(boxes)
    labels = torch.ones(int(seen.sum()), dtype=torch.int64)
    return image[:, top : top + side, left : left + side], {"boxes": inside[seen], "labels": labels}


def training_tile(photographs: Sequence[Photograph], key: str, side: int = 128) -> Sample:
    """A tile at random, perhaps mirrored; a function of its arguments."""
    source = random.Random(key)
    areas = [one.image[0].numel() for one in photographs]
    (photograph,) = source.choices(photographs, areas)
    height, width = photograph.image.shape[1:]
    image, target = tile(photograph, source.randint(0, width - side), source.randint(0, height - side), side)
    if source.random() < 0.5:
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        image, target["boxes"] = image.flip(2), torch.stack((side - x2, y1, side - x1, y2), 1)
    return image, target


def held_out_tiles(photographs: Sequence[Photograph], side: int = 128) -> list[Sample]:
    """All whole tiles of photographs, side by side."""
    return [
        tile(one, left, top, side)
        for one in photographs
        for top in range(0, one.image.shape[1] - side + 1, side)
        for left in range(0, one.image.shape[2] - side + 1, side)
    ]


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
