"""Rows of `fcfd.families.features`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from fcfd.families import features

from .row import Row, Size, logit_pair, map_pair, normal


def with_attention(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    attention = normal(generator, dtype, size.batch, size.side, size.side).abs()
    return {**map_pair(size, generator, dtype), "attention": attention}


def with_margin(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {**map_pair(size, generator, dtype), "margin": -normal(generator, dtype, size.width).abs()}


def with_log_scale(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {**map_pair(size, generator, dtype), "log_scale": normal(generator, dtype, size.width)}


def batch_norm_parameters(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"gamma": normal(generator, dtype, size.batch), "beta": normal(generator, dtype, size.batch)}


def with_mask_and_generator(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    mask = normal(generator, dtype, size.batch, size.width, 1, 1) > -1
    weight = normal(generator, dtype, size.width, 1, 1)
    return {**map_pair(size, generator, dtype), "mask": mask, "weight": weight}


def generate_by_weight(inputs: Sequence[Tensor]) -> Sequence[Any]:
    prediction, target, mask, weight = inputs
    return prediction, target, mask, lambda masked: (weight * masked).relu()


ROWS: tuple[Row, ...] = (
    Row(features.squared_error, "match a feature value by value", "B·C·N", map_pair),
    Row(
        features.relative_squared_error,
        "match a feature relative to the target's energy",
        "B·C·N",
        map_pair,
    ),
    Row(features.pooled_squared_error, "match what a classifier reads of a map", "B·C·N", map_pair),
    Row(
        features.attended_squared_error,
        "match what the teacher's attention selects",
        "B·C·N",
        with_attention,
        extreme=10.0,
    ),
    Row(features.cosine_distance, "match the direction of an embedding", "B·D", logit_pair, output="..."),
    Row(
        features.vkd,
        "match a normalised embedding, projected orthogonally",
        "B·D",
        logit_pair,
        output="...",
        not_zero="only the target is normalised",
    ),
    Row(
        features.factor_transfer,
        "match learned factors of both features",
        "B·C·N",
        map_pair,
    ),
    Row(
        features.activation_boundary,
        "match which neurons are active",
        "B·C·N",
        map_pair,
        extreme=1e3,
        not_zero="a neuron closer to zero than the margin is still pushed away from it",
    ),
    Row(
        features.ofd,
        "match what the activation will let through",
        "B·C·N",
        with_margin,
        extreme=1e3,
        shared=("margin",),
    ),
    Row(
        features.bn_margin,
        "find the margin of `ofd` in a batch norm",
        "C",
        batch_norm_parameters,
        output="...",
        learns=("gamma", "beta"),
        targets=(),
    ),
    Row(
        features.vid,
        "match a feature as far as it can be known",
        "B·C·N",
        with_log_scale,
        learns=("prediction", "log_scale"),
        shared=("log_scale",),
        extreme=30.0,
        not_zero="a log-likelihood, whose variance term remains",
    ),
    Row(
        features.mgd,
        "generate the teacher's feature from a masked one",
        "B·C·N, and the generator",
        with_mask_and_generator,
        extreme=1e3,
        learns=("prediction", "weight"),
        shared=("weight",),
        arrange=generate_by_weight,
        not_zero="what the generator makes of the prediction is compared",
    ),
    Row(
        features.srd,
        "match pooled features, the largest errors first",
        "B·D",
        logit_pair,
        output="",
        least=Size(2, 2, 1),
        couples="the features are normalised by statistics of the batch",
        not_zero="the logarithm of an error",
    ),
)
