"""Rows of `fcfd.families.temperatures`: what changes the logits, the temperature or the weight of a loss."""

import torch
from torch import Generator, Tensor

from fcfd.families import temperatures

from .row import Row, Size, logit_pair, normal


def logits(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"logits": normal(generator, dtype, size.batch, size.width)}


def anything(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"x": normal(generator, dtype, size.batch, size.width)}


def parameter(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"parameter": normal(generator, dtype, size.batch)}


def energies(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"energies": normal(generator, dtype, size.batch)}


def energies_and_thresholds(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    thresholds = torch.tensor([-0.5, 0.5], dtype=dtype, device=generator.device)
    return {**energies(size, generator, dtype), "thresholds": thresholds}


ROWS: tuple[Row, ...] = (
    Row(
        temperatures.standardize_logits,
        "ignore each example's scale of logits",
        "B·C",
        logits,
        output="..., classes",
        learns=("logits",),
        targets=(),
    ),
    Row(
        temperatures.batch_standardize_logits,
        "ignore each class's scale of logits",
        "B·C",
        logits,
        output="batch, classes",
        learns=("logits",),
        targets=(),
        couples="the statistics are taken over the batch",
    ),
    Row(
        temperatures.grad_reverse,
        "train something against the student",
        "1",
        anything,
        output="...",
        learns=("x",),
        targets=(),
        detaches="all of it: the gradient is the identity's, scaled",
    ),
    Row(
        temperatures.learned_temperature,
        "train the temperature",
        "B",
        parameter,
        output="...",
        learns=("parameter",),
        targets=(),
    ),
    Row(
        temperatures.energy,
        "tell sure examples from unsure ones",
        "B·C",
        logits,
        output="...",
        learns=("logits",),
        targets=(),
    ),
    Row(
        temperatures.energy_thresholds,
        "cut a data set by energy",
        "n log n",
        energies,
        output="",
        learns=("energies",),
        targets=(),
        couples="order statistics of all examples",
    ),
    Row(
        temperatures.energy_temperature,
        "soften more what the teacher is sure of",
        "B",
        energies_and_thresholds,
        output="...",
        learns=(),
        targets=(),
        shared=("thresholds",),
    ),
    Row(
        temperatures.entropy,
        "weigh by the teacher's doubt",
        "B·C",
        logits,
        output="...",
        learns=("logits",),
        targets=(),
    ),
    Row(
        temperatures.ea_weight,
        "weigh by the doubt of both networks",
        "B·C",
        logit_pair,
        output="...",
        not_zero="a weight, not a distance",
    ),
)
