"""What of torch is at work while a function runs. Private: torch has no public question for either."""

import torch
from torch.autograd import forward_ad


def is_traced() -> bool:
    """Whether Dynamo or a transform of `torch.func` runs this."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def has_tangents() -> bool:
    """Whether tensors may carry a tangent: derivatives in forward mode."""
    return forward_ad._current_level >= 0
