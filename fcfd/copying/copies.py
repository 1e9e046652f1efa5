"""A private copy of a module, and one pure call of it.

`torch.func.functional_call` puts tensors into a module for the time of a call. Here it puts them into a
copy that nobody else holds, so the module itself is never touched: not where its forward raises, sets
attributes or flips flags, and not while another thread runs it. Between calls a copy holds no tensor that it
is given: code that comes back to it later, such as a checkpoint in the backward pass, fails and does not read
other weights.
"""

import copy
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .._tree import TreeSpec, tensors as tensors_of
from .attributes import Kept, differ, lend as lend_attributes, registers, restore, seen_in_objects, take_back
from .watching import unwritten

_HOOKS = frozenset(key for key in vars(nn.Module()) if key.endswith("_hooks"))
_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[Any]] = WeakKeyDictionary()
_CALLED: WeakKeyDictionary[nn.Module, set[tuple[bool, ...]]] = WeakKeyDictionary()
"""In which modes a copy was called: the first call in each is watched."""
_REGISTER: WeakKeyDictionary[nn.Module, list[Kept]] = WeakKeyDictionary()
"""The modules of a copy of which a watched call saw that their forward registers parts."""


class Pair(NamedTuple):
    """A module of a copy, and the module that it is a copy of."""

    copied: nn.Module
    original: nn.Module
    parent: nn.Module | None  # of the original
    name: str


class Places(NamedTuple):
    """The places of a module's tensors, each with a name of the network's dict."""

    params: dict[str, str]
    buffers: dict[str, str]


class Copy(NamedTuple):
    """A private copy of a module, ready to be called."""

    module: nn.Module
    modes: tuple[Pair, ...]  # modules that take train or eval from their originals when a call begins
    kept: tuple[Kept, ...]  # modules whose forward may write attributes
    traced: tuple[Kept, ...]  # those of them that a trace looks after: all would be too many
    places: Places  # that every call fills
    recorded: bool  # whether a recording saw it run; else the first call in each mode is watched
    aliases: dict[str, Tensor]  # by place: what attributes hold that stands for the tensor there


def replica(model: nn.Module, convert: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> nn.Module:
    """A deep copy of a model in which every tensor is `convert(tensor)`, and hooks are the model's own.

    A hook that is a method of a module of the model becomes the method of that module's copy.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in tensors_of(list(vars(module).values())):
            if id(tensor) not in memo:
                memo[id(tensor)] = convert(tensor)
        for value in vars(module).values():
            if isinstance(value, TreeSpec):  # constant; and torch warns where one is copied
                memo[id(value)] = value
        for hook in hooks(module):
            if not isinstance(getattr(hook, "__self__", None), nn.Module):
                memo[id(hook)] = hook
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever an attribute says to being copied
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Split it before its "
            "parameters are sharded, and without attributes that cannot be copied."
        ) from error


def hooks(module: nn.Module, *, of_calls: bool = False) -> list[Any]:
    """All hooks of a module, of every kind; or those alone that a call runs, and none of a state dict."""
    kinds = {key for key in _HOOKS if not (of_calls and "state_dict" in key)}
    registries = [held for key, held in vars(module).items() if key in kinds]
    return [hook for registry in registries for hook in registry.values()]


def pairs(
    copied: nn.Module, model: nn.Module, within: tuple[nn.Module, str] | None = None
) -> dict[str, Pair]:
    """Every module of a copy with its original, by name; and what the model is a part of, if anything."""
    parent, own = within or (None, "")
    found = {"": Pair(copied, model, parent, own)}
    for name, original in model.named_modules():
        if name:
            parent = model.get_submodule(name.rpartition(".")[0])
            found[name] = Pair(copied.get_submodule(name), original, parent, name)
    return found


def places(module: nn.Module, within: nn.Module | None = None) -> Places:
    """Every place of a parameter and of a buffer in a module, with the name that a network's dict has for it.

    A place is an attribute of a module: one that is registered under two names is one place, or else
    `functional_call` would fill it twice. A tensor in two places has two, and in the dict its first name.

    Args:
        module: The module.
        within: The network that gives the names, if the module is a part of one.
    """
    network = module if within is None else within
    found = Places({}, {})
    for names, kind, first in (
        (found.params, "_parameters", {tensor: name for name, tensor in network.named_parameters()}),
        (found.buffers, "_buffers", {tensor: name for name, tensor in network.named_buffers()}),
    ):
        for prefix, part in module.named_modules():
            for key, tensor in vars(part)[kind].items():
                if tensor is not None:
                    names[f"{prefix}.{key}" if prefix else key] = first[tensor]
    return found


def at(module: nn.Module, places: Places) -> dict[str, Tensor]:
    """The tensors that a module has in some places."""
    found = {}
    for place in (*places.params, *places.buffers):
        owner, _, key = place.rpartition(".")
        found[place] = getattr(module.get_submodule(owner), key)
    return found


def skeleton(model: nn.Module) -> nn.Module:
    """A replica without memory: its parameters and buffers are on `meta`.

    It is put into train and then into eval once, which empties caches that live until the mode changes. That
    may write to weights (some merge others into theirs), so it must not have the model's.
    """
    registered = {id(tensor) for module in model.modules() for tensor in _registered(module)}
    copied = replica(model, lambda tensor: _absent(tensor) if id(tensor) in registered else tensor)
    return copied.train().eval()


def _registered(module: nn.Module) -> list[Tensor]:
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


def _absent(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def lend(copied: nn.Module, model: nn.Module, filled: Container[str]) -> None:
    """Give a skeleton the model's own tensors in all places but those that every call fills.

    A forward may ask any tensor for its device or type.
    """
    for name, module in model.named_modules():
        twin = copied.get_submodule(name)
        for own, lent in ((twin._parameters, module._parameters), (twin._buffers, module._buffers)):
            for key, tensor in lent.items():
                if (f"{name}.{key}" if name else key) not in filled:
                    own[key] = tensor


def call(
    own: Copy,
    tensors: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    asleep: Iterable[Pair] = (),
) -> Any:
    """Call a copy on tensors by place. Buffers that it writes are in `tensors` afterwards.

    Args:
        own: The copy.
        tensors: What is put into its places.
        args: The arguments.
        kwargs: Those with names.
        asleep: Modules that begin in eval: somebody wakes them on the way.
    """
    traced = torch.compiler.is_compiling()
    kept = own.traced if traced else own.kept
    with _alone(own.module):
        adopt(own.modes)
        for pair in asleep:
            pair.copied._awake = pair.original.training  # type: ignore[assignment]
            pair.copied.training = False
        lend_attributes(kept, traced, {id(alias): tensors[place] for place, alias in own.aliases.items()})
        try:
            with nullcontext() if traced or own.recorded else _watched(own, tensors):
                return functional_call(own.module, tensors, args, kwargs, tie_weights=False)
        finally:
            restore(kept, traced)
            if not traced:
                take_back(own.kept if own.recorded else _REGISTER.get(own.module, ()))


@contextmanager
def _watched(own: Copy, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse a forward that writes to weights: in the first call in each mode. No recording saw it run."""
    called, modes = _CALLED.setdefault(own.module, set()), tuple([pair.copied.training for pair in own.modes])
    if modes in called:
        yield
        return
    model, objects = own.modes[0].original, seen_in_objects(own.kept)
    weights = [*(tensors[place] for place in own.places.params), *model.parameters()]
    try:
        with unwritten(weights, writes("stage", model)):
            yield
    finally:
        _REGISTER.setdefault(own.module, []).extend(one for one in own.kept if registers(one))
    if differ(objects, seen_in_objects(own.kept)):
        raise ValueError(
            f"stage: the forward of {type(model).__name__} writes to an object that it holds, and a stage "
            "remembers nothing between calls. Keep that in attributes of the module, or in buffers."
        )
    called.add(modes)


def writes(who: str, module: nn.Module) -> str:
    """The text for a module whose forward writes to its weights."""
    return (
        f"{who}: the forward of {type(module).__name__} writes to its own parameters, and a stage would "
        "write to the model's. Do that in the training loop."
    )


def adopt(modes: Iterable[Pair]) -> None:
    """Put the modules of a copy into the modes of their originals, which must still be the model's."""
    traced = torch.compiler.is_compiling()
    for copied, original, parent, name in modes:
        if copied.training != original.training:
            copied.training = original.training
        if traced:
            continue
        if type(original) is not type(copied):
            raise ValueError(
                f"stage: {name or 'the module'!r} was a {type(copied).__name__} and became a "
                f"{type(original).__name__} after the stage was made, as by fully_shard or parametrization. "
                "Split the model again; to shard it, see fcfd.spread and fcfd.gathered."
            )
        if parent is not None and parent._modules.get(name.rpartition(".")[2]) is not original:
            raise ValueError(f"stage: {name!r} was replaced after the stage was made. Split the model again.")
        if original._modules.keys() != copied._modules.keys():
            raise ValueError(
                f"stage: {name or type(original).__name__!r} got or lost modules after the stage was made. "
                "Split the model again."
            )


def wake(asleep: Iterable[nn.Module]) -> None:
    """Put modules that began in eval into the modes of their originals."""
    for copied in asleep:
        copied.training = bool(copied._awake)


def follow(modes: Iterable[Pair], other: nn.Module) -> tuple[Pair, ...]:
    """The same pairs, with the modules of another copy in place of the originals."""
    return tuple(Pair(pair.copied, other.get_submodule(pair.name), None, pair.name) for pair in modes)


def _alone(module: nn.Module) -> AbstractContextManager[Any]:
    """One thread at a time in a copy. A trace has one thread and cannot hold a lock."""
    if torch.compiler.is_compiling():
        return nullcontext()
    return _LOCKS.setdefault(module, threading.RLock())
