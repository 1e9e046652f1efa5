"""Stages by hand: a list of modules and functions is a model in stages."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._tree import clone
from ..copying.copies import places
from ..copying.refusals import check, said
from ..stages import Buffers, Params, Stage, whole
from .network import Network


def by_hand(model: Any, at: Any, example: Any) -> Network:
    """Each entry of a list is a stage; tensors are named as in `nn.Sequential(*entries)`."""
    entries = _entries(model)
    if not entries:
        raise ValueError("split: an empty list has no stages. Pass a model, or a list of modules.")
    if at is not None or example is not None:
        raise ValueError("split: a list of modules is a model in stages; it takes no names and no example.")
    modules = nn.ModuleDict({str(at): one for at, one in enumerate(entries) if isinstance(one, nn.Module)})
    return Network(
        stages=tuple(_stage_by_hand(entry, modules) for entry in entries),
        params=dict(modules.named_parameters()),
        buffers=dict(modules.named_buffers()),
        names=tuple(str(at) for at in range(len(entries))),
        shapes=(None,) * len(entries),
        cuts=(),
        proof="",
    )


def _entries(model: Any) -> tuple[Callable[..., Any], ...]:
    """The stages of a list, or what was meant by something else."""
    if isinstance(model, str | type | Mapping) or not isinstance(model, Iterable):
        what = repr(model) if isinstance(model, str) else said(model)
        raise TypeError(f"split: {what} is no model. Pass a module, or a list of modules and functions.")
    entries = tuple(model)
    for place, entry in enumerate(entries):
        if not callable(entry) or isinstance(entry, type):
            raise TypeError(f"split: entry {place} of the list is {entry!r}, and not a module or a function.")
        if isinstance(entry, nn.Module):
            check("split", entry)
    return entries


def _stage_by_hand(entry: Callable[..., Any], modules: nn.Module) -> Stage:
    if not isinstance(entry, nn.Module):
        return partial(_run_function, entry)
    return whole(entry, places(entry, within=modules))


def _run_function(
    function: Callable[..., Any], params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    return function(clone(x)), {}
