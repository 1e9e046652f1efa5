"""Stages: where a module becomes a pure function of its parameters, its buffers and its input.

A stage is a callable `stage(params, buffers, x) -> (y, new_buffers)`. `params` and `buffers` are flat dicts
with the names of `named_parameters()` and `named_buffers()` of the whole network; a stage reads the entries
that it needs and ignores the rest. A network is a column: the tuple of its stages. Any callable of this form
is a stage, so a network may be written by hand.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ._text import check_mapping, check_plain, check_type, listing
from ._tree import clone, shape
from .copying.attributes import holds_tensors, keep, reached_from
from .copying.copies import Copy, Places, adopt, at, call, pairs, places, skeleton
from .copying.refusals import check
from .copying.standing import check_standing, remember
from .copying.watching import vacate

Params: TypeAlias = Mapping[str, Tensor]
Buffers: TypeAlias = Mapping[str, Tensor]
Stage: TypeAlias = Callable[[Params, Buffers, Any], tuple[Any, dict[str, Tensor]]]
Column: TypeAlias = tuple[Stage | None, ...]


def stage(module: nn.Module, prefix: str = "", *, protect: bool = True) -> Stage:
    """Make a stage of a module, which is never touched by it.

    The stage runs a copy of the module's code and settings, made here; so edit the module first. Its mode
    (train or eval) is read at each call; so is torch's global generator, by dropout. BatchNorm in train mode
    writes its new statistics to a copy, which comes back as the second result. What a forward keeps in
    attributes, plain tensors or containers is forgotten after each call.

    Args:
        module: Any module of one positional input.
        prefix: What stands before the module's own names in the network's dicts: `"layer1."`.
        protect: Run the module on a copy of its input. Turn off only where its first operation is known not
            to be in place: another path may still need the input.

    Returns:
        A stage. It raises a `ValueError` that names what is missing where a dict lacks an entry.

    Raises:
        TypeError: The module is none.
        ValueError: It is lazy and did not run yet, compiled, or holds functions that read its own tensors.
            By the stage: a module inside was replaced or added, the forward writes to its parameters or to an
            object that it holds (the first eager call in each mode looks), or the module recomputes in the
            backward pass by itself (`torch.utils.checkpoint`): turn that off, and use `fcfd.checkpointed`.

    Example:
        >>> head = stage(torch.nn.Linear(3, 2), "fc.")
        >>> params = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
        >>> head(params, {}, torch.ones(1, 3))
        (tensor([[3., 3.]]), {})
    """
    check("stage", module)
    check_type("stage", "prefix", prefix, str, "what stands before the names in the dict, as 'layer1.'")
    check_type("stage", "protect", protect, bool, "whether the module runs on a copy of its input")
    own = places(module)
    return whole(
        module,
        Places(
            params={place: prefix + name for place, name in own.params.items()},
            buffers={place: prefix + name for place, name in own.buffers.items()},
        ),
        protect=protect,
    )


def whole(
    module: nn.Module, names: Places, *, protect: bool = True, within: tuple[nn.Module, str] | None = None
) -> Stage:
    """Make a stage of a module whose tensors have these names, and of what it is a part, under which name."""
    copied = skeleton(module)
    aliases = at(copied, names)
    vacate(copied)
    known = {id(tensor) for tensor in aliases.values()}
    kept = tuple([keep(part, known=known) for part in copied.modules()])
    reached = reached_from(kept)
    modes = tuple(pairs(copied, module, within).values())
    adopt(modes)  # here, so that a compiled stage does not find other flags in its second call
    own = Copy(
        module=copied,
        modes=modes,
        kept=kept,
        traced=tuple(filter(holds_tensors, kept)),
        places=names,
        recorded=False,
        aliases={place: tensor for place, tensor in aliases.items() if id(tensor) in reached},
    )
    remember(copied, module, names)
    return partial(_run, own, protect)


def _run(own: Copy, protect: bool, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    weights = select("params", params, own.places.params.values())
    state = select("buffers", buffers, own.places.buffers.values())
    if not torch.compiler.is_compiling():
        check_standing(own, weights | state)
    state = {name: tensor.clone() for name, tensor in state.items()}
    tensors = {place: weights[name] for place, name in own.places.params.items()}
    tensors |= {place: state[name] for place, name in own.places.buffers.items()}
    y = call(own, tensors, (clone(x) if protect else x,), {})
    return y, {name: tensors[place] for place, name in own.places.buffers.items()}


def select(kind: str, tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The entries that a stage reads; a missing one is an error that names it."""
    names = tuple(names)
    check_mapping("stage", kind, tensors, f"the network's whole dict of {kind}")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(
            f"stage: {kind} lacks {missing[0]!r}"
            + (f" and {len(missing) - 1} more" if missing[1:] else "")
            + f". Pass the network's whole dict of {kind}; it has {len(tensors)} entries."
        )
    return {name: tensors[name] for name in names}


def frozen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detach every tensor of a dict: how a teacher is frozen, without touching `requires_grad`.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> fixed = frozen(dict(layer.named_parameters()))
        >>> fixed["bias"].requires_grad, layer.bias.requires_grad
        (False, True)
    """
    check_mapping("frozen", "tensors", tensors, "a dict of tensors: dict(model.named_parameters())")
    for name, tensor in tensors.items():
        check_type("frozen", f"tensors[{name!r}]", tensor, Tensor, "a tensor")
    return {name: tensor.detach() for name, tensor in tensors.items()}


@torch.no_grad()
def ema(
    average: Mapping[str, Tensor], new: Mapping[str, Tensor], *, decay: float = 0.999
) -> dict[str, Tensor]:
    """The next moving average of a network: a teacher that follows its student.

    ```
    out = decay · average + (1 − decay) · new;    of whole numbers, such as counts, new
    ```

    Args:
        average: A dict of tensors, parameters or buffers; to begin with, `frozen(params)`.
        new: The same entries of the student.
        decay: In [0, 1]; published 0.999, and from 0.996 to 1 by `schedules.cosine`.

    Returns:
        A new dict, without a gradient. Nothing that was given changes.

    Raises:
        TypeError: A value is no tensor.
        ValueError: The names or shapes differ, or `decay` is out of its range.

    Example:
        >>> ema({"bias": torch.zeros(2)}, {"bias": torch.ones(2)}, decay=0.75)
        {'bias': tensor([0.2500, 0.2500])}

    Reference:
        Tarvainen, Valpola: Mean teachers are better role models, NeurIPS 2017, arXiv 1703.01780.
    """
    check_plain("ema", "decay", decay, least=0, most=1)
    for kind, tensors in (("average", average), ("new", new)):
        check_mapping("ema", kind, tensors, "a dict of tensors: dict(model.named_parameters())")
        for name, tensor in tensors.items():
            check_type("ema", f"{kind}[{name!r}]", tensor, Tensor, "a tensor")
    if average.keys() != new.keys():
        odd = sorted(average.keys() ^ new.keys())
        raise ValueError(f"ema: only one of average and new has {listing(odd)}.")
    for name, tensor in average.items():
        if tensor.shape != new[name].shape:
            raise ValueError(
                f"ema: average[{name!r}] {shape(tensor)} and new[{name!r}] {shape(new[name])} must have the "
                "same shape."
            )
    return {name: _averaged(tensor, new[name], decay) for name, tensor in average.items()}


def _averaged(average: Tensor, new: Tensor, decay: float) -> Tensor:
    if average.is_floating_point() or average.is_complex():
        return torch.lerp(average, new.to(average.dtype), 1 - decay)
    return new.clone()


@torch.no_grad()
def write_buffers_(module: nn.Module, buffers: Buffers) -> None:
    """Copy new buffers into a module, in place: the only function here that changes a module.

    Args:
        module: The network, or the bridges of one direction.
        buffers: What a walk returned for it. Names are those of `named_buffers()`; a subset is enough.

    Raises:
        TypeError: A value is no tensor, or of a type that the buffer cannot hold.
        ValueError: A name or a shape is not the module's. Nothing is written then.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> write_buffers_(norm, {"running_mean": torch.ones(2)})
        >>> norm.running_mean
        tensor([1., 1.])
    """
    check_type("write_buffers_", "module", module, nn.Module, "the module that has the buffers")
    check_mapping("write_buffers_", "buffers", buffers, "what a walk returned for it: aux.buffers['s']")
    own = dict(module.named_buffers(remove_duplicate=False))
    for name, value in buffers.items():
        if name not in own:
            raise ValueError(f"write_buffers_: {type(module).__name__} has no buffer {name!r}.")
        check_type("write_buffers_", f"buffers[{name!r}]", value, Tensor, "a tensor")
        if value.is_meta and not own[name].is_meta:
            raise ValueError(f"write_buffers_: the new value of {name!r} is on meta and holds no numbers.")
        if not torch.can_cast(value.dtype, own[name].dtype):
            raise TypeError(
                f"write_buffers_: buffer {name!r} is of {own[name].dtype}, which cannot hold {value.dtype}."
            )
        if own[name].shape != value.shape:
            raise ValueError(
                f"write_buffers_: buffer {name!r} is {shape(own[name])}, the new value {shape(value)}."
            )
    new = [(own[name], value) for name, value in buffers.items() if value is not own[name]]
    for dtype in {tensor.dtype for tensor, _ in new}:  # a kernel each, on a GPU
        tensors, values = zip(*(pair for pair in new if pair[0].dtype == dtype), strict=True)
        torch._foreach_copy_(tensors, values)
