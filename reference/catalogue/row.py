"""One row describes one public function of the loss families, enough to test, document and measure it.

A row's first fields say what the function is for and how to call it. The last ones are exceptions from the
laws that `tests/families/test_laws.py` holds every function to. An exception is a sentence that gives the
reason, and an empty string means that the law holds. The tests prove exceptions too: one that is no longer
true fails.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor


class Size(NamedTuple):
    """How large to make the inputs of a row."""

    batch: int = 4
    width: int = 7
    """Classes of logits, channels of maps, dimensions of embeddings."""
    side: int = 4
    """Height and width of maps."""


Inputs = Callable[[Size, Generator, torch.dtype], dict[str, Tensor]]


def _itself(result: Any) -> Any:
    return result


class Row(NamedTuple):
    """What tests, docs and benchmarks know of one public function."""

    loss: Callable[..., Any]
    purpose: str
    """What for, in one phrase of the docs table."""
    cost: str
    """Order of time and memory, with B the batch, C classes or channels, D dimensions, N positions."""
    inputs: Inputs
    """Random tensors on the generator's device, named as the function's positional parameters, in order."""
    hyper: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments beside the published defaults."""
    output: str = "batch"
    """Layout of the result: ``"batch"`` for per example, ``""`` for a scalar, ``"batch, classes"``, ..."""
    learns: tuple[str, ...] = ("prediction",)
    """Inputs that training changes: gradients are checked for these, and shapes against the targets'."""
    targets: tuple[str, ...] = ("target",)
    """Inputs that the learning ones are pulled to, pairwise; empty for transforms and policies."""
    shared: tuple[str, ...] = ()
    """Inputs without a batch axis: a class cost, a bank, weights."""
    least: Size = Size(1, 2, 1)
    """The smallest inputs for which the function is meant."""
    extreme: float = 1e4
    """Inputs of this magnitude give a finite value and gradient in float32, bfloat16 and float16."""
    arrange: Callable[[Sequence[Tensor]], Sequence[Any]] = tuple
    """From the input tensors to positional arguments, where those are not simply the tensors."""
    read: Callable[[Any], Tensor] = _itself
    """From the result to the tensor that the laws are about, where the function returns more."""

    couples: str = ""
    """Why an example's value depends on the other examples of the batch."""
    ordered: str = ""
    """Why the value depends on the order of the batch."""
    not_zero: str = ""
    """Why the value is not zero at equality and positive elsewhere."""
    kinks: str = ""
    """Where the gradient does not vanish at equality, although the value does."""
    detaches: str = ""
    """What is held constant, so that the gradient is not the derivative of the value."""
    free_width: str = ""
    """Why prediction and target may differ in their last axis."""
    singular: str = ""
    """Why constant inputs give no finite value."""


def normal(generator: Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """A standard normal tensor on the generator's device."""
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def classes(generator: Generator, size: Size) -> Tensor:
    """Labels `[batch]`, drawn from the classes."""
    return torch.randint(size.width, (size.batch,), generator=generator, device=generator.device)


def logit_pair(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Prediction and target `[batch, width]`: logits, or embeddings."""
    shape = (size.batch, size.width)
    return {"prediction": normal(generator, dtype, *shape), "target": normal(generator, dtype, *shape)}


def logit_pair_and_labels(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Prediction, target and the labels of the batch."""
    return {**logit_pair(size, generator, dtype), "labels": classes(generator, size)}


def map_pair(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Prediction and target `[batch, width, side, side]`."""
    shape = (size.batch, size.width, size.side, size.side)
    return {"prediction": normal(generator, dtype, *shape), "target": normal(generator, dtype, *shape)}
