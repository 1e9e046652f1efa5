"""Rows of `fcfd.families.sparse`."""

import torch
from torch import Generator, Tensor

from fcfd.families import sparse

from .row import Row, Size, normal

LISTED = 3
NO_PROBABILITIES = "the constant is no log-probability: what sums to more than 1 gives NaN"


def first_classes(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits, and the teacher's first classes with their log-probabilities."""
    of_all = normal(generator, dtype, size.batch, size.width).log_softmax(-1)
    listed, ids = of_all.topk(min(LISTED, size.width - 1), dim=-1)
    prediction = normal(generator, dtype, size.batch, size.width)
    return {"prediction": prediction, "ids": ids, "log_probabilities": listed}


def drawn_classes(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits, and drawn classes, some of them repeated, with the teacher's log-probabilities."""
    inputs = first_classes(size, generator, dtype)
    of_all = normal(generator, dtype, size.batch, size.width).log_softmax(-1)
    drawn = (size.batch, 2 * LISTED)
    ids = torch.randint(size.width, drawn, generator=generator, device=generator.device)
    return {**inputs, "ids": ids, "log_probabilities": of_all.gather(-1, ids)}


ROWS: tuple[Row, ...] = (
    *(
        Row(
            loss,
            purpose,
            "B·C",
            first_classes,
            output="...",
            targets=(),
            singular=NO_PROBABILITIES,
        )
        for loss, purpose in (
            (sparse.topk_kl, "match a stored teacher of k classes"),
            (sparse.topk_reverse_kl, "avoid what a teacher of k classes finds unlikely"),
            (sparse.topk_jsd, "between the two, bounded"),
        )
    ),
    Row(
        sparse.sampled_kl,
        "match a teacher of whom some classes were drawn",
        "B·C",
        drawn_classes,
        output="...",
        targets=(),
    ),
)
