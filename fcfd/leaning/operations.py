"""Which operations have a lean form, and when it runs.

While `Lean` is on, a call of one of torch's functions that `OPERATIONS` lists goes to the function of the
same arguments here. It takes the lean form where the gradient of the input is wanted and no other, and
torch's own operation everywhere else. What is not listed keeps no more than its gradient reads as it is:
linear maps by frozen weights and sums nothing, sigmoid, tanh and softmax their output, layer, group and RMS
norm, GELU, SiLU, hardswish and attention what they are given.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .._modes import has_tangents, is_traced
from .functions import affine, by_shape, convolution, masked, max_pool, pack
from .recomputing import KNOWN, Recomputing, multi_head_attention

aten = torch.ops.aten
_SIXTH = 0.1666666716337204  # the slope of hardsigmoid as torch has it: of single precision, always
_AT_BOUNDS = torch.__version__ < "2.14"  # the gradient of clamp is 1 there, and 0 from then on


class Lean(TorchFunctionMode):
    """While it is on, operations by frozen parameters keep for the gradient what it needs."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        # A compiler's partitioner decides itself, and takes what is computed twice for one.
        self.again = Recomputing() if recompute and not torch.compiler.is_compiling() else None

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        own, kwargs = OPERATIONS.get(function, function), kwargs or {}
        if torch.compiler.is_compiling() or self.again is None:
            return own(*args, **kwargs)
        if function is F.multi_head_attention_forward:
            with self:
                return multi_head_attention(*args, **kwargs)
        return self.again(function, own, args, kwargs) if function in KNOWN else own(*args, **kwargs)


def _wanted(x: Any, *parameters: Any) -> bool:
    """Whether the gradient of an input is wanted, and of no parameter, in reverse mode."""
    return (
        type(x) is Tensor
        and x.requires_grad
        and torch.is_grad_enabled()
        and x.is_floating_point()
        and x.layout is torch.strided
        and x.numel() > 0
        and not any(isinstance(each, Tensor) and each.requires_grad for each in parameters)
        and not has_tangents()
    )


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """One number for every axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


# Convolutions


def _convolution(axes: int) -> Callable[..., Tensor]:
    ordinary = getattr(F, f"conv{axes}d")

    def conv(
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not _wanted(input, weight, bias) or input.ndim != axes + 2:
            result: Tensor = ordinary(input, weight, bias, stride, padding, dilation, groups)
            return result
        stride, dilation = _each(stride, axes), _each(dilation, axes)
        if isinstance(padding, str):
            input, padding = _margins(input, padding, weight.shape[2:], dilation)
        padding = _each(padding, axes)
        run = partial(ordinary, stride=stride, padding=padding, dilation=dilation, groups=groups)
        return convolution(input, weight, bias, run, stride, padding, dilation, False, groups)

    return conv


def _margins(x: Tensor, padding: str, window: Sequence[int], dilation: Sequence[int]) -> tuple[Tensor, Any]:
    """Padding by a word as numbers, and the input, padded where one side gets more than the other."""
    if padding == "valid":
        return x, 0
    total = [step * (size - 1) for step, size in zip(dilation, window, strict=True)]
    more = [side for each in reversed(total) for side in (0, each % 2)]
    return (F.pad(x, more) if any(more) else x), [each // 2 for each in total]


def _transposed(axes: int) -> Callable[..., Tensor]:
    ordinary = getattr(F, f"conv_transpose{axes}d")

    def conv(
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        stride, end = _each(stride, axes), _each(output_padding, axes)
        wide = any(each >= step for each, step in zip(end, stride, strict=True))  # its gradient is cut
        if wide or not _wanted(input, weight, bias) or input.ndim != axes + 2:
            result: Tensor = ordinary(input, weight, bias, stride, padding, end, groups, dilation)
            return result
        padding, dilation = _each(padding, axes), _each(dilation, axes)
        run = partial(
            ordinary, stride=stride, padding=padding, output_padding=end, groups=groups, dilation=dilation
        )
        return convolution(input, weight, bias, run, stride, padding, dilation, True, groups)

    return conv


# Normalisation by what is stored


def _batch_norm(
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    frozen = (running_mean, running_var, weight, bias)
    if training or running_mean is None or not _wanted(input, *frozen):
        return F.batch_norm(input, *frozen, training, momentum, eps)
    return affine(input, *frozen, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    frozen = (running_mean, running_var, weight, bias)
    if use_input_stats or running_mean is None or not _wanted(input, *frozen):
        return F.instance_norm(input, *frozen, use_input_stats, momentum, eps)
    return affine(input, *frozen, eps)


# Activations of two slopes


def _masked(
    x: Tensor,
    where: Callable[[], Tensor],
    run: Callable[[Tensor], Tensor],
    in_place: bool = False,
    inside: float = 1.0,
    outside: float = 0.0,
) -> Tensor:
    """Run an activation whose slope is `inside` where it says so, and `outside` elsewhere."""
    if not _wanted(x):
        return run(x)
    bits = pack(where())
    if in_place and is_traced():  # there a function may not say that it changes its input
        return x.copy_(masked(x.clone(), *bits, run, inside, outside, False))
    return masked(x, *bits, run, inside, outside, in_place)


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    return _masked(input, lambda: input > 0, partial(F.relu, inplace=inplace), inplace)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    run = partial(F.hardtanh, min_val=min_val, max_val=max_val, inplace=inplace)
    return _masked(input, lambda: (input > min_val) & (input < max_val), run, inplace)


def _relu6(input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(input, 0.0, 6.0, inplace)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    run = partial(F.leaky_relu, negative_slope=negative_slope, inplace=inplace)
    return _masked(input, lambda: input > 0, run, inplace, outside=float(negative_slope))


def _rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    if training or not _wanted(input):
        return F.rrelu(input, lower, upper, training, inplace)
    return _leaky_relu(input, (lower + upper) / 2, inplace)


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    if not _wanted(input, weight):
        return F.prelu(input, weight)
    slope = weight if input.ndim < 2 else weight.view(-1, *[1] * (input.ndim - 2))
    return _relu(input) - slope * _relu(-input)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    run = partial(F.hardsigmoid, inplace=inplace)
    return _masked(input, lambda: (input > -3) & (input < 3), run, inplace, inside=_SIXTH)


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    run = partial(F.threshold, threshold=threshold, value=value, inplace=inplace)
    return _masked(input, lambda: input > threshold, run, inplace)


def _clamp(input: Tensor, min: Any = None, max: Any = None, *, inplace: bool = False) -> Tensor:
    run = partial(torch.clamp_ if inplace else torch.clamp, min=min, max=max)
    if isinstance(min, Tensor) or isinstance(max, Tensor) or (min is None and max is None):
        return run(input)
    return _masked(input, lambda: _passes(input, min, max), run, inplace)


def _passes(x: Tensor, low: Any, high: Any) -> Tensor:
    """Where the gradient of clamp is 1."""
    above, below = (torch.ge, torch.le) if _AT_BOUNDS else (torch.gt, torch.lt)
    if low is None or high is None:
        return below(x, high) if low is None else above(x, low)
    return above(x, low) & below(x, high)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    of_bytes = input.device.type != "cpu" or torch.compiler.is_compiling()  # they keep no floats for it
    if of_bytes or not training or not 0 < p < 1 or not _wanted(input):
        return F.dropout(input, p, training, inplace)
    noise = torch.empty_like(input).bernoulli_(1 - p)  # what torch itself draws
    kept = noise > 0
    run = partial(Tensor.mul_ if inplace else torch.mul, other=noise.div_(1 - p))
    return _masked(input, lambda: kept, run, inplace, inside=1 / (1 - p))


# Pooling and padding. A line is pooled as a map of height 1, as in torch.


def _by_shape(axes: int, x: Tensor, run: Callable[..., Tensor], back: Callable[..., Tensor]) -> Tensor:
    if axes > 1:
        return by_shape(x, run, back)
    return by_shape(x.unsqueeze(-2), run, back).squeeze(-2)


def _largest(axes: int, x: Tensor, run: Callable[..., Any], back: Callable[..., Tensor]) -> Tensor:
    places = x.shape[-axes:].numel()
    if axes > 1:
        return max_pool(x, run, back, places)[0]
    return max_pool(x.unsqueeze(-2), run, back, places)[0].squeeze(-2)


def _windows(axes: int, kernel: Any, stride: Any, padding: Any) -> tuple[tuple[int, ...], ...]:
    """Kernel, stride and padding of a pooling, for two axes at least."""
    line = ((1,), (1,), (0,)) if axes == 1 else ((), (), ())
    values = zip(line, (kernel, stride, padding), strict=True)
    return tuple([(*first, *_each(value, axes)) for first, value in values])


def _mean_pool(axes: int) -> Callable[..., Tensor]:
    ordinary = getattr(F, f"avg_pool{axes}d")
    pool = aten.avg_pool3d if axes == 3 else aten.avg_pool2d
    pool_back = aten.avg_pool3d_backward if axes == 3 else aten.avg_pool2d_backward

    def pooled(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Tensor:
        stride = stride or kernel_size
        edges = (ceil_mode, count_include_pad)
        if not _wanted(input):
            divisor = () if axes == 1 else (divisor_override,)
            result: Tensor = ordinary(input, kernel_size, stride, padding, *edges, *divisor)
            return result
        how = (*_windows(axes, kernel_size, stride, padding), *edges, divisor_override)
        return _by_shape(axes, input, lambda x: pool(x, *how), lambda g, x: pool_back(g, x, *how))

    return pooled


def _max_pool(axes: int) -> Callable[..., Any]:
    ordinary = getattr(F, f"max_pool{axes}d")
    pool = aten.max_pool3d_with_indices if axes == 3 else aten.max_pool2d_with_indices
    pool_back = getattr(aten, f"max_pool{max(axes, 2)}d_with_indices_backward")

    def pooled(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        stride = stride or kernel_size
        if return_indices or not _wanted(input):
            return ordinary(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        between = (1,) * (axes == 1) + _each(dilation, axes)
        how = (*_windows(axes, kernel_size, stride, padding), between, ceil_mode)
        return _largest(axes, input, lambda x: pool(x, *how), lambda g, x, at: pool_back(g, x, *how, at))

    return pooled


def _sizes(x: Tensor, wanted: Any, axes: int) -> tuple[int, ...]:
    """The output's sizes of an adaptive pooling, of two axes at least; None stands for the input's own."""
    each = (wanted,) * axes if wanted is None else _each(wanted, axes)
    found = [own if size is None else size for size, own in zip(each, x.shape[-axes:], strict=True)]
    return (1,) * (axes == 1) + tuple(found)


def _adaptive_mean_pool(axes: int) -> Callable[..., Tensor]:
    ordinary = getattr(F, f"adaptive_avg_pool{axes}d")
    pool = aten._adaptive_avg_pool3d if axes == 3 else aten._adaptive_avg_pool2d
    pool_back = aten._adaptive_avg_pool3d_backward if axes == 3 else aten._adaptive_avg_pool2d_backward

    def pooled(input: Tensor, output_size: Any) -> Tensor:
        sizes = _sizes(input, output_size, axes)
        if {*sizes} == {1} or not _wanted(input):  # of size 1 it is a mean, which keeps nothing
            result: Tensor = ordinary(input, output_size)
            return result
        return _by_shape(axes, input, lambda x: pool(x, sizes), lambda g, x: pool_back(g, x))

    return pooled


def _adaptive_max_pool(axes: int) -> Callable[..., Any]:
    ordinary = getattr(F, f"adaptive_max_pool{axes}d")
    pool = aten.adaptive_max_pool3d if axes == 3 else aten.adaptive_max_pool2d
    pool_back = aten.adaptive_max_pool3d_backward if axes == 3 else aten.adaptive_max_pool2d_backward

    def pooled(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        if return_indices or not _wanted(input):
            return ordinary(input, output_size, return_indices)
        sizes = _sizes(input, output_size, axes)
        return _largest(axes, input, lambda x: pool(x, sizes), lambda g, x, at: pool_back(g, x, at))

    return pooled


def _pad(input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
    kind = {"reflect": "reflection", "replicate": "replication"}.get(mode)
    if kind is None or not _wanted(input):
        return F.pad(input, pad, mode, value)
    name = f"{kind}_pad{len(pad) // 2}d"
    run, back = getattr(aten, name), getattr(aten, f"{name}_backward")
    return by_shape(input, lambda x: run(x, pad), lambda g, x: back(g, x, pad))


def _unflatten(input: Tensor, dim: Any, sizes: Any) -> Any:
    """Dynamo does not trace torch's own within a function mode."""
    if not torch.compiler.is_compiling():
        return input.unflatten(dim, sizes)
    at = dim % input.ndim
    return input.view(*input.shape[:at], *sizes, *input.shape[at + 1 :])


# From torch's functions to those of the same arguments


def _by_axes(owner: Any, name: str, make: Callable[[int], Callable[..., Any]]) -> dict[Any, Any]:
    return {getattr(owner, f"{name}{axes}d"): make(axes) for axes in (1, 2, 3)}


OPERATIONS: dict[Any, Callable[..., Any]] = {
    **_by_axes(F, "conv", _convolution),
    **_by_axes(F, "conv_transpose", _transposed),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: partial(_relu, inplace=True),
    Tensor.relu_: partial(_relu, inplace=True),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: partial(_hardtanh, inplace=True),
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: partial(_leaky_relu, inplace=True),
    F.rrelu: _rrelu,
    F.prelu: _prelu,
    Tensor.prelu: _prelu,
    F.hardsigmoid: _hardsigmoid,
    F.threshold: _threshold,
    torch.clamp: _clamp,
    Tensor.clamp: _clamp,
    torch.clamp_: partial(_clamp, inplace=True),
    Tensor.clamp_: partial(_clamp, inplace=True),
    F.dropout: _dropout,
    **_by_axes(F, "avg_pool", _mean_pool),
    **_by_axes(F, "max_pool", _max_pool),
    **_by_axes(torch, "max_pool", _max_pool),
    **_by_axes(F, "adaptive_avg_pool", _adaptive_mean_pool),
    **_by_axes(F, "adaptive_max_pool", _adaptive_max_pool),
    F.pad: _pad,
    Tensor.unflatten: _unflatten,
    torch.unflatten: _unflatten,
}
