"""Trees of tensors as rows of numbers, one row an example: what linear algebra on features needs."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._tree import TreeSpec, flatten, shapes, unflatten
from .families._numerics import lifted, safe_sqrt, sum_by_example


class Space(NamedTuple):
    """A tree, and the places of its leaves that vary: the floating-point tensors."""

    leaves: list[Any]
    form: TreeSpec
    places: tuple[int, ...]


def space_of(function: str, name: str, tree: Any) -> Space:
    """A tree, checked: its floating-point tensors have one batch axis, the first."""
    leaves, form = flatten(tree)
    tensors = {at: leaf for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    if any(tensor.is_complex() for tensor in tensors.values()):
        raise ValueError(f"{function}: {name} {shapes(tree)} is complex; give its real and imaginary parts.")
    places = tuple([at for at, tensor in tensors.items() if tensor.is_floating_point()])
    if not places:
        kinds = ", ".join({str(tensor.dtype): "" for tensor in tensors.values()})
        raise ValueError(
            f"{function}: {name} holds no floating-point tensor; it is {shapes(tree)}"
            + (f" of {kinds}." if kinds else ".")
        )
    for at in places:
        if leaves[at].ndim == 0 or leaves[at].numel() == 0 or len(leaves[at]) != len(leaves[places[0]]):
            raise ValueError(
                f"{function}: {name} is {shapes(tree)}; every tensor must begin with one batch axis and hold "
                "at least one number."
            )
    return Space(leaves, form, places)


def varying(space: Space) -> list[Tensor]:
    """The tensors that vary."""
    return [space.leaves[at] for at in space.places]


def leaves_with(space: Space, tensors: list[Tensor]) -> list[Any]:
    """The leaves of a tree with these in place of the tensors that vary."""
    leaves = list(space.leaves)
    for at, tensor in zip(space.places, tensors, strict=True):
        leaves[at] = tensor
    return leaves


def tree_of(space: Space, tensors: list[Tensor]) -> Any:
    """The tree with these in place of the tensors that vary."""
    return unflatten(leaves_with(space, tensors), space.form)


def check_alike(function: str, name: str, own: Space, other: str, theirs: Space) -> None:
    """Raise unless two trees have one form, and their varying tensors the same shapes on one device."""
    same = own.form == theirs.form and own.places == theirs.places
    if not same or [t.shape for t in varying(own)] != [t.shape for t in varying(theirs)]:
        raise ValueError(
            f"{function}: {name} {shapes(own.leaves)} and {other} {shapes(theirs.leaves)} must be alike, in "
            "form and shapes. Bridge one feature into the other's space first."
        )
    devices = {tensor.device for tensor in (*varying(own), *varying(theirs))}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"{function}: {name} and {other} lie on {found}; they must be on one device.")


def rows_of(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of an example in one row `[batch, numbers]`, in float32 at least."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in lifted(*tensors)], 1)


def parts_of(rows: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """Rows as tensors of these shapes and types: `rows_of` backwards."""
    parts, at = list[Tensor](), 0
    for tensor in like:
        size = tensor[0].numel()
        parts.append(rows[:, at : at + size].reshape(tensor.shape).to(tensor.dtype))
        at += size
    return parts


def lengths(rows: Tensor) -> Tensor:
    """The 2-norm of every row, with the gradient 0 at 0."""
    return safe_sqrt(sum_by_example(rows.square()))
