"""From a loss to a loss: outputs with a value at every position, of which some may not count.

A loss here compares one value for each example. These transforms let it compare one for each pixel or token:
``dense(kl)``, ``masked(squared_error)``, ``dense(ignoring(cross_entropy, index=255))``,
``next_token(ignoring(cross_entropy))``. A result is called as the loss is, perhaps with a mask behind the
other tensors, so that it stands in a term: ``Term(masked(kl), "ss", ("tt", "Mask"))``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._text import check_integer
from .._tree import map_leaves, shape, tensors as tensors_of
from ._checks import check_one_device, check_tensor, is_integer
from .heads import Logits, _fused

Loss: TypeAlias = Callable[..., Tensor]


def dense(loss: Loss) -> Loss:
    """A loss of maps with the classes on axis 1, from a loss with the classes last.

    ```
    out = loss(positions(prediction), positions(target), ...)
    positions: [batch, classes, *places] to [batch, positions, classes]
               labels [batch, *places] to [batch, positions]
    ```

    Args:
        loss: A loss `(prediction, target or labels, ...)` whose last axis is the class axis: `kl`,
            `cross_entropy`, `dkd`, `cosine_distance`, another transform of this page, ...

    Returns:
        A loss `(prediction, ...)` of `[batch, classes, *places]`, as segmentation has them: a second map, or
        soft labels, of the same axes; labels, a mask or a temperature by position `[batch, *places]`. What
        has another shape, and other hyper-parameters, go to the loss as they are. It returns what the loss
        does: `[batch, positions]`, or a scalar of `masked` and `ignoring`.

    Raises:
        TypeError: The loss cannot be called, or the prediction is no tensor.
        ValueError: The prediction has no places.

    Example:
        >>> from fcfd.losses import cross_entropy
        >>> logits, labels = torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
        >>> dense(cross_entropy)(logits, labels).shape
        torch.Size([2, 64])
        >>> dense(ignoring(cross_entropy, index=255))(logits, labels)
        tensor(1.3863)
    """
    _check_loss("dense", loss)
    return partial(_dense, loss)


def masked(loss: Loss) -> Loss:
    """The mean of a loss over the positions that a mask keeps.

    ```
    out = Σ_i mask_i · loss(prediction_i, target_i, ...) / Σ_i mask_i
    i over batch and positions
    ```

    Args:
        loss: A loss by example: it is given every position as an example, `[batch · positions, ...]`, and
            must return one value for each.

    Returns:
        A loss with one more argument, the mask `[batch, positions]` (or `[batch]`), behind the others:
        `(prediction, target, mask)`, `(prediction, target, labels, mask)`. The mask is bool, or 0 and 1;
        weights from 0 to 1 weigh. All other tensors begin with the mask's axes. It returns a scalar, 0 if
        nothing counts. Nothing that is masked out, not even NaN, reaches the value or a gradient. A
        temperature may be given by position.

    Raises:
        TypeError: The loss cannot be called, or the mask is no tensor.
        ValueError: A tensor does not begin with the mask's axes, or the loss gives no value by position.

    Example:
        >>> from fcfd.losses import squared_error
        >>> tokens, mask = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> masked(squared_error)(tokens, torch.zeros(1, 3, 1), mask)
        tensor(2.5000)
    """
    _check_loss("masked", loss)
    return partial(_masked, loss)


def ignoring(loss: Loss, *, index: int = -100) -> Loss:
    """The mean of a loss over the positions whose label is not the one to be ignored.

    ```
    out = Σ_i loss(prediction_i, ..., labels_i) [labels_i ≠ index] / Σ_i [labels_i ≠ index]
    ```

    Of `cross_entropy` it is `torch.nn.functional.cross_entropy(..., ignore_index=index)`, but 0, not NaN, if
    nothing counts.

    Args:
        loss: A loss by example whose last tensor are integer labels: `cross_entropy`, `dkd`, ...
        index: The label that does not count; −100 is what tokenisers and torch use, 255 many data sets of
            segmentation.

    Returns:
        A loss that is called as the given one, of logits `[batch, positions, classes]` or
        `[batch, classes]`. It returns a scalar. Nothing that is ignored reaches the value or a gradient.

    Raises:
        TypeError: The loss cannot be called, or the labels are not integers.
        ValueError: A tensor does not begin with the labels' axes, or the loss gives no value by position.

    Example:
        >>> from fcfd.losses import cross_entropy
        >>> ignoring(cross_entropy)(torch.zeros(1, 3, 4), torch.tensor([[2, -100, 0]]))
        tensor(1.3863)
    """
    _check_loss("ignoring", loss)
    check_integer("ignoring", "index", index, least=-(2**63))
    return partial(_ignoring, loss, index)


def next_token(loss: Loss) -> Loss:
    """A loss of language models: what is predicted at a position is compared with the token behind it.

    ```
    out = loss(prediction[:, :-1], target[:, :-1], labels[:, 1:], mask[:, 1:])
    ```

    Args:
        loss: A loss of logits `[batch, positions, classes]`: `cross_entropy`, `kl`, `ignoring(...)`,
            `masked(...)`, ...

    Returns:
        A loss of the logits of whole sequences. Tensors with as many axes as the prediction are the
        teacher's, at the same positions; labels and masks `[batch, positions]` are those of the tokens
        themselves. It returns what the loss does: `next_token(ignoring(cross_entropy))` is the loss of
        causal models of transformers.

    Raises:
        TypeError: The loss cannot be called, or an argument is no tensor.
        ValueError: The prediction has fewer than two positions, or a tensor has others.

    Example:
        >>> from fcfd.losses import cross_entropy
        >>> logits, tokens = torch.zeros(1, 3, 4), torch.tensor([[2, 1, -100]])
        >>> next_token(ignoring(cross_entropy))(logits, tokens)
        tensor(1.3863)
    """
    _check_loss("next_token", loss)
    return partial(_next_token, loss)


# What they return: functions of a module, so that they can be pickled and traced


def _dense(loss: Loss, prediction: Tensor, *others: Any, **hyper: Any) -> Tensor:
    check_tensor("dense", "prediction", prediction)
    if prediction.ndim < 3:
        raise ValueError(f"dense: prediction {shape(prediction)} must be [batch, classes, *places].")
    places = prediction.shape[:1] + prediction.shape[2:]

    def positions(value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape == places:
            return value.flatten(1)
        if isinstance(value, Tensor) and value.ndim == prediction.ndim:
            return value.flatten(2).transpose(1, 2)
        return value

    at_positions = {name: positions(value) for name, value in hyper.items()}
    return loss(*map(positions, (prediction, *others)), **at_positions)


def _masked(loss: Loss, *tensors: Tensor, **hyper: Any) -> Tensor:
    *others, mask = tensors
    check_tensor("masked", "mask", mask)
    if mask.is_complex():
        raise TypeError(f"masked: mask {shape(mask)} of {mask.dtype} must be bool, or 0 and 1.")
    return _mean_of_what_counts("masked", loss, mask, others, hyper)


def _ignoring(loss: Loss, index: int, *tensors: Tensor, **hyper: Any) -> Tensor:
    labels = tensors[-1]
    check_tensor("ignoring", "labels", labels)
    if not is_integer(labels):
        raise TypeError(f"ignoring: labels {shape(labels)} of {labels.dtype} must be integer classes.")
    return _mean_of_what_counts("ignoring", loss, labels != index, tensors, hyper)


def _next_token(loss: Loss, prediction: Any, *others: Any, **hyper: Any) -> Tensor:
    logits = prediction.hidden if isinstance(prediction, Logits) else prediction
    check_tensor("next_token", "prediction", logits)
    if logits.ndim < 3 or logits.shape[1] < 2:
        raise ValueError(
            f"next_token: prediction {shape(logits)} must be [batch, positions, classes], at least two "
            "positions."
        )

    def shifted(name: str, tensor: Tensor) -> Tensor:
        if tensor.shape[:2] != logits.shape[:2]:
            raise ValueError(
                f"next_token: {name} {shape(tensor)} must have the positions of the prediction "
                f"{shape(logits)}."
            )
        return tensor[:, :-1] if tensor.ndim == logits.ndim else tensor[:, 1:]

    found = []
    for at, other in enumerate((prediction, *others), start=1):
        _check_tensors("next_token", f"tensor {at}", other)
        found.append(_at_tokens(partial(shifted, f"tensor {at}"), other))
    return loss(*found, **hyper)


# What they share


def _check_loss(function: str, loss: Loss) -> None:
    if not callable(loss):
        raise TypeError(f"{function}: loss is of type {type(loss).__name__} and must be a function.")


def _mean_of_what_counts(
    function: str, loss: Loss, mask: Tensor, values: Sequence[Any], hyper: Mapping[str, Any]
) -> Tensor:
    """The weighted mean of a loss that is given every position as an example, or all that count."""
    _check_positions(function, mask, values)
    left_out, kept = mask == 0, _kept(mask, values)

    def rows(value: Any, neutral: int) -> Any:
        flat = _at_tokens(lambda tensor: _rows(tensor, left_out, neutral), value)
        return flat if kept is None else _at_tokens(lambda tensor: tensor[kept], flat)

    by_position = {
        name: rows(value, 1)
        for name, value in hyper.items()
        if isinstance(value, Tensor) and value.shape == mask.shape
    }
    examples = [rows(value, 0) for value in values]
    counted = mask.flatten() if kept is None else mask.flatten()[kept]
    weight = counted if counted.is_floating_point() else counted.float()
    if isinstance(loss, partial) and loss.func is _fused:
        found: Tensor = loss(*examples, weight=weight, **{**hyper, **by_position})
        return found / _or_one(weight.to(found.dtype).sum())
    found = loss(*examples, **{**hyper, **by_position})
    if found.shape != counted.shape:
        raise ValueError(
            f"{function}: the loss must give one value for each of {len(counted)} positions, and gave "
            f"{shape(found)}. One that couples the batch, or takes a mean, has none to leave out."
        )
    weight = weight.to(found.dtype)
    return torch.where(counted == 0, 0.0, found * weight).sum() / _or_one(weight.sum())


def _or_one(total: Tensor) -> Tensor:
    return torch.where(total == 0, 1.0, total)


def _kept(mask: Tensor, values: Sequence[Any]) -> Tensor | None:
    """The positions that count, where a head would multiply the others for nothing; else none, for all.

    How many there are is read from the device. A compiler cannot, and computes them all.
    """
    heads = any(isinstance(value, Logits) for value in values)
    if not heads or mask.is_meta or torch.compiler.is_compiling():
        return None
    (kept,) = mask.flatten().nonzero(as_tuple=True)
    return kept if len(kept) else None


def _check_tensors(function: str, name: str, value: Any) -> None:
    """Raise unless a value is a tensor, or a tree that holds one."""
    if not tensors_of(value):
        check_tensor(function, name, value)


def _check_positions(function: str, mask: Tensor, values: Sequence[Any]) -> None:
    """Raise unless all tensors begin with the axes of a mask."""
    for at, value in enumerate(values, start=1):
        name = f"tensor {at}"
        _check_tensors(function, name, value)
        for tensor in (value.hidden,) if isinstance(value, Logits) else tensors_of(value):
            check_one_device(function, **{name: tensor, "mask": mask})
            if mask.ndim == 0 or tensor.shape[: mask.ndim] != mask.shape:
                raise ValueError(
                    f"{function}: {name} {shape(tensor)} must begin with the axes of the mask or labels, "
                    f"{shape(mask)}. For a map with the classes on axis 1, use `dense({function}(loss))`."
                )


def _at_tokens(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A value with all changed that belongs to its tokens: of `Logits` the hidden states."""

    def changed(leaf: Tensor | Logits) -> Tensor | Logits:
        if isinstance(leaf, Logits):
            return leaf._replace(hidden=change(leaf.hidden))
        return change(leaf)

    return map_leaves((Logits, Tensor), changed, value)


def _rows(tensor: Tensor, left_out: Tensor, neutral: int) -> Tensor:
    """A tensor with its positions as examples, those left out set to something neutral."""
    axes = left_out.ndim
    spread = left_out.reshape(*left_out.shape, *[1] * (tensor.ndim - axes))
    return tensor.masked_fill(spread, neutral).flatten(0, axes - 1)
