"""Trees of tensors: a feature may be one tensor, or a tuple, list or dict of them.

All that the library needs of `torch.utils._pytree` is here, because that module is private: `torch.func` and
`torch.compile` flatten by it and torch has no public name for it.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

TreeSpec: TypeAlias = pytree.TreeSpec


def flatten(tree: Any, whole: type | tuple[type, ...] = ()) -> tuple[list[Any], TreeSpec]:
    """The leaves of a tree, and its form. What is of a type in `whole` is one leaf."""
    return pytree.tree_flatten(tree, is_leaf=lambda node: isinstance(node, whole))


def unflatten(leaves: list[Any], form: TreeSpec) -> Any:
    """A tree of a form, with these leaves."""
    return pytree.tree_unflatten(leaves, form)


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree, tensors and others."""
    return pytree.tree_leaves(tree)


def tensors(tree: Any) -> list[Tensor]:
    """The leaves of a tree that are tensors."""
    found = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):  # a mapping that is no dict, such as a tokenizer's output
            found += tensors(dict(leaf))
    return found


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree with `function(tensor)` in place of every tensor."""
    return pytree.tree_map_only(Tensor, function, tree)


def map_leaves(kinds: type | tuple[type, ...], function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with `function(leaf)` in place of every leaf of some types."""
    return pytree.tree_map_only(kinds, function, tree, is_leaf=lambda node: isinstance(node, kinds))


def clone(tree: Any) -> Any:
    """The tree with a copy of every tensor, so that nothing in place reaches the original."""
    return map_tensors(Tensor.clone, tree)


def detach(tree: Any) -> Any:
    """The tree with every tensor cut from autograd's graph."""
    return map_tensors(Tensor.detach, tree)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The tree with its floating tensors in another type."""
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, tree)


def moved(tree: Any, device: torch.device) -> Any:
    """The tree with every tensor on a device."""
    return map_tensors(lambda tensor: tensor.to(device), tree)


def shape(tensor: Tensor) -> str:
    """``[4, 10]``: how every error of this library prints a shape."""
    return str(list(tensor.shape))


def shapes(tree: Any) -> str:
    """The shapes of all tensors of a tree, ``[4, 10] and [4]``, or what it is instead."""
    return " and ".join(map(shape, tensors(tree))) or f"{type(tree).__name__} (no tensor)"
