"""Rows of `fcfd.families.detection`."""

import torch
from torch import Generator, Tensor

from fcfd.families import detection

from .row import Row, Size, classes, logit_pair, normal


def _boxes(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Boxes with an area, of one scale, so that some meet and others do not."""

    def drawn() -> Tensor:
        corner = normal(generator, dtype, size.batch, 2)
        side = 0.5 + torch.rand(size.batch, 2, generator=generator, dtype=dtype, device=generator.device)
        return torch.cat([corner, corner + side], 1)

    return {"prediction": drawn(), "target": drawn()}


def _deltas(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "prediction": normal(generator, dtype, size.batch, 4 * size.width),
        "target": normal(generator, dtype, size.batch, 4),
        "labels": classes(generator, size),
    }


ROWS: tuple[Row, ...] = (
    Row(
        detection.kd_quality_focal,
        "match the class scores of a detection head",
        "B·C",
        logit_pair,
        output="..., classes",
    ),
    Row(
        detection.generalized_iou,
        "match boxes, also where they do not meet",
        "B",
        _boxes,
    ),
    Row(
        detection.box_deltas,
        "learn the boxes of labelled regions",
        "B",
        _deltas,
        targets=(),
    ),
)
