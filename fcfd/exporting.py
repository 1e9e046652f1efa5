"""A path as a module of its own: for export, and for use without the networks that it came from."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ._reading import Reading
from .paths import expand, plan
from .stages import Column, Params
from .walking import walk

Places: TypeAlias = set[tuple[str, str]]


def as_module(
    path: str,
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Params],
    *,
    example: Any,
) -> nn.Module:
    """Make a module of one path: it owns the tensors that the path reads, and no others.

    The path runs once on the example, without gradient, to see what it reads. Tensors are the networks' own,
    under `"s/layer1/0/weight"`: parameters where they are `nn.Parameter`, such as the student's, and else
    buffers, such as a frozen teacher's. Train or eval is that of the networks, as in every walk; new
    statistics are dropped. The module goes through `torch.export` and AOTInductor.

    Args:
        path: Any path: `"sssst"` reads the student's features by the teacher's last stage.
        stages: The columns of stages.
        params: A flat dict of parameters for each column.
        buffers: The same of buffers.
        example: A batch, as `fcfd.walk` reads it.

    Returns:
        A module: `forward(batch)` is the value of the path.

    Raises:
        ValueError: As `fcfd.walk`.

    Example:
        >>> net = fcfd.split([torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)])
        >>> columns = {"s": net.stages}, {"s": net.params}, {"s": net.buffers}
        >>> first = as_module("s", *columns, example=torch.ones(1, 2))
        >>> [name for name, _ in first.named_parameters()]
        ['s/0/bias', 's/0/weight']
    """
    path = expand(path)
    read: tuple[Places, Places] = (set(), set())
    seen_params, seen_buffers = (
        {column: _noting(column, tensors, found) for column, tensors in dicts.items()}
        for dicts, found in zip((params, buffers), read, strict=True)
    )
    with torch.no_grad(), torch.random.fork_rng():
        walk(plan((path,)), stages, seen_params, seen_buffers, {"": example})
    return _Path(path, stages, params, buffers, read)


def _noting(column: str, tensors: Params, found: Places) -> Mapping[str, Any]:
    """A dict that notes which of its entries are read."""

    def note(entry: tuple[str, Tensor]) -> Tensor:
        found.add((column, entry[0]))
        return entry[1]

    return Reading({name: (name, tensor) for name, tensor in tensors.items()}, note)


class _Path(nn.Module):
    def __init__(
        self,
        path: str,
        stages: Mapping[str, Column],
        params: Mapping[str, Params],
        buffers: Mapping[str, Params],
        read: tuple[Places, Places],
    ) -> None:
        super().__init__()
        self.path, self.stages, self.read = path, dict(stages), tuple(map(sorted, read))
        self.columns = tuple(params)
        for dicts, places in zip((params, buffers), self.read, strict=True):
            for column, name in places:
                tensor = dicts[column][name]
                if isinstance(tensor, nn.Parameter):
                    self.register_parameter(_place(column, name), tensor)
                else:
                    self.register_buffer(_place(column, name), tensor)

    def forward(self, batch: Any) -> Any:
        params, buffers = (
            {
                column: {name: getattr(self, _place(one, name)) for one, name in places if one == column}
                for column in self.columns
            }
            for places in self.read
        )
        values, _ = walk(plan((self.path,)), self.stages, params, buffers, {"": batch})
        return values[self.path]


def _place(column: str, name: str) -> str:
    """The name of a tensor in the module: one of torch has no dots."""
    return f"{column}.{name}".replace(".", "/")
