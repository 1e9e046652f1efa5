"""A term: one value of a walk is pulled towards another."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ._tree import flatten


class Term(NamedTuple):
    """Pull the value at `prediction` towards the value at `target`, which gets no gradient.

    Args:
        loss: `loss(prediction, target) -> Tensor`; what it returns is averaged to a scalar. Bind
            hyper-parameters with `functools.partial`.
        prediction: A path, or a tuple of paths for a loss that reads several values.
        target: The same; or `"Labels"`, or any other name that begins with a capital: data of the batch
            that is given with it and computed by no stage. Several targets follow in order.
        weight: The factor of this term in the total.
    """

    loss: Callable[..., Tensor]
    prediction: str | tuple[str, ...]
    target: str | tuple[str, ...]
    weight: float | Tensor = 1.0


Terms: TypeAlias = Mapping[str, Term]


def each(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Measure a loss on every tensor of features that have several, and take the mean.

    A pyramid of maps is such a feature. Features of one tensor go to the loss as they are.

    Args:
        loss: `loss(prediction, target) -> Tensor`.

    Returns:
        A loss of trees (tuples, dicts) of tensors. It raises a `ValueError` where the two differ in form.

    Example:
        >>> loss = each(torch.nn.functional.mse_loss)
        >>> loss([torch.ones(1), torch.ones(2)], [torch.ones(1), torch.zeros(2)])
        tensor(0.5000)
    """
    return partial(_each, loss)


def _each(loss: Callable[..., Tensor], prediction: Any, target: Any) -> Tensor:
    if isinstance(prediction, Tensor) and isinstance(target, Tensor):
        return loss(prediction, target)
    (ours, ours_form), (theirs, theirs_form) = map(flatten, (prediction, target))
    if ours_form != theirs_form:
        raise ValueError(
            f"each: the prediction holds {len(ours)} tensors as {type(prediction).__name__}, the target "
            f"{len(theirs)} as {type(target).__name__}. Bridge to the target's form."
        )
    return torch.stack([loss(own, other).mean() for own, other in zip(ours, theirs, strict=True)]).mean()


def names(paths: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    return (paths,) if isinstance(paths, str) else paths


def given(name: str) -> bool:
    """Whether a name is data of the batch (it begins with a capital) rather than a path."""
    return name[:1].isupper()


def reads(terms: Iterable[Term]) -> tuple[str, ...]:
    """Every path that some term reads, each once, in order: what a plan is made of.

    Example:
        >>> from fcfd.logits import cross_entropy, kl
        >>> reads([Term(cross_entropy, "ss", "Labels"), Term(kl, "ss", "tt")])
        ('ss', 'tt')
    """
    read = (name for term in terms for name in (*names(term.prediction), *names(term.target)))
    return tuple(dict.fromkeys(name for name in read if not given(name)))
