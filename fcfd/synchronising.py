"""BatchNorm over all processes, as a transform of a column."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .stages import Buffers, Column, Params, Stage
from .transforms import check_column, each


def synchronised(stages: Column, group: Any = None) -> Column:
    """Let BatchNorm in train mode see the batch of all processes, not the process's own part.

    ```
    n = Σ_r n_r,   μ = Σ_r Σ x / n,   σ² = Σ_r Σ (x − μ)² / n      over processes r
    ```

    One process on the whole batch has the same values, gradients (averaged over processes, as by DDP or
    `fcfd.gathered`) and new statistics. It replaces each call of `F.batch_norm` while a stage runs: modules
    stay as they are, there is nothing to convert before the split. BatchNorm in eval is left alone.
    All processes must walk the same paths; `fcfd.draw` sees to it. Under `torch.vmap`, as over several
    students, each one has statistics of its own, so buffers are stacked as parameters are.

    Args:
        stages: A column of a network or of bridges; `None` stays.
        group: The process group; by default all processes.

    Returns:
        A column of the same length, which `torch.func.grad`, `torch.vmap` and `torch.compile` take as well.

    Raises:
        ValueError: In a call, if there is no process group, or `torch.vmap` goes over the input and not over
            the buffers.

    Example:
        ```python
        stages = {column: synchronised(own) for column, own in nets.stages.items()}
        ```
    """
    check_column("synchronised", stages)
    return each(stages, _run, group)


def _run(stage: Stage, group: Any, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    with _Synchronised(group):
        return stage(params, buffers, x)


class _Synchronised(TorchFunctionMode):
    def __init__(self, group: Any) -> None:
        super().__init__()
        from torch.distributed import distributed_c10d  # here, because some builds of torch lack it

        self.group = distributed_c10d.group.WORLD if group is None else group
        if self.group is None:
            raise ValueError(
                "synchronised: there is no process group. Call torch.distributed.init_process_group first."
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run = partial(_batch_norm, self.group) if func is F.batch_norm else func
        return run(*args, **(kwargs or {}))


def _batch_norm(
    group: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if running_mean is not None and _is_mapped(input) and not _is_mapped(running_mean):
        raise ValueError(
            "synchronised: torch.vmap goes over the input of a BatchNorm in train mode and not over its "
            "running statistics, which would have to have many new values. Give vmap the buffers as well, "
            "stacked like the parameters (torch.func.stack_module_state), or call eval() on the module."
        )
    if group.size() == 1:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    axes = [axis for axis in range(x.ndim) if axis != 1]
    places = x.new_full((1,), x.numel() / x.shape[1])
    n, total = _sum(torch.cat([places, x.sum(axes)]), group).split([1, x.shape[1]])
    mean = total / n
    centred = x - _along(mean, x)
    var = _sum(centred.square().sum(axes), group) / n
    _update(running_mean, mean, momentum)
    _update(running_var, var * n / (n - 1), momentum)
    y = centred * _along((var + eps).rsqrt(), x)
    if weight is not None:
        y = y * _along(weight, x)
    if bias is not None:
        y = y + _along(bias, x)
    return y.to(input.dtype)


def _is_mapped(tensor: Tensor) -> bool:
    """Whether `torch.vmap` maps over a tensor. Private: torch has no public question."""
    from torch._C import _functorch

    if torch.compiler.is_compiling():  # torch's own error there
        return False
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def _along(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(-1, *[1] * (x.ndim - 2))


def _update(running: Tensor | None, value: Tensor, momentum: float) -> None:
    if running is not None:
        running.mul_(1 - momentum).add_(value.detach().to(running.dtype), alpha=momentum)


def _sum(tensor: Tensor, group: Any) -> Tensor:
    return cast(Tensor, _Sum.apply(tensor, group))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    """A sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(tensor: Tensor, group: Any) -> Tensor:
        # Not public. The public collective writes in place, which neither torch.func nor a trace allows.
        from torch.distributed._functional_collectives import all_reduce

        return cast(Tensor, all_reduce(tensor, "sum", group)).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def vmap(info: Any, axes: Any, tensor: Tensor, group: Any) -> tuple[Tensor, int | None]:
        return _sum(tensor, group), axes[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.group), None
