"""Rows of `fcfd.families.standardization`."""

import torch
from torch import Generator, Tensor

from fcfd.families import standardization

from .row import Row, Size, normal


def a_sample(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"targets": normal(generator, dtype, size.batch, size.width)}


ROWS: tuple[Row, ...] = (
    Row(
        standardization.phi_s,
        "make all dimensions of a target equally wide, by a rotation",
        "n·D² + D³, once",
        a_sample,
        output="dimensions",
        learns=(),
        targets=(),
        least=Size(2, 2, 1),
        read=lambda found: found.scale * found.mean,
        couples="the moments are those of the whole sample",
        singular="without spread nothing makes it one",
    ),
)
