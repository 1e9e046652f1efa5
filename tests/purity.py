"""What a pure function leaves alone: a snapshot of modules, tensors and random state, and its comparison."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def snapshot(*things: Any) -> list[Any]:
    """Copies of everything observable: bits, flags, versions, module dicts, grads, global random states."""
    state: list[Any] = [torch.get_rng_state().clone(), random.getstate(), str(np.random.get_state())]
    state += [torch.is_grad_enabled(), torch.get_default_dtype()]
    for thing in things:
        if isinstance(thing, nn.Module):
            state += [
                (name, module.training, sorted(vars(module)), _hooks(module))
                for name, module in thing.named_modules()
            ]
            thing = [*thing.named_parameters(), *thing.named_buffers()]
        for leaf in pytree.tree_leaves(thing):
            if isinstance(leaf, Tensor):
                grad = None if leaf.grad is None else leaf.grad.clone()
                state.append((id(leaf), leaf._version, leaf.requires_grad, grad, leaf.detach().clone()))
            else:
                state.append(leaf)
    return state


def _hooks(module: nn.Module) -> list[int]:
    return [len(value) for name, value in sorted(vars(module).items()) if name.endswith("_hooks")]


def assert_unchanged(before: list[Any], *things: Any) -> None:
    """Fail unless a snapshot taken now equals the one from before."""
    for old, new in zip(before, snapshot(*things), strict=True):
        flat_old, flat_new = pytree.tree_leaves(old), pytree.tree_leaves(new)
        for a, b in zip(flat_old, flat_new, strict=True):
            same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
            assert same, f"{old} became {new}"
