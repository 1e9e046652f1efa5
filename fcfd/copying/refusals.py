"""Modules that are refused, because no copy of them would do the same."""

from collections.abc import Container, Iterable
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref as weakref

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .attributes import inside, plain
from .copies import hooks

_MOST = 10_000  # things that are looked at: a function may lead to half of the process


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
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):  # importing it takes long
            raise ValueError(
                f"{who}: {where} is sharded by fully_shard, which gathers where no stage sees it. Pass the "
                "model as it was before, and shard its dict of parameters: fcfd.spread and fcfd.gathered."
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
        own_hooks = [
            hook
            for hook in hooks(module, of_calls=True)
            if not isinstance(getattr(hook, "__self__", None), nn.Module)
        ]
        foreign = _around(own_hooks, own, copied=False) or _around(plain(module).values(), own, copied=True)
        if foreign is not None:
            raise ValueError(
                f"{who}: {where} has a hook or an attribute, {_called(foreign)}, which reads a module of the "
                "model from around it. A copy would still read the model's own weights there. Make it a "
                "method, or let it use its arguments."
            )


def said(thing: Any) -> str:
    """What a wrong argument is, in an error's text."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def _called(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None)
    return f"a {type(thing).__name__}" if name is None else f"the function {name!r}"


def _around(things: Iterable[Any], own: Container[nn.Module], *, copied: bool) -> Any:
    """What would go on reading a module of the model when a copy of it runs, or nothing.

    A copy has copies of containers, objects, methods and partial functions, but not of functions and weak
    references. Hooks are not copied at all.
    """
    stack, known = [(thing, thing, copied) for thing in things], set[int]()
    while stack and len(known) < _MOST:
        thing, begin, copied = stack.pop()
        if isinstance(thing, nn.Module):
            if not copied and thing in own:
                return begin
            continue
        if id(thing) in known or isinstance(thing, type | ModuleType | Tensor):
            continue
        known.add(id(thing))
        if isinstance(thing, FunctionType):
            stack += [(inner, thing if copied else begin, False) for inner in _of_function(thing)]
        elif isinstance(thing, weakref):
            stack.append((thing(), thing if copied else begin, False))
        elif isinstance(thing, MethodType):
            stack += [(thing.__self__, begin, copied), (thing.__func__, begin, copied)]
        elif isinstance(thing, partial):
            stack += [(inner, begin, copied) for inner in (thing.func, *thing.args, *thing.keywords.values())]
        else:
            stack += [(inner, begin, copied) for _, inner in inside(thing)]
    return None


def _of_function(function: FunctionType) -> list[Any]:
    """What a function reads from where it was defined: its closure, defaults, modules of its file."""
    found: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            found.append(cell.cell_contents)
    of_file = function.__globals__
    named = [of_file[name] for name in function.__code__.co_names if name in of_file]
    return found + [thing for thing in named if isinstance(thing, nn.Module)]
