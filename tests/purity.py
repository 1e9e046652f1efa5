"""What a pure function leaves alone: a snapshot of modules, tensors and random state, and its comparison."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Held:
    """An object that equals itself alone, and stays alive for the comparison."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self.thing is other.thing

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self.thing).__name__} at {id(self.thing):x}"


def snapshot(*things: Any) -> list[Any]:
    """Copies of everything observable: bits, flags, versions, module dicts, grads, global random states."""
    state: list[Any] = [torch.get_rng_state().clone(), random.getstate(), str(np.random.get_state())]
    state += [torch.is_grad_enabled(), torch.get_default_dtype()]
    for thing in things:
        if isinstance(thing, nn.Module):
            for name, module in thing.named_modules(remove_duplicate=False):
                state += [(name, Held(module), type(module), module.training), *_attributes(module)]
            thing = [*thing.named_parameters(), *thing.named_buffers()]
        for leaf in pytree.tree_leaves(thing):
            if isinstance(leaf, Tensor):
                grad = None if leaf.grad is None else leaf.grad.clone()
                state.append((Held(leaf), type(leaf), leaf._version, leaf.requires_grad, grad))
                state.append(leaf.detach().clone())
            else:
                state.append(leaf)
    return state


def _attributes(module: nn.Module) -> list[Any]:
    """Every attribute by identity, and what containers hold: parameters, buffers, children and hooks too."""
    found: list[Any] = [sorted(vars(module))]
    for key, value in sorted(vars(module).items()):
        items = (
            value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else [])
        )
        found.append((key, Held(value), [(item, Held(held)) for item, held in items]))
    return found


def assert_unchanged(before: list[Any], *things: Any) -> None:
    """Fail unless a snapshot taken now equals the one from before."""
    after = snapshot(*things)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        flat_old, flat_new = pytree.tree_leaves(old), pytree.tree_leaves(new)
        assert len(flat_old) == len(flat_new), f"{old} became {new}"
        for a, b in zip(flat_old, flat_new, strict=True):
            same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
            assert same, f"{old} became {new}"
