"""First lines of every loss: what is given is checked before anything is computed, and nothing is broadcast.

A wrong kind of thing (a list, integers where numbers are meant) is a `TypeError`. A wrong shape, device or
number is a `ValueError`. Both name the function and the argument. The values of tensors are never read:
the host would have to wait for the device.
"""

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from .._text import check_number
from .._tree import shape
from ._numerics import lifted

_CLASSES = "Give both networks the same classes, or select the shared ones before the loss."


# Tensors, by family: checked, and in one floating type


def floats(function: str, layout: str, /, **tensors: Tensor) -> list[Tensor]:
    """The tensors in one type, once they are floating-point, of the layout and on one device.

    ``...`` in a layout stands for any number of axes: ``"..., classes"``, ``"batch, ..."``.
    """
    if _are_usual(layout, tensors):
        return list(tensors.values())
    for name, tensor in tensors.items():
        check_tensor(function, name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(
                f"{function}: {name} {shape(tensor)} of {tensor.dtype} must hold floating-point numbers. "
                "Convert it first, as by `.float()`."
            )
    check_layout(function, layout, **tensors)
    check_one_device(function, **tensors)
    return lifted(*tensors.values())


def alike(function: str, layout: str, hint: str, /, **tensors: Tensor) -> list[Tensor]:
    """`floats` that have one shape; the hint says what to do where they differ."""
    checked = floats(function, layout, **tensors)
    check_same_shape(function, hint, **tensors)
    return checked


def agreeing(function: str, layout: str, shared: str, hint: str, /, **tensors: Tensor) -> list[Tensor]:
    """`floats` that agree in their first axes, as in ``"batch, channels"``."""
    checked = floats(function, layout, **tensors)
    check_same_axes(function, shared, hint, **tensors)
    return checked


def _are_usual(layout: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors pass every check of `floats` at a glance; small losses spend time on these."""
    more = "..." in layout
    named = layout.count(",") + 1 - more
    devices = []
    for tensor in tensors.values():
        if type(tensor) is not Tensor or tensor.dtype is not torch.float32 or tensor.numel() == 0:
            return False
        if tensor.ndim != named and (tensor.ndim < named or not more):
            return False
        devices.append(tensor.device)
    return devices.count(devices[0]) == len(devices)


def class_logits(function: str, /, **logits: Tensor) -> Tensor:
    """The logits of one network, checked for a softmax."""
    (given,) = logits.values()
    if _is_usual(given, given):
        return given
    (checked,) = floats(function, "..., classes", **logits)
    check_classes(function, **logits)
    return checked


def logit_pair(function: str, prediction: Tensor, target: Tensor) -> list[Tensor]:
    """The logits of both networks, checked for a softmax."""
    if _is_usual(prediction, target):
        return [prediction, target]
    pair = alike(function, "..., classes", _CLASSES, prediction=prediction, target=target)
    check_classes(function, prediction=prediction)
    return pair


def _is_usual(prediction: object, target: object) -> bool:
    """Whether two tensors pass every check of `logit_pair` at a glance; small losses spend time on these."""
    return (
        type(prediction) is type(target) is Tensor
        and prediction.dtype is target.dtype is torch.float32
        and (prediction is target or prediction.shape == target.shape)
        and prediction.device == target.device
        and prediction.ndim in (2, 3)
        and prediction.shape[-1] > 1
        and prediction.numel() > 0
    )


def binary_logits(function: str, /, **logits: Tensor) -> list[Tensor]:
    """Logits of one shape, each read by a sigmoid."""
    pair = alike(function, "..., classes", _CLASSES, **logits)
    check_positions(function, **logits)
    return pair


# One property at a time


def check_tensor(function: str, name: str, value: object) -> None:
    """Raise unless a value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: {name} is of type {type(value).__name__} and must be a tensor. "
            "Make it one first, as by `torch.as_tensor`."
        )


def check_one_device(function: str, /, **tensors: Tensor) -> None:
    """Raise unless all tensors lie on one device."""
    first, *others = tensors.values()
    for other in others:
        if other.device != first.device:
            found = " and ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
            raise ValueError(f"{function}: {found} must be on the same device.")


def check_layout(function: str, layout: str, /, **tensors: Tensor) -> None:
    """Raise unless every tensor has the layout's number of axes, none of them empty."""
    more = "..." in layout
    named = layout.count(",") + 1 - more
    for name, tensor in tensors.items():
        if tensor.ndim < named or (tensor.ndim > named and not more):
            raise ValueError(f"{function}: {name} {shape(tensor)} must be [{layout}].")
        if tensor.numel() == 0:
            raise ValueError(
                f"{function}: {name} {shape(tensor)} is empty. A loss needs at least one example."
            )


def check_same_shape(function: str, hint: str, /, **tensors: Tensor) -> None:
    """Raise unless all tensors have one shape; the hint says what to do about it."""
    first, *others = tensors.values()
    for other in others:
        if other.shape != first.shape:
            raise ValueError(f"{function}: {named_shapes(tensors)} must have the same shape. {hint}")


def check_same_axes(function: str, layout: str, hint: str, /, **tensors: Tensor) -> None:
    """Raise unless all tensors agree in their first axes, which the layout names: ``"batch, channels"``."""
    axes = layout.count(",") + 1
    first, *others = tensors.values()
    for other in others:
        if other.shape[:axes] != first.shape[:axes]:
            raise ValueError(f"{function}: {named_shapes(tensors)} must agree in [{layout}]. {hint}")


def named_shapes(tensors: dict[str, Tensor]) -> str:
    """``prediction [4, 10] and target [4, 7]``, for an error."""
    return " and ".join(f"{name} {shape(tensor)}" for name, tensor in tensors.items())


def check_classes(function: str, /, **logits: Tensor) -> None:
    """Raise unless the last axis can hold the classes of a softmax."""
    check_positions(function, **logits)
    for name, tensor in logits.items():
        if tensor.shape[-1] == 1:
            raise ValueError(
                f"{function}: {name} {shape(tensor)} has one class, whose softmax is always 1. Use "
                "`squared_error` for a regression, or `binary_cross_entropy` and `binary_kl` for one logit "
                "that a sigmoid reads."
            )


def check_positions(function: str, /, **tensors: Tensor) -> None:
    """Raise where the last axis may be the width of a map."""
    for name, tensor in tensors.items():
        if tensor.ndim > 3:
            raise ValueError(
                f"{function}: {name} {shape(tensor)} must be [batch, classes] or [batch, positions, "
                "classes]. For a map with the classes on axis 1, use `dense(loss)`; where they are last, "
                "flatten the positions."
            )


# Integers


def class_column(function: str, labels: Tensor, /, **logits: Tensor) -> Tensor:
    """`class_labels` as a column `[..., 1]` that selects from the logits."""
    return class_labels(function, labels, **logits).unsqueeze(-1)


def class_labels(function: str, labels: Tensor, /, **logits: Tensor) -> Tensor:
    """Integer classes, one for each example of the logits, as torch wants them."""
    ((name, tensor),) = logits.items()
    check_tensor(function, "labels", labels)
    if labels.dtype is torch.int64 and labels.shape == tensor.shape[:-1] and labels.device == tensor.device:
        return labels
    integers = is_integer(labels)
    if not integers or labels.shape != tensor.shape[:-1]:
        error = ValueError if integers else TypeError
        on_axis_1 = tensor.ndim > 2 and labels.shape == tensor.shape[:1] + tensor.shape[2:]
        hint = " For classes on axis 1, use `dense(loss)`." if on_axis_1 else ""
        raise error(
            f"{function}: labels {shape(labels)} of {labels.dtype} must be integer classes of shape "
            f"{list(tensor.shape[:-1])}, one for each example of {name} {shape(tensor)}.{hint}"
        )
    check_one_device(function, labels=labels, **logits)
    return labels.long()


def are_probabilities(function: str, labels: Tensor, prediction: Tensor) -> bool:
    """Whether labels are probabilities `[..., classes]`, and not classes `[...]`."""
    check_tensor(function, "labels", labels)
    if labels.shape != prediction.shape:
        return False
    if not labels.is_floating_point():
        raise TypeError(
            f"{function}: labels {shape(labels)} of {labels.dtype} have one entry for each class of "
            f"prediction {shape(prediction)}. Where several classes may hold at once, use "
            "`binary_cross_entropy`. Probabilities that sum to 1 must be floating-point."
        )
    check_one_device(function, prediction=prediction, labels=labels)
    return True


def indices(function: str, layout: str, /, **index: Tensor) -> Tensor:
    """Integers of the layout that point into something, as torch wants them."""
    ((name, tensor),) = index.items()
    check_tensor(function, name, tensor)
    if not is_integer(tensor):
        raise TypeError(f"{function}: {name} {shape(tensor)} of {tensor.dtype} must hold integers.")
    check_layout(function, layout, **index)
    return tensor.long()


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds integers; bool does not count."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


# Hyper-parameters


def per_example(
    function: str,
    value: float | Tensor,
    name: str = "temperature",
    bounds: Mapping[str, float] | None = None,
    /,
    **logits: Tensor,
) -> float | Tensor:
    """A number above 0, or within other bounds, or one for each example, shaped to meet `[..., classes]`."""
    if bounds is None and type(value) is float and 0 < value < inf:
        return value
    if not isinstance(value, Tensor) or value.ndim == 0:
        check_number(function, name, value, **(bounds or {"above": 0.0}))
        return value
    ((given, tensor),) = logits.items()
    if value.shape != tensor.shape[:-1]:
        raise ValueError(
            f"{function}: {name} {shape(value)} must be a number or have one value for each "
            f"example, {list(tensor.shape[:-1])}, of {given} {shape(tensor)}."
        )
    floats(function, "...", **{name: value})
    check_one_device(function, **{name: value}, **logits)
    return value.unsqueeze(-1)


def check_finite(function: str, /, **numbers: float | Tensor) -> None:
    """Raise unless every value is a finite number, or a floating-point tensor of one number, unread."""
    for name, value in numbers.items():
        check_number(function, name, value)
