"""First lines of every loss: shapes are checked before anything is computed, and nothing is broadcast."""

from torch import Tensor

from .._tree import shape


def check_same_shape(function: str, hint: str, /, **tensors: Tensor) -> None:
    """Raise unless all tensors have one shape; the hint says what to do about it."""
    first, *others = tensors.values()
    if any(other.shape != first.shape for other in others):
        found = " and ".join(f"{name} {shape(tensor)}" for name, tensor in tensors.items())
        raise ValueError(f"{function}: {found} must have the same shape. {hint}")


def check_same_axes(function: str, layout: str, hint: str, /, **tensors: Tensor) -> None:
    """Raise unless all tensors agree in their first axes, which the layout names: ``"batch, channels"``."""
    axes = layout.count(",") + 1
    first, *others = tensors.values()
    if any(other.shape[:axes] != first.shape[:axes] for other in others):
        found = " and ".join(f"{name} {shape(tensor)}" for name, tensor in tensors.items())
        raise ValueError(f"{function}: {found} must agree in [{layout}]. {hint}")


def check_rank(function: str, layout: str, /, **tensors: Tensor) -> None:
    """Raise unless every tensor has the layout's number of axes, none of them empty.

    ``...`` in a layout stands for any number of axes: ``"..., classes"``, ``"batch, ..."``.
    """
    axes = [axis.strip() for axis in layout.split(",")]
    named = len(axes) - axes.count("...")
    for name, tensor in tensors.items():
        if tensor.ndim < named or (tensor.ndim > named and "..." not in axes):
            raise ValueError(f"{function}: {name} {shape(tensor)} must be [{layout}].")
        if tensor.numel() == 0:
            raise ValueError(
                f"{function}: {name} {shape(tensor)} is empty. A loss needs at least one example."
            )


def check_class_indices(function: str, labels: Tensor, logits: Tensor) -> None:
    """Raise unless labels hold one integer class for each example of the logits."""
    if labels.shape != logits.shape[:-1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{function}: labels {shape(labels)} of {labels.dtype} must be integer classes of shape "
            f"{list(logits.shape[:-1])}, one for each example of the logits {shape(logits)}."
        )
