"""Rows of `fcfd.families.contrastive`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from fcfd.families import contrastive
from fcfd.families.contrastive import Banks

from .row import Row, Size, classes, logit_pair, normal

EXAMPLES = 32
"""How many examples the banks hold where the batch is smaller than that."""


def query_and_positive(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(zip(("query", "positive"), logit_pair(size, generator, dtype).values(), strict=True))


def prototypes_and_labels(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "embedding": normal(generator, dtype, size.batch, size.width),
        "prototypes": normal(generator, dtype, size.width, size.width),
        "labels": classes(generator, size),
    }


def with_entries(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {**logit_pair(size, generator, dtype), "bank": normal(generator, dtype, EXAMPLES, size.width)}


def with_banks(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    examples = max(EXAMPLES, 2 * size.batch)
    places = torch.randperm(examples, generator=generator, device=generator.device)
    negatives = torch.randint(examples, (size.batch, 6), generator=generator, device=generator.device)
    banks = {
        name: torch.nn.functional.normalize(normal(generator, dtype, examples, size.width))
        for name in ("student_bank", "teacher_bank")
    }
    pair = {
        name: torch.nn.functional.normalize(embedding)
        for name, embedding in logit_pair(size, generator, dtype).items()
    }
    return {**pair, "index": places[: size.batch], "negatives": negatives, **banks}


def arrange_banks(inputs: Sequence[Tensor]) -> Sequence[Any]:
    *examples, student, teacher = inputs
    device = next(x.device for x in inputs if isinstance(x, Tensor))
    scale = torch.tensor(3.0, device=device)
    return *examples, Banks(student, teacher, scale, scale)


ROWS: tuple[Row, ...] = (
    Row(
        contrastive.info_nce,
        "find the teacher's embedding of the same example",
        "B²·D",
        query_and_positive,
        output="",
        learns=("query",),
        targets=("positive",),
        couples="the other examples are the negatives",
        not_zero="the negatives keep a share of the probability",
        least=Size(2, 2, 1),
    ),
    Row(
        contrastive.similarity_kl,
        "find the same entries of a bank as the teacher",
        "B·n·D, n entries",
        with_entries,
        shared=("bank",),
    ),
    Row(
        contrastive.prototype_info_nce,
        "find the teacher's prototype of the class",
        "B·C·D",
        prototypes_and_labels,
        learns=("embedding",),
        targets=(),
        shared=("prototypes",),
    ),
    Row(
        contrastive.crd_nce,
        "find the teacher's embedding among those remembered",
        "B·min(n, K·D), K negatives, n examples",
        with_banks,
        learns=("prediction", "target"),
        targets=(),
        shared=("student_bank", "teacher_bank"),
        arrange=arrange_banks,
        read=lambda result: result[0],
    ),
)
