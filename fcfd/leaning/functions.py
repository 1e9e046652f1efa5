"""Operations with a gradient of the input alone, which keep for it what it needs and nothing else.

Each computes its value by torch's own operation, to the last bit. Each is linear where it is differentiable,
so the gradient never reads the input: a convolution's needs the weight, a ReLU's a bit for each element, that
of a mean the shape. What is written in `backward` is differentiable itself, so second gradients are right.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

_GATHER = 0x0102040810204080  # times eight bytes of 0 or 1: their bits, in the highest byte
_REPEAT = 0x0101010101010101  # times a byte: eight of it
_SPREAD = 0x8040201008040201 - 2**64  # bit i of byte i, as a signed number


class Bits(NamedTuple):
    """A mask, eight elements a byte, and what restores it."""

    packed: Tensor
    shape: tuple[int, ...]  # in the order of memory
    order: tuple[int, ...]  # the axes in the order of memory


def pack(mask: Tensor) -> Bits:
    """A dense mask of truth values in an eighth of its memory."""
    order = tuple(range(mask.ndim))
    if not torch.compiler.is_compiling():  # strides may be symbols there, and layouts are Inductor's choice
        order = tuple(sorted(order, key=mask.stride, reverse=True))
    laid = mask.permute(order)
    flat = laid.flatten()
    if flat.numel() % 8:
        flat = F.pad(flat, (0, -flat.numel() % 8))
    if torch.compiler.is_compiling():  # Inductor fuses this, and no view as another type
        packed = (flat.view(-1, 8) * 2 ** torch.arange(8, device=mask.device)).sum(1)
    else:
        packed = flat.view(torch.int64).mul(_GATHER).bitwise_right_shift_(56)
    return Bits(packed.to(torch.uint8), tuple(laid.shape), order)


def unpack(bits: Bits) -> Tensor:
    """The mask, as bytes of which every true one is positive."""
    if torch.compiler.is_compiling():
        weights = 2 ** torch.arange(8, device=bits.packed.device, dtype=torch.uint8)
        flat = (bits.packed.unsqueeze(1) & weights).flatten()
    else:
        flat = bits.packed.to(torch.int64).mul_(_REPEAT).bitwise_and_(_SPREAD).view(torch.uint8)
    laid = flat[: prod(bits.shape)].view(bits.shape)
    return laid.permute(sorted(range(len(bits.order)), key=bits.order.__getitem__))


def check_frozen(needs_gradient: Sequence[bool]) -> None:
    """Refuse a gradient that is not computed. Inside `torch.vmap` no tensor tells that it needs one."""
    if any(needs_gradient):
        raise RuntimeError(
            "lean: a parameter that looks frozen needs a gradient, outside of a transform of torch.func. Run "
            "the column without fcfd.lean there, or detach its parameters before (fcfd.frozen)."
        )


class How(NamedTuple):
    """The numbers of a convolution, one for each axis of its maps."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    groups: int


class Convolution(Function):
    """A convolution of frozen weights; its gradient is the transposed one, and the other way round."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, run: Callable[..., Tensor], *how: Any
    ) -> Tensor:
        return run(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, _, *how = inputs
        check_frozen(ctx.needs_input_grad[1:])
        ctx.save_for_backward(weight)
        ctx.how, ctx.sizes, ctx.dtype = How(*how), x.shape[2:], x.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,), how = ctx.saved_tensors, ctx.how
        steps = how.stride, how.padding, how.dilation
        left = (0,) * len(ctx.sizes)
        if not how.transposed:  # several sizes lead to one where a stride does not reach the end
            rows = zip(ctx.sizes, gradient.shape[2:], *steps, weight.shape[2:], strict=True)
            left = tuple(
                size - (end - 1) * stride + 2 * padding - dilation * (window - 1) - 1
                for size, end, stride, padding, dilation, window in rows
            )
        weight = weight.to(gradient.dtype)  # under autocast the forward ran in half precision
        back = torch.convolution(gradient, weight, None, *steps, not how.transposed, left, how.groups)
        return back.to(ctx.dtype), *[None] * 8


class Affine(Function):
    """Batch norm by running statistics: a factor and a summand for each channel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, variance: Tensor, weight: Any, bias: Any, eps: float) -> Tensor:
        return torch.batch_norm(
            x, weight, bias, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, variance, weight, _, ctx.eps = inputs
        check_frozen(ctx.needs_input_grad[1:])
        ctx.save_for_backward(variance, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        variance, weight = ctx.saved_tensors
        full = torch.promote_types(torch.float32, variance.dtype)
        factor = (variance.to(full) + ctx.eps).rsqrt()
        if weight is not None:
            factor = factor * weight
        factor = factor.view(-1, *[1] * (gradient.ndim - 2))
        return (gradient * factor).to(gradient.dtype), *[None] * 5


class Masked(Function):
    """An operation of a constant slope where a mask is true, and of another one elsewhere."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        packed: Tensor,
        shape: tuple[int, ...],
        order: tuple[int, ...],
        run: Callable[[Tensor], Tensor],
        inside: float,
        outside: float,
        in_place: bool,
    ) -> Tensor:
        return run(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, packed, ctx.shape, ctx.order, _, ctx.inside, ctx.outside, in_place = inputs
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(packed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (packed,) = ctx.saved_tensors
        mask = unpack(Bits(packed, ctx.shape, ctx.order))
        if ctx.outside:  # both operations read a mask of bytes, and are as fast as with floats
            back = torch.ops.aten.leaky_relu_backward(gradient, mask, ctx.outside / ctx.inside, False)
        else:
            back = torch.ops.aten.threshold_backward(gradient, mask, 0)
        return back if ctx.inside == 1 else back * ctx.inside, *[None] * 7


class ByShape(Function):
    """An operation whose gradient reads of its input the shape alone: pooling by means, padding."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, run: Callable[[Tensor], Tensor], back: Callable[..., Tensor]) -> Tensor:
        return run(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.back = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.back(gradient, _hollow(gradient, ctx.shape)), None, None


class MaxPool(Function):
    """The largest of each window, with where it was in the smallest integers that can say it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, run: Callable[[Tensor], tuple[Tensor, Tensor]], back: Callable[..., Tensor], places: int
    ) -> tuple[Tensor, Tensor]:
        y, where = run(x)
        return y, where.to(_least(places))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, _, ctx.back, _ = inputs
        ctx.shape = x.shape
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        (where,) = ctx.saved_tensors
        return ctx.back(gradient, _hollow(gradient, ctx.shape), where.long()), None, None, None


def _hollow(like: Tensor, shape: torch.Size) -> Tensor:
    """A tensor of a shape, without memory: for operations that ask for the input and read its shape."""
    return like.new_zeros(1).expand(shape)


def _least(count: int) -> torch.dtype:
    """The smallest type that holds the numbers below a count."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if count <= torch.iinfo(dtype).max + 1:
            return dtype
    return torch.int64


convolution: Callable[..., Tensor] = Convolution.apply
affine: Callable[..., Tensor] = Affine.apply
masked: Callable[..., Tensor] = Masked.apply
by_shape: Callable[..., Tensor] = ByShape.apply
max_pool: Callable[..., tuple[Tensor, Tensor]] = MaxPool.apply
