"""Modules that are refused, because no copy of them would do the same."""

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .copies import hooks


def check(who: str, model: Any) -> None:
    """Refuse a module of which no copy would do the same.

    Args:
        who: The function that asks, which begins the error's text.
        model: The module.

    Raises:
        TypeError: It is no module.
        ValueError: It has parameters that are not made yet, is compiled or scripted, or holds functions that
            would go on reading its own tensors.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{who}: {said(model)} is no torch.nn.Module. Build the model, and pass that.")
    own = set(model.modules())
    for name, module in model.named_modules():
        where = f"{name!r}, a {type(module).__name__}," if name else type(module).__name__
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise ValueError(f"{who}: {where} is lazy and has no shapes yet. Run it once on a batch first.")
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ValueError(
                f"{who}: {where} is compiled. Pass the model as it was before (`_orig_mod`), and compile the "
                "stages: fcfd.compiled."
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"{who}: {where} wraps a model. Split its `module`, and distribute the training step."
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise ValueError(
                f"{who}: {where} has max_norm, and its forward writes to its weights. Turn it off, and clip "
                "them in the training loop."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{who}: {where} is scripted and has no forward to run. Pass what was scripted.")
        for held in (*vars(module).values(), *hooks(module)):
            if not own.isdisjoint(_around(held)):
                raise ValueError(
                    f"{who}: {where} has a hook or an attribute, the function {held.__qualname__!r}, which "
                    "reads a module of the model from around it. A copy would still read the model's own "
                    "weights there. Make it a method, or let it use its arguments."
                )


def said(thing: Any) -> str:
    """What a wrong argument is, in an error's text."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def _around(function: Any) -> list[nn.Module]:
    """The modules that a function reads from where it was defined."""
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(held, nn.Module):
            found.append(held)
    return found
