"""Rows of `fcfd.families.relations`."""

import torch
from torch import Generator, Tensor

from fcfd.families import relations

from .row import Row, Size, logit_pair, normal

PAIRS = "the relations are those between the examples of a batch"
FREE = "only relations between examples are compared"


def one_embedding(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"embedding": normal(generator, dtype, size.batch, size.width)}


def two_features(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(zip(("x", "y"), logit_pair(size, generator, dtype).values(), strict=True))


def features_of_classes(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"features": normal(generator, dtype, size.batch, 5, size.width)}


def two_views(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    views = logit_pair(size, generator, dtype)
    return {**logit_pair(size, generator, dtype), **{f"{key}_view": view for key, view in views.items()}}


ROWS: tuple[Row, ...] = (
    Row(
        relations.rkd_distance,
        "match how far examples lie apart",
        "B²·D",
        logit_pair,
        output="",
        least=Size(3, 2, 1),
        couples=PAIRS,
        free_width=FREE,
    ),
    Row(
        relations.rkd_angle,
        "match the angles between examples",
        "B³·D, memory B·D + B²",
        logit_pair,
        output="",
        least=Size(3, 2, 1),
        couples=PAIRS,
        free_width=FREE,
    ),
    Row(
        relations.hard_dark_rank,
        "match the order of the nearest neighbours",
        "B²·D",
        logit_pair,
        {"length": 2, "alpha": 0.01},
        output="",
        least=Size(4, 2, 1),
        couples=PAIRS,
        free_width=FREE,
        extreme=30.0,
        not_zero="a likelihood of an order, which is never certain",
    ),
    Row(
        relations.pkt,
        "match the probabilities of being neighbours",
        "B²·D",
        logit_pair,
        output="",
        least=Size(3, 2, 1),
        couples=PAIRS,
        free_width=FREE,
    ),
    Row(
        relations.similarity_preserving,
        "match the similarities within a batch",
        "B²·D",
        logit_pair,
        output="",
        least=Size(2, 2, 1),
        couples=PAIRS,
        free_width=FREE,
    ),
    Row(
        relations.cc_adjacent,
        "match neighbours of a batch together, as published",
        "B·D",
        logit_pair,
        output="",
        least=Size(2, 2, 1),
        couples=PAIRS,
        ordered="neighbours in the batch are multiplied",
    ),
    Row(
        relations.taylor_rbf,
        "relate the examples of a batch by a kernel",
        "B²·D",
        one_embedding,
        output="batch, batch",
        learns=("embedding",),
        targets=(),
        extreme=10.0,
        couples=PAIRS,
        ordered="rows and columns are those of the batch",
    ),
    Row(
        relations.cc_taylor_rbf,
        "match a kernel of the batch",
        "B²·D",
        logit_pair,
        output="",
        least=Size(2, 2, 1),
        couples=PAIRS,
        free_width=FREE,
    ),
    Row(
        relations.linear_cka,
        "measure how similar two features are",
        "B·D·min(B, D)",
        two_features,
        output="",
        learns=("x",),
        targets=("y",),
        least=Size(3, 2, 1),
        couples=PAIRS,
        free_width=FREE,
        not_zero="a similarity: 1 at equality, and the loss is one minus it",
    ),
    Row(
        relations.cka_class_cost,
        "find the cost of `wkd_logit` in a network's features",
        "C·M²·(C + D), M samples a class",
        features_of_classes,
        output="classes, classes",
        learns=("features",),
        targets=(),
        couples="the cost is one of pairs of classes",
        ordered="rows and columns are those of the classes",
    ),
    Row(
        relations.vrm,
        "match the directions between a batch and its augmented view",
        "B²·C + C²·B, memory B² + C²",
        two_views,
        output="",
        learns=("prediction", "prediction_view"),
        targets=("target", "target_view"),
        least=Size(3, 3, 1),
        couples=PAIRS,
    ),
)
