"""Standardisation of a teacher's features, computed once and applied before a loss between features."""

from math import pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from .._tree import shape
from ._checks import floats
from ._numerics import exact, poisoned


class PhiS(NamedTuple):
    """A scaled rotation after which every dimension has the variance 1: `(x - mean) @ matrix.mT`.

    Args:
        mean: `[dimensions]`.
        matrix: `[dimensions, dimensions]`. Its inverse is `matrix.mT / scale**2`.
        scale: `[]`, what every length is multiplied by.
    """

    mean: Tensor
    matrix: Tensor
    scale: Tensor


def phi_s(targets: Tensor) -> PhiS:
    """PHI-S: rotate features so that all dimensions are equally wide, and scale all of them by one number.

    ```
    covariance = U diag(e) Uᵀ,    s = (mean e)^(−1/2),    matrix = s · H Uᵀ
    ```

    H is a Hadamard matrix divided by √D: all its entries are equally large, so that each new dimension has
    an equal share of every principal one.

    Args:
        targets: A sample of a teacher's features `[n, dimensions]`, two or more; it gets no gradient.

    Returns:
        A `PhiS`. Apply it to the targets of a loss: ``squared_error(s, (t - phi.mean) @ phi.matrix.mT)``.
        Each eigenvector is signed by its largest entry. Without spread in the sample the scale is infinite.

    Raises:
        ValueError: The targets are no matrix, or there is one only.

    Example:
        >>> targets = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 2.0], [6.0, 2.0]])
        >>> phi = phi_s(targets)
        >>> ((targets - phi.mean) @ phi.matrix.mT).var(0).round(decimals=3)
        tensor([1., 1.])

    Reference:
        Ranzinger et al.: PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation, 2024,
        arXiv 2410.01680. From the formula, checked against the values of NVlabs/RADIO `get_phi_s_matrix`. H
        is Sylvester's for powers of two, Paley's where D − 1 is a prime of the form 4m + 3, and is doubled
        for even multiples of these. For other D the published code draws a random rotation; here it is the
        cosine transform. Either way the variances are then only similar.
    """
    name = "phi_s"
    (features,) = floats(name, "n, dimensions", targets=targets)
    if len(targets) < 2:
        raise ValueError(f"{name}: targets {shape(targets)} of one example have no covariance.")
    features = features.detach()
    mean = features.mean(0)
    centred = features - mean
    with exact(targets):
        covariance = centred.mT @ centred / (len(targets) - 1)
        # A decomposition of NaN is an error, or anything.
        known = covariance.isfinite().all()
        safe = torch.where(known, covariance, torch.eye(len(mean), dtype=mean.dtype, device=mean.device))
        widths, axes = torch.linalg.eigh(safe)
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        axes = torch.where(largest < 0, -axes, axes)
        scale = widths.clamp(min=0).mean().rsqrt()
        matrix = scale * (_spreading(mean) @ axes.mT)
    return PhiS(mean, poisoned(matrix, covariance), poisoned(scale, covariance))


def _spreading(like: Tensor) -> Tensor:
    """An orthogonal matrix of as many rows as a vector has entries, its own as equal as they can be."""
    size = len(like)
    signs = _hadamard(size, like)
    if signs is not None:
        return signs / sqrt(size)
    places = torch.arange(size, dtype=like.dtype, device=like.device)
    waves = torch.cos(pi / size * (places + 0.5) * places.unsqueeze(1)) * sqrt(2 / size)
    return torch.cat((waves[:1] / sqrt(2), waves[1:]))


def _hadamard(size: int, like: Tensor) -> Tensor | None:
    """A matrix of ±1 with orthogonal rows, or None where none is built here."""
    if size == 1:
        return like.new_ones(1, 1)
    if size & (size - 1) and _is_prime(size - 1) and size % 4 == 0:
        return _paley(size, like)
    half = _hadamard(size // 2, like) if size % 2 == 0 else None
    return None if half is None else torch.cat((torch.cat((half, half), 1), torch.cat((half, -half), 1)))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(sqrt(number)) + 1))


def _paley(size: int, like: Tensor) -> Tensor:
    """By the quadratic residues modulo `size - 1`."""
    places = torch.arange(size - 1, device=like.device)
    residues = torch.full_like(places, -1).scatter(0, places.square() % (size - 1), 1)
    inner = residues[(places.unsqueeze(1) - places) % (size - 1)].fill_diagonal_(1).to(like.dtype)
    column = like.new_full((size - 1, 1), -1.0)
    return torch.cat((like.new_ones(1, size), torch.cat((column, inner), 1)))
