"""Transforms of what a stage reads: its type, its device, its shards.

Each entry of a dict is converted when a stage reads it, and no sooner: a dict is the whole network's, and a
stage needs a part. Nothing converted outlives the stage, unless autograd keeps it; `fcfd.checkpointed` around
or inside lets autograd keep nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._reading import Reading
from ._text import check_mapping, check_type
from ._tree import cast as cast_tree, moved, tensors
from .stages import Buffers, Column, Params, Stage
from .transforms import check_column, each


def cast(stages: Column, dtype: torch.dtype) -> Column:
    """Run a column in another floating type, whatever its parameters and inputs are in, and autocast off.

    Parameters, buffers, the input and named inputs of the batch are cast when a stage reads them, integers
    and truth values left alone. Gradients arrive in the type of the parameters. New buffers have the type
    of the old, but were computed in `dtype`: train BatchNorm under `torch.autocast` instead.

    Cast a network before it is linked, and bridges read and write what its features are in:
    `network._replace(stages=cast(network.stages, torch.bfloat16))`.

    Args:
        stages: A column of a network or of bridges; `None` stays.
        dtype: A floating type.

    Returns:
        A column of the same length.

    Raises:
        TypeError: The type is not a floating one.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> (run,) = cast((fcfd.stage(layer),), torch.bfloat16)
        >>> y, _ = run(dict(layer.named_parameters()), {}, torch.ones(1, 2))
        >>> y.sum().backward()
        >>> y.dtype, layer.weight.grad.dtype
        (torch.bfloat16, torch.float32)
    """
    check_column("cast", stages)
    check_type("cast", "dtype", dtype, torch.dtype, "a floating type of torch")
    if not dtype.is_floating_point:
        raise TypeError(f"cast: dtype is {dtype}; give a floating type, such as torch.bfloat16.")
    return each(each(stages, _without_autocast), _converted, partial(cast_tree, dtype=dtype))


def _without_autocast(
    stage: Stage, params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    kind = next((tensor.device.type for tensor in tensors(x)), "cpu")
    if not torch.amp.is_autocast_available(kind):
        return stage(params, buffers, x)
    with torch.autocast(kind, enabled=False):
        return stage(params, buffers, x)


def placed(stages: Column, device: torch.device | str) -> Column:
    """Move what a column reads to its device: a teacher on another device than the student's.

    The input and named inputs of the batch, such as masks, are moved; so is a parameter or buffer that is
    elsewhere, at every call. Features stay where they were computed. `fcfd.link` builds each bridge on the
    device that it leads to and lets it move what it reads, and a term moves its targets to its prediction.

    Args:
        stages: A column of a network or of bridges; `None` stays.
        device: Where the column's parameters are.

    Returns:
        A column of the same length.

    Example:
        >>> double = lambda params, buffers, x: (2 * x, {})
        >>> (run,) = placed((double,), "meta")
        >>> run({}, {}, torch.ones(3))[0].device
        device(type='meta')
    """
    check_column("placed", stages)
    check_type("placed", "device", device, (torch.device, str), "a device")
    return each(stages, _converted, partial(moved, device=torch.device(device)))


def gathered(stages: Column) -> Column:
    """Let a column read sharded parameters: each is gathered when a stage reads it.

    Its gradient is averaged over the processes and goes back to the shards: with every process on its own
    part of the batch, that is the gradient of the whole batch's mean. So `Replicate()` is data parallelism,
    `Shard(0)` is FSDP, and both on a mesh of two axes are HSDP. Gathered parameters live until the backward
    pass has used them; with `fcfd.checkpointed`, in either order, they are gathered again and none lives.
    Tensors that are not sharded pass as they are, and their gradients stay local.

    Args:
        stages: A column of a network or of bridges; `None` stays.

    Returns:
        A column of the same length, for parameters that `fcfd.spread` returned.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> (run,) = gathered((fcfd.stage(layer),))
        >>> run(fcfd.frozen(dict(layer.named_parameters())), {}, torch.ones(1, 2))[0].shape
        torch.Size([1, 2])
    """
    check_column("gathered", stages)
    return each(stages, _gathered)


def _gathered(stage: Stage, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    return stage(Reading(params, _full), buffers, x)


def _full(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial  # here, because some builds of torch lack it

    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def spread(params: Params, mesh: Any, *placements: Any) -> dict[str, nn.Parameter]:
    """Distribute a dict of parameters over processes, as leaves for an optimizer.

    All processes get the values of the first. The optimizers of torch and `clip_grad_norm_` work on shards
    as on whole tensors. A tensor without the axis of a shard is replicated.

    Args:
        params: A flat dict of parameters; those that need no gradient stay so.
        mesh: A `torch.distributed.device_mesh.DeviceMesh`.
        placements: One for each axis of the mesh: `Shard(0)`, `Replicate()` of `torch.distributed.tensor`.

    Returns:
        The same names, each a parameter that is a `DTensor`.

    Raises:
        ValueError: There are not as many placements as the mesh has axes.

    Example:
        ```python
        mesh = init_device_mesh("cuda", (8,))
        params = {
            column: spread(own, mesh, Shard(0)) for column, own in nets.params.items()
        }
        stages = {column: gathered(own) for column, own in nets.stages.items()}
        ```
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

    check_mapping("spread", "params", params, "a flat dict of parameters")
    check_type("spread", "mesh", mesh, DeviceMesh, "a torch.distributed.device_mesh.DeviceMesh")
    for placement in placements:
        check_type("spread", "a placement", placement, Placement, "Shard(0), Replicate() or the like")
    if len(placements) != mesh.ndim:
        raise ValueError(
            f"spread: {len(placements)} placements for a mesh of {mesh.ndim} axes; give one for each axis."
        )
    found = {}
    for name, tensor in params.items():
        check_type("spread", f"params[{name!r}]", tensor, Tensor, "a tensor")
        fitting = [
            Replicate() if isinstance(one, Shard) and one.dim >= tensor.ndim else one for one in placements
        ]
        held = distribute_tensor(tensor.detach(), mesh, fitting)
        found[name] = nn.Parameter(held, requires_grad=tensor.requires_grad)
    return found


def _converted(
    stage: Stage, convert: Callable[[Any], Any], params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    y, new = stage(Reading(params, convert), Reading(buffers, convert), convert(x))
    return y, {name: tensor.to(buffers[name]) for name, tensor in new.items()}
