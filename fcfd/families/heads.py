"""Losses of tokens whose logits never exist as a whole: from the hidden states and the head, chunk by chunk.

`Logits` stands for ``hidden @ weight.T + bias`` that nobody has computed yet. `chunked` and `fused` take a
loss of logits with one value for each token, and make one of `Logits`. Both hold the logits of one chunk at
a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_callable, check_integer
from .._tree import flatten, shape, unflatten
from ._checks import check_tensor

Loss: TypeAlias = Callable[..., Tensor]

MEMORY, ON_CPU = 2**29, 2**26
"""Bytes of a chunk. A CPU's allocator keeps tensors below 32 MiB; larger ones are new pages each time, which
takes longer than what is computed in them. On a GPU small chunks wait for launches."""
_LEAST = 128
"""Tokens of a chunk on a CPU, if they fit: each chunk reads the heads once, and adds to their gradients."""
_COPIES = 4
"""Tensors as large as a network's logits that a loss and its gradient hold at once, roughly."""


class Logits(NamedTuple):
    """Logits ``hidden @ weight.T + bias`` that are not computed yet.

    Args:
        hidden: What the head reads, `[..., width]`: one row for each token.
        weight: The head, `[classes, width]`. It may be the embedding of a model that ties the two.
        bias: `[classes]`, or none.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


def chunked(loss: Loss, *, memory: int | None = None) -> Loss:
    """A loss of hidden states and heads, from a loss of logits with one value for each token.

    ```
    out = loss(logits(prediction), logits(target), ...)
    logits(x) = x.hidden @ x.weight.T + x.bias,    never more than a chunk of tokens at once
    ```

    A chunk is multiplied and measured, and its logits are forgotten; the backward pass computes them again.
    Where a mean is all that is wanted, `fused` is faster. Gradients of a head are added up in float32.

    Args:
        loss: `kl`, `cross_entropy`, `jsd`, `dkd`, ...: any loss of `[tokens, classes]` that returns
            `[tokens]`. What it closes over gets no gradient; hyper-parameters of a `functools.partial` do.
        memory: Bytes that a chunk may take, roughly: it has memory / (16 · classes of all networks) tokens.
            By default 512 MiB; on a CPU 64 MiB, or up to 512 for as many as 128 tokens.

    Returns:
        A loss `(prediction, ...)` of `Logits`. A target is `Logits`, a tensor, or a tree of tensors, such as
        the ids and log-probabilities of a stored teacher; each tensor begins with the tokens' axes. So may
        hyper-parameters, such as a temperature `[...]`. It returns `[...]`, one value for each token.
        `masked`, `ignoring` and `next_token` take it as they take any loss, and drop what does not count
        before the product: ``next_token(ignoring(chunked(cross_entropy)))``.

    Raises:
        TypeError: The loss cannot be called, or the prediction is not `Logits`.
        ValueError: Shapes do not fit, the loss gives no value by token, or it closes over a tensor that
            wants a gradient.

    Example:
        >>> from fcfd.losses import kl
        >>> student = Logits(torch.zeros(2, 3, 8), torch.zeros(50, 8))
        >>> teacher = Logits(torch.zeros(2, 3, 16), torch.zeros(50, 16))
        >>> chunked(kl)(student, teacher).shape
        torch.Size([2, 3])

    Reference:
        The chunks are those of linkedin/Liger-Kernel and huggingface/trl, which offer a few losses; written
        from the idea. `torch.func.grad` and `torch.compile` pass through; forward-mode derivatives do not.
    """
    _check("chunked", loss, memory)
    return partial(_chunked, loss, memory)


def fused(loss: Loss, *, memory: int | None = None) -> Loss:
    """The mean of a loss of hidden states and heads, with its gradient taken in the forward pass.

    ```
    out = (1/n) Σ_i loss(logits(prediction)_i, logits(target)_i, ...)
    logits(x) = x.hidden @ x.weight.T + x.bias,    never more than a chunk of tokens at once
    ```

    No logits are computed twice, unlike in `chunked`, for the price of a mean whose weights are known. The
    gradient of a head is held from the forward to the backward pass, added up in float32.

    Args:
        loss: As in `chunked`.
        memory: As in `chunked`.

    Returns:
        A loss that is called as that of `chunked`, and returns a scalar; called with ``weight=[...]``, the
        sum Σ weight_i · loss_i. ``masked(fused(kl))`` and ``ignoring(fused(cross_entropy))`` are means over
        what counts. It has no second derivative. Under `torch.compile` it computes logits twice, as
        `chunked` does.

    Raises:
        TypeError: As `chunked`.
        ValueError: As `chunked`.

    Example:
        >>> from fcfd.losses import cross_entropy
        >>> student = Logits(torch.zeros(2, 3, 8), torch.zeros(50, 8))
        >>> fused(cross_entropy)(student, torch.zeros(2, 3, dtype=torch.long))
        tensor(3.9120)

    Reference:
        The order of work is that of linkedin/Liger-Kernel `fused_linear_cross_entropy`; written from the
        idea.
    """
    _check("fused", loss, memory)
    return partial(_fused, loss, memory)


# What they return: functions of a module, so that they can be pickled and traced


def _chunked(loss: Loss, memory: int | None, *values: Any, **hyper: Any) -> Tensor:
    work, tensors = _work("chunked", loss, memory, values, hyper)
    return _recomputed(work, tensors).view(work.tokens)


def _fused(
    loss: Loss, memory: int | None, *values: Any, weight: Tensor | None = None, **hyper: Any
) -> Tensor:
    work, tensors = _work("fused", loss, memory, values, hyper)
    rows = len(tensors[0])
    if weight is None:
        return _summed(work, tensors[0].new_ones(rows, dtype=torch.float32), tensors) / rows
    check_tensor("fused", "weight", weight)
    if weight.shape != work.tokens:
        raise ValueError(
            f"fused: weight {shape(weight)} must have the axes of the tokens, {list(work.tokens)}."
        )
    if weight.requires_grad:
        raise ValueError("fused: the weights of tokens want a gradient; only `chunked` gives them one.")
    return _summed(work, weight.flatten(), tensors)


def _summed(work: "_Work", weight: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    if torch.compiler.is_compiling():  # where a second derivative could not be refused
        values = _recomputed(work, tensors)
        return (values * weight.to(values.dtype)).sum()
    total: Tensor = _Summed.apply(work, weight, *tensors)[0]  # type: ignore[no-untyped-call]
    return total


def _recomputed(work: "_Work", tensors: Sequence[Tensor]) -> Tensor:
    values: Tensor = _Recomputed.apply(work, *tensors)  # type: ignore[no-untyped-call]
    return values


# The work that is done by chunks


class _Work(NamedTuple):
    """What a chunk is computed from, beside tensors: those are flat, so that autograd sees each."""

    function: str
    loss: Loss
    form: Any
    """Of the arguments, in which `Logits` are leaves."""
    leaves: tuple[Any, ...]
    """The arguments that are no tensors; for a tensor and for `Logits` their numbers of tensors."""
    cut: tuple[bool, ...]
    """For each tensor, whether it has a row for each token."""
    wanted: tuple[bool, ...]
    """For each tensor, whether it wants a gradient."""
    tokens: torch.Size
    ends: tuple[int, ...]
    autocast: tuple[str, bool, torch.dtype] | None


class _Tensors(NamedTuple):
    """A place of an argument that is a tensor, or `Logits` of some."""

    number: int
    logits: bool


def _work(
    function: str, loss: Loss, memory: int | None, values: Sequence[Any], hyper: Mapping[str, Any]
) -> tuple[_Work, list[Tensor]]:
    """The arguments taken apart: tokens as rows, and what a chunk needs to put them together again."""
    if isinstance(loss, partial) and not loss.args:  # what is bound by name may learn; partials are flat
        hyper = {**loss.keywords, **hyper}
        loss = loss.func
    if not (values and isinstance(values[0], Logits)):
        kind = type(values[0]).__name__ if values else "nothing"
        raise TypeError(
            f"{function}: prediction is of type {kind} and must be `Logits` of hidden states and a head, as "
            "`fcfd.deferred(column, weight)` makes the last stage return. Logits that are there go to the "
            "loss itself."
        )
    tokens = values[0].hidden.shape[:-1]
    leaves, form = flatten((tuple(values), dict(hyper)), whole=Logits)
    given = len(flatten(tuple(values), whole=Logits)[0])
    kept, tensors, cut, classes = [], [], [], 0
    for at, leaf in enumerate(leaves):
        if isinstance(leaf, Logits):
            _check_logits(function, at + 1, leaf, tokens)
            classes += len(leaf.weight)
            parts = [leaf.hidden, leaf.weight] + ([] if leaf.bias is None else [leaf.bias])
            cuts = [True, False, False][: len(parts)]
        elif isinstance(leaf, Tensor):
            if at < given and leaf.shape[: len(tokens)] != tokens:
                raise ValueError(
                    f"{function}: tensor {at + 1} {shape(leaf)} must begin with the axes of the tokens, "
                    f"{list(tokens)}. Bind what all tokens share by name: partial(loss, cost=cost)."
                )
            parts, cuts = [leaf], [at < given or leaf.shape == tokens]
        else:
            kept.append(leaf)
            continue
        kept.append(_Tensors(len(parts), isinstance(leaf, Logits)))
        tensors += [x.flatten(0, len(tokens) - 1) if c else x for x, c in zip(parts, cuts, strict=True)]
        cut += cuts
    rows = tokens.numel()
    if rows == 0:
        raise ValueError(f"{function}: prediction {shape(values[0].hidden)} has no token.")
    learning = torch.is_grad_enabled()
    work = _Work(
        function=function,
        loss=loss,
        form=form,
        leaves=tuple(kept),
        cut=tuple(cut),
        wanted=tuple(learning and x.requires_grad for x in tensors),
        tokens=tokens,
        ends=_ends(rows, _most(memory, 4 * _COPIES * classes, tensors[0].device.type)),
        autocast=_autocast(tensors[0]),
    )
    _check_value_by_token(work, tensors)
    return work, tensors


def _most(memory: int | None, bytes_of_token: int, device: str) -> int:
    """How many tokens a chunk may have."""
    most = max(1, (memory or MEMORY) // bytes_of_token)
    if memory is None and device == "cpu":
        return min(most, max(_LEAST, ON_CPU // bytes_of_token))
    return most


def _ends(rows: int, most: int) -> tuple[int, ...]:
    """Where chunks end that are as equal as they can be."""
    chunks = -(-rows // most)
    return tuple(accumulate(rows // chunks + (at < rows % chunks) for at in range(chunks)))


def _autocast(tensor: Tensor) -> tuple[str, bool, torch.dtype] | None:
    """How products are cast now: the backward pass computes them again, outside of the caller's context."""
    kind = tensor.device.type
    if kind == "meta":
        return None
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _chunks(work: _Work, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for start, end in zip((0, *work.ends), work.ends, strict=False):
        yield [x[start:end] if cut else x for x, cut in zip(tensors, work.cut, strict=True)]


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(hidden, weight, bias)


def _measured(work: _Work, tensors: Sequence[Tensor], head: Callable[..., Tensor] = _head) -> Tensor:
    """The loss of one chunk, `[rows]`."""
    rest, leaves = list(tensors), []
    for leaf in work.leaves:
        if isinstance(leaf, _Tensors):
            parts, rest = rest[: leaf.number], rest[leaf.number :]
            leaves.append(head(*parts) if leaf.logits else parts[0])
        else:
            leaves.append(leaf)
    values, hyper = unflatten(leaves, work.form)
    return work.loss(*values, **hyper)


def _values(work: _Work, tensors: Sequence[Tensor]) -> Tensor:
    if work.autocast is None:
        return _measured(work, tensors)
    kind, enabled, dtype = work.autocast
    with torch.autocast(kind, dtype=dtype, enabled=enabled):
        return _measured(work, tensors)


def _learned(work: _Work, chunk: list[Tensor]) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The loss of a chunk as a function of what wants a gradient, and that."""

    def values(*learned: Tensor) -> Tensor:
        given = iter(learned)
        return _values(
            work, [next(given) if wanted else x for x, wanted in zip(chunk, work.wanted, strict=True)]
        )

    return values, [x for x, wanted in zip(chunk, work.wanted, strict=True) if wanted]


def _cut_of_learned(work: _Work) -> list[bool]:
    return [cut for cut, wanted in zip(work.cut, work.wanted, strict=True) if wanted]


def _gather_(work: _Work, found: list[list[Tensor]], new: Sequence[Tensor]) -> None:
    """Note the gradients of a chunk: rows one behind another, and all else added up in float32."""
    for known, cut, gradient in zip(found, _cut_of_learned(work), new, strict=True):
        if cut:
            known.append(gradient)
        elif known:
            known[0].add_(gradient)
        else:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            known.append(gradient.to(wide, copy=True))


def _gathered(work: _Work, found: list[list[Tensor]]) -> list[Tensor]:
    return [
        torch.cat(known) if cut else known[0] for known, cut in zip(found, _cut_of_learned(work), strict=True)
    ]


def _spread(work: _Work, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """A gradient for each tensor, of its type, and none for one that wants none."""
    given = iter(gradients)
    return [
        next(given).to(x.dtype) if wanted else None for x, wanted in zip(tensors, work.wanted, strict=True)
    ]


class _Recomputed(torch.autograd.Function):
    """Values by token; the backward pass computes each chunk again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(work: _Work, *tensors: Tensor) -> Tensor:
        return torch.cat([_values(work, chunk) for chunk in _chunks(work, tensors)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.work = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        work, tensors = ctx.work, ctx.saved_tensors
        found: list[list[Tensor]] = [[] for _ in _cut_of_learned(work)]
        starts = (0, *work.ends)
        for chunk, start, end in zip(_chunks(work, tensors), starts, work.ends, strict=False):
            values, learned = _learned(work, chunk)
            pull = torch.func.vjp(values, *learned)[1]
            _gather_(work, found, pull(outer[start:end]))
        return (None, *_spread(work, tensors, _gathered(work, found)))


class _Summed(torch.autograd.Function):
    """A weighted sum over tokens, with its gradients taken at once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(work: _Work, weight: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        found: list[list[Tensor]] = [[] for _ in _cut_of_learned(work)]
        totals = []
        starts = (0, *work.ends)
        for chunk, start, end in zip(_chunks(work, tensors), starts, work.ends, strict=False):
            values, learned = _learned(work, chunk)
            part = partial(_weighted, values, weight[start:end])
            if learned:
                every = tuple(range(len(learned)))
                gradients, total = torch.func.grad_and_value(part, argnums=every)(*learned)
                _gather_(work, found, gradients)
            else:
                total = part()
            totals.append(total)
        return (torch.stack(totals).sum(), *_gathered(work, found))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.work = inputs[0]
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.dtypes = [x.dtype for x in inputs[2:]]

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *seconds: Tensor | None) -> tuple[Tensor | None, ...]:
        if any(second is not None for second in seconds):
            raise NotImplementedError("fused: it has no second derivative; `chunked` has.")
        given = iter(ctx.saved_tensors)
        found = [
            (next(given) * outer).to(dtype) if wanted else None
            for dtype, wanted in zip(ctx.dtypes, ctx.work.wanted, strict=True)
        ]
        return (None, None, *found)


def _weighted(values: Callable[..., Tensor], weight: Tensor, *learned: Tensor) -> Tensor:
    found = values(*learned)
    return (found * weight.to(found.dtype)).sum()


# Checks


def _check(function: str, loss: Any, memory: Any) -> None:
    check_callable(function, "loss", loss)
    if memory is not None:
        check_integer(function, "memory", memory, least=1)


def _check_logits(function: str, at: int, logits: Logits, tokens: torch.Size) -> None:
    """Raise unless a head fits its hidden states, and these the tokens."""
    hidden, weight, bias = logits
    for name, part, axes in (("hidden", hidden, None), ("weight", weight, 2), ("bias", bias, 1)):
        if part is None and name == "bias":
            continue
        if not (isinstance(part, Tensor) and part.is_floating_point()):
            kind = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"{function}: {name} of tensor {at} is {kind}; give a floating-point tensor.")
        if part.ndim != axes and (axes is not None or part.ndim < 2):
            wanted = {"hidden": "[..., width]", "weight": "[classes, width]", "bias": "[classes]"}[name]
            raise ValueError(f"{function}: {name} {shape(part)} of tensor {at} must be {wanted}.")
    if hidden.shape[-1] != weight.shape[1] or (bias is not None and len(bias) != len(weight)):
        rest = "" if bias is None else f" and bias {shape(bias)}"
        raise ValueError(
            f"{function}: hidden {shape(hidden)}, weight {shape(weight)}{rest} of tensor {at} do not fit: "
            "[..., width], [classes, width] and [classes]."
        )
    if hidden.shape[:-1] != tokens:
        raise ValueError(
            f"{function}: tensor {at} has hidden {shape(hidden)}, and the prediction the tokens "
            f"{list(tokens)}."
        )


@torch.enable_grad()
def _check_value_by_token(work: _Work, tensors: Sequence[Tensor]) -> None:
    """Raise unless the loss has one value for a token, and nothing else learns. No product is needed."""
    one = [x.detach()[:1] if cut else x.detach() for x, cut in zip(tensors, work.cut, strict=True)]
    value = _measured(work, one, lambda hidden, weight, *_: hidden.new_zeros(1, len(weight)))
    if value.shape != (1,):
        raise ValueError(
            f"{work.function}: the loss must give one value for each token, and gave {shape(value)} for one. "
            "One that couples the batch, or takes a mean, cannot be cut into chunks. Means go around it, as "
            f"masked({work.function}(loss))."
        )
    if value.requires_grad:
        raise ValueError(
            f"{work.function}: the loss closes over a tensor that wants a gradient, which would be lost. "
            "Pass it by name, or bind it by functools.partial."
        )
