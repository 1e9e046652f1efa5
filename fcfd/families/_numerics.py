"""What losses need of numbers: float32 under half precision, and gradients that are finite everywhere."""

import torch
from torch import Tensor


def upcast(tensor: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy where it is float16 or bfloat16."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def exact(tensor: Tensor) -> torch.autocast:
    """A context in which autocast does not send matrix products on the tensor's device back to half."""
    return torch.autocast(tensor.device.type, enabled=False)


def safe_sqrt(tensor: Tensor) -> Tensor:
    """Square root with the subgradient 0 at 0 (and the value 0 below it), where torch has infinity."""
    positive = tensor > 0
    return torch.where(positive, torch.where(positive, tensor, 1.0).sqrt(), 0.0)


def safe_normalize(tensor: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Divide by the 2-norm over some axes; what has no length stays where it is.

    `torch.nn.functional.normalize` divides a zero vector by 1e-12, so that its gradient, a trillion times too
    large, overflows half precision.
    """
    norm = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    return tensor / torch.where(norm > 1e-12, norm, 1.0)
