"""Rows of `fcfd.families.logits`."""

import torch
from torch import Generator, Tensor

from fcfd.families import logits

from .row import Row, Size, classes, logit_pair, logit_pair_and_labels, normal

CROSS_ENTROPY = "a cross-entropy: the teacher's own entropy is not subtracted"
CONFIDENCE = "the teacher's probability of the label, in front of the cross-entropy"


def logits_and_labels(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "prediction": normal(generator, dtype, size.batch, size.width),
        "labels": classes(generator, size),
    }


def logits_and_multi_hot(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    drawn = torch.rand(size.batch, size.width, generator=generator, device=generator.device)
    return {"prediction": normal(generator, dtype, size.batch, size.width), "labels": drawn < 0.3}


def with_class_cost(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    cost = torch.rand(size.width, size.width, generator=generator, dtype=dtype, device=generator.device)
    return {**logit_pair_and_labels(size, generator, dtype), "cost": cost}


ROWS: tuple[Row, ...] = (
    Row(
        logits.cross_entropy,
        "learn the labels",
        "B·C",
        logits_and_labels,
        output="...",
        targets=(),
    ),
    Row(
        logits.binary_cross_entropy,
        "learn labels of which several may hold",
        "B·C",
        logits_and_multi_hot,
        output="...",
        targets=(),
    ),
    Row(
        logits.tf_nkd,
        "distil without a teacher",
        "B·C",
        logits_and_labels,
        output="",
        targets=(),
        couples="the mean confidence of the batch is in every weight",
        detaches="the weights, which are the student's own confidence",
    ),
    Row(
        logits.kl,
        "match the teacher's softened probabilities",
        "B·C",
        logit_pair,
        output="...",
    ),
    Row(
        logits.kd_ce,
        "match them as a cross-entropy",
        "B·C",
        logit_pair,
        output="...",
        not_zero=CROSS_ENTROPY,
    ),
    Row(
        logits.kd_bce,
        "match them class by class",
        "B·C",
        logit_pair,
        output="...",
        not_zero="a student's sigmoid meets a teacher's softmax",
    ),
    Row(
        logits.binary_kl,
        "match the teacher's probability of every class by itself",
        "B·C",
        logit_pair,
        output="...",
    ),
    Row(
        logits.reverse_kl,
        "avoid every token that the teacher finds unlikely",
        "B·C",
        logit_pair,
        output="...",
    ),
    Row(
        logits.jsd,
        "between covering and avoiding, bounded",
        "B·C",
        logit_pair,
        output="...",
    ),
    Row(
        logits.skew_forward_kl_ce,
        "cover what the teacher finds likely, with a bounded gradient",
        "B·C",
        logit_pair,
        output="...",
        not_zero=CROSS_ENTROPY,
    ),
    Row(
        logits.skew_reverse_kl,
        "avoid what the teacher finds unlikely, bounded",
        "B·C",
        logit_pair,
        output="...",
    ),
    Row(
        logits.total_variation,
        "match probabilities by their absolute difference, bounded",
        "B·C",
        logit_pair,
        output="...",
    ),
    Row(
        logits.dkd,
        "weigh the label's probability and the rest apart",
        "B·C",
        logit_pair_and_labels,
        output="...",
    ),
    Row(
        logits.nkd,
        "match the other classes after renormalising them",
        "B·C",
        logit_pair_and_labels,
        output="...",
        not_zero=CROSS_ENTROPY,
    ),
    Row(
        logits.wsld,
        "distil less where the student is already better",
        "B·C",
        logit_pair_and_labels,
        output="...",
        not_zero=CROSS_ENTROPY,
        detaches="the weight, which compares the student's label loss with the teacher's",
    ),
    Row(
        logits.ofa,
        "distil between unlike architectures, the label enhanced",
        "B·C",
        logit_pair_and_labels,
        output="...",
        not_zero=CROSS_ENTROPY,
    ),
    Row(
        logits.wkd_logit,
        "forgive confusions of like classes",
        "B·C² per iteration",
        with_class_cost,
        output="...",
        shared=("cost",),
        not_zero="a cross-entropy of the label, and regularised transport never comes for free",
    ),
    Row(
        logits.dist,
        "match the order of probabilities, of a much stronger teacher",
        "B·C",
        logit_pair,
        output="",
        least=Size(2, 2, 1),
        couples="it correlates each class over the batch",
    ),
    Row(
        logits.mlkd_class_corr,
        "match which classes go together",
        "B·C·min(B, C)",
        logit_pair,
        output="",
        couples="it multiplies classes over the batch",
    ),
    Row(
        logits.mlkd_batch_corr,
        "match which examples go together",
        "B·C·min(B, C)",
        logit_pair,
        output="",
        couples="it multiplies examples with each other",
    ),
)
