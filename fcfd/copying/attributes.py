"""What a module holds beside its parameters, buffers and children, and how a copy forgets what a call wrote.

A forward may write attributes: caches, counters, tensors that are registered nowhere. A stage is a pure
function, so every call finds what the first one found. What can be written in place is copied for each call.
"""

import copy
from collections import deque
from collections.abc import Container, Iterable, Mapping
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"_forward_hooks"}  # some models install hooks in forward
_REGISTERED = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
_CONTAINERS = (dict, list, set, deque, np.ndarray)
_WRITTEN = (Tensor, *_CONTAINERS)
_NO_OBJECTS = (
    *(Tensor, nn.Module, torch.Generator, Enum, type, ModuleType, partial),
    *(FunctionType, BuiltinFunctionType, MethodType),
)

_MOST = 10_000  # things that are looked at: an object may lead to half of the process


class Kept(NamedTuple):
    """The attributes that every call finds in a module of a copy."""

    copied: nn.Module
    names: frozenset[str]  # of all attributes
    fixed: dict[str, Any]  # those that not every module has, and that no operation in place can change
    lent: dict[str, Any]  # those of which every call gets a copy
    registered: dict[str, dict[str, Any]]  # its parameters, buffers, children and hooks


class Seen(NamedTuple):
    """Something that is reached from an attribute, and whether it was written in place."""

    key: Any  # where it stands
    thing: Any
    version: Any


def plain(module: nn.Module) -> dict[str, Any]:
    """The attributes that not every module has."""
    return {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}


def keep(copied: nn.Module, *, objects: bool = False, known: Container[int] = ()) -> Kept:
    """What a module of a copy has now.

    Args:
        copied: The module.
        objects: Whether every call gets copies of objects, too. They may be large.
        known: The ids of tensors that every call fills: what leads to one is lent.
    """
    own = plain(copied)
    hooks = own.pop("_forward_hooks")
    lent = {key: value for key, value in own.items() if _changes(value, objects) or _leads(value, known)}
    fixed = {key: value for key, value in own.items() if key not in lent}
    return Kept(
        copied=copied,
        names=frozenset(vars(copied)),
        fixed=fixed | {"_forward_hooks": copy.copy(hooks)},
        lent=lent,
        registered={key: dict(value) for key, value in vars(copied).items() if key in _REGISTERED},
    )


def _leads(value: Any, known: Container[int]) -> bool:
    return _is_object(value) and any(id(one.thing) in known for one in _reached({"": value}))


def lend(kept: Iterable[Kept], traced: bool, given: Mapping[int, Any]) -> None:
    """Give the modules of a copy what a call may write to. What two of them share, they share.

    Args:
        kept: What the modules have.
        traced: Whether `torch.compile` looks on.
        given: What a call gives in place of some tensors, by id.
    """
    made: dict[int, Any] = {**given}
    for copied, _, _, lent, _ in kept:
        for key, value in lent.items():
            if not traced:
                vars(copied)[key] = _fresh(value, made)
            elif isinstance(value, Tensor):
                setattr(copied, key, value.clone())
            elif isinstance(value, _CONTAINERS):
                setattr(copied, key, copy.copy(value))


def restore(kept: Iterable[Kept], traced: bool) -> None:
    """Put attributes back that a forward wrote, so that nothing stays alive and no call sees another's."""
    for copied, names, fixed, lent, _ in kept:
        own = vars(copied)
        if traced or own.keys() != names:
            for key in tuple(own):
                if key not in names:
                    delattr(copied, key)
        for key, value in fixed.items():
            if key == "_forward_hooks":
                if traced or own.get(key) != value:
                    setattr(copied, key, copy.copy(value))
            elif traced or own.get(key) is not value:
                setattr(copied, key, value)
        for key, value in lent.items():
            if traced:
                setattr(copied, key, value)
            else:  # ten times as fast
                own[key] = value


def holds_tensors(kept: Kept) -> bool:
    """Whether an attribute of a module is a tensor that a call could write to."""
    return any(isinstance(value, Tensor) for value in kept.lent.values())


def reached_from(kept: Iterable[Kept]) -> set[int]:
    """The ids of everything that attributes lead to of which every call gets a copy."""
    return {id(one.thing) for own in kept for one in _reached(own.lent)}


def registers(kept: Kept) -> bool:
    """Whether a forward registered or took out parameters, buffers, children or hooks."""
    for key, before in kept.registered.items():
        now = vars(kept.copied)[key]
        if now.keys() != before.keys() or any(now[name] is not thing for name, thing in before.items()):
            return True
    return False


def take_back(kept: Iterable[Kept]) -> None:
    """Undo what modules registered."""
    for one in kept:
        if registers(one):
            for key, before in one.registered.items():
                now = vars(one.copied)[key]
                now.clear()
                now.update(before)


def _changes(value: Any, objects: bool) -> bool:
    """Whether a value can be written in place, or holds something that can."""
    if isinstance(value, _WRITTEN) or (objects and _is_object(value)):
        return True
    return isinstance(value, tuple) and any(_changes(item, objects) for item in value)


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, _NO_OBJECTS)


def _fresh(value: Any, made: dict[int, Any]) -> Any:
    """A copy of all that can be written in place, but for objects, whose attributes alone are copied."""
    if id(value) in made:
        return made[id(value)]
    if not _changes(value, objects=True):
        return value
    if isinstance(value, Tensor):
        made[id(value)] = value.clone()
        return made[id(value)]
    if isinstance(value, tuple):
        items = [_fresh(item, made) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    new = made[id(value)] = copy.copy(value)
    if isinstance(value, np.ndarray | set):
        return new
    if isinstance(value, list | deque):
        places: Iterable[tuple[Any, Any]] = enumerate(value)
    else:
        places = value.items() if isinstance(value, dict) else vars(value).items()
    inside = new if isinstance(value, _CONTAINERS) else vars(new)
    for key, item in places:
        if _changes(item, objects=True):
            inside[key] = _fresh(item, made)
    return new


# Whether a forward writes them


def seen(module: nn.Module) -> list[Seen]:
    """Everything that can be reached from the plain attributes of a module, and what it has registered."""
    found = [Seen((kind, *vars(module)[kind]), None, 0) for kind in _REGISTERED]
    return found + [Seen(*own, 0) for own in module._modules.items()] + _reached(plain(module))


def seen_in_objects(kept: Iterable[Kept]) -> list[Seen]:
    """Everything that can be reached from the objects that no call gets a copy of."""
    return _reached(
        {
            (at, key): value
            for at, one in enumerate(kept)
            for key, value in one.fixed.items()
            if _is_object(value)
        }
    )


def _reached(start: Mapping[Any, Any]) -> list[Seen]:
    found, known = list[Seen](), set[int]()
    stack = [*start.items()]
    while stack and len(known) < _MOST:
        key, value = stack.pop()
        found.append(Seen(key, value, _version(value)))
        if id(value) not in known:
            known.add(id(value))
            stack += inside(value)
    return found


def inside(value: Any) -> list[tuple[Any, Any]]:
    """What a container or an object holds, each with where."""
    if isinstance(value, dict):
        return [*value.items()]
    if isinstance(value, list | set | deque | tuple):
        return [*enumerate(value)]
    return [*vars(value).items()] if _is_object(value) else []


def _version(value: Any) -> Any:
    """How often a tensor was written in place; of an array, what it holds."""
    if isinstance(value, Tensor):
        return 0 if value.is_inference() else value._version
    return value.tobytes() if isinstance(value, np.ndarray) else 0


def differ(before: list[Seen], after: list[Seen]) -> bool:
    """Whether attributes hold other things than before, or the same ones written in place."""
    if len(before) != len(after):
        return True
    pairs = zip(before, after, strict=True)
    return any(a.thing is not b.thing or (a.key, a.version) != (b.key, b.version) for a, b in pairs)
