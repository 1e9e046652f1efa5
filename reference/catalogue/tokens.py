"""Rows of `fcfd.families.tokens`."""

import torch
from torch import Generator, Tensor

from fcfd.families import tokens

from .row import Row, Size, normal

FREE = "only relations between tokens are compared"


def token_pair(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Prediction and target `[batch, side², width]`."""
    shape = (size.batch, size.side**2, size.width)
    return {"prediction": normal(generator, dtype, *shape), "target": normal(generator, dtype, *shape)}


def score_pair(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Prediction and target `[batch, width, side, side]`: heads, queries and keys."""
    shape = (size.batch, size.width, size.side, size.side)
    return {"prediction": normal(generator, dtype, *shape), "target": normal(generator, dtype, *shape)}


ROWS: tuple[Row, ...] = (
    Row(
        tokens.gram,
        "match how alike the patches of an image are",
        "B·N²·D",
        token_pair,
        output="batch",
        least=Size(1, 2, 2),
        free_width=FREE,
    ),
    Row(
        tokens.patch_similarity_kl,
        "match which patches of an image are found by which",
        "B·N²·D",
        token_pair,
        output="batch",
        least=Size(1, 2, 2),
        free_width=FREE,
    ),
    Row(
        tokens.relation_kl,
        "match queries, keys or values by how they attend to each other",
        "B·N²·D",
        token_pair,
        {"heads": 1},
        output="batch",
        least=Size(1, 2, 2),
        free_width=FREE,
    ),
    Row(
        tokens.tinybert_attention,
        "match attention scores",
        "B·heads·N²",
        score_pair,
        output="batch",
    ),
)
