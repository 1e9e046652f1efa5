"""Roots and norms whose gradient is finite everywhere, zero included."""

import torch
from torch import Tensor


def root(tensor: Tensor) -> Tensor:
    """Square root with the subgradient 0 at 0 (and the value 0 below it), where torch has infinity."""
    positive = tensor > 0
    return torch.where(positive, torch.where(positive, tensor, 1.0).sqrt(), 0.0)


def normalize(tensor: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Divide by the 2-norm over some axes; what has no length stays where it is.

    `torch.nn.functional.normalize` divides a zero vector by 1e-12, so that its gradient, a trillion times too
    large, overflows half precision.
    """
    norm = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    return tensor / torch.where(norm > 1e-12, norm, 1.0)
