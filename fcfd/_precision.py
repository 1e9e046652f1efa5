"""Where a loss leaves half precision: sums, softmaxes and matrix products run in float32 or better."""

import torch
from torch import Tensor


def upcast(tensor: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy where it is float16 or bfloat16."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def exact(tensor: Tensor) -> torch.autocast:
    """A context in which autocast does not send matrix products on the tensor's device back to half."""
    return torch.autocast(tensor.device.type, enabled=False)
