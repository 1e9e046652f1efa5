"""Rows of `fcfd.families.vocabularies`."""

import torch
from torch import Generator, Tensor

from fcfd.families import vocabularies

from .row import Row, Size, logit_pair

OTHERS = "the networks have vocabularies of their own"


def logit_pair_and_partners(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """The first half of the ids are partners of the same ids."""
    ids = torch.arange((size.width + 1) // 2, device=generator.device)
    return {**logit_pair(size, generator, dtype), "matched": ids, "target_matched": ids}


ROWS: tuple[Row, ...] = (
    Row(
        vocabularies.uld,
        "match probabilities by rank, whatever the tokens",
        "B·C·log C",
        logit_pair,
        output="...",
        free_width=OTHERS,
    ),
    Row(
        vocabularies.uld_hybrid,
        "match common tokens one by one, and the others by rank",
        "B·C·log C",
        logit_pair_and_partners,
        output="...",
        shared=("matched", "target_matched"),
        free_width=OTHERS,
    ),
)
