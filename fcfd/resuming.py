"""The state of an optimizer by names, which survives where its own `state_dict` does not.

An optimizer numbers its parameters, so its state fits the same list of them alone; and a parameter that had
no gradient yet has no state, which a checkpoint of several processes takes for missing. Names have neither
trouble.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ._text import check_mapping, check_type, listing
from ._tree import map_tensors, shape

Slots = dict[str, dict[str, Any]]


def slots(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> Slots:
    """What an optimizer remembers of each parameter, by the parameter's name.

    A bridge that was not drawn yet has no slots, and no entry. Learning rates and other settings of groups
    are left out: a schedule gives them by step.

    Args:
        optimizer: Any of torch's.
        named: All of its parameters: `{**dict(student.named_parameters()), ...}`, or of linked networks
            those of the student and of each column of bridges, with the column in front of the names.

    Returns:
        `{"0.weight": {"step": ..., "exp_avg": ...}}`: the optimizer's own tensors, not copies.

    Raises:
        ValueError: The optimizer has a parameter that `named` lacks.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> kept = slots(optimizer, dict(layer.named_parameters()))
        >>> sorted(kept["bias"])
        ['exp_avg', 'exp_avg_sq', 'step']
    """
    names = _names("slots", optimizer, named)
    return {names[tensor]: dict(own) for tensor, own in optimizer.state.items() if own}


def write_slots_(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], slots: Slots) -> None:
    """Give an optimizer the slots of an earlier run, in place; it forgets its own.

    Args:
        optimizer: One of the same kind, over the same parameters in any order and any groups.
        named: As for `slots`.
        slots: What `slots` returned then, or a file kept of it. Tensors are copied, to the device of the
            parameter; a count of steps stays where it is.

    Raises:
        ValueError: A name is none of the optimizer's, or a slot has another shape than its parameter.
            Nothing is written then.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> write_slots_(optimizer, dict(layer.named_parameters()), {})
        >>> len(optimizer.state)
        0
    """
    names = _names("write_slots_", optimizer, named)
    check_mapping("write_slots_", "slots", slots, "what fcfd.slots returned")
    own = {name: tensor for tensor, name in names.items()}
    new: dict[Tensor, dict[str, Any]] = {}
    for name, entries in slots.items():
        if name not in own:
            raise ValueError(
                f"write_slots_: slots has {name!r}, which is no parameter of the optimizer; it has "
                f"{listing([*own])}."
            )
        check_mapping("write_slots_", f"slots[{name!r}]", entries, "a dict by the optimizer's own names")
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != own[name].shape:
                raise ValueError(
                    f"write_slots_: slot {key!r} of {name!r} is {shape(value)}, the parameter "
                    f"{shape(own[name])}."
                )
        new[own[name]] = {key: _copied(value, own[name]) for key, value in entries.items()}
    optimizer.state.clear()
    optimizer.state.update(new)


def _names(function: str, optimizer: Any, named: Any) -> dict[Tensor, str]:
    check_type(function, "optimizer", optimizer, torch.optim.Optimizer, "one of torch.optim")
    check_mapping(function, "named", named, "the optimizer's parameters by name")
    names = {tensor: name for name, tensor in named.items()}
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    missing = [shape(tensor) for tensor in held if tensor not in names]
    if missing:
        raise ValueError(
            f"{function}: named lacks {len(missing)} of the optimizer's {len(held)} parameters, of shapes "
            f"{listing(missing)}. Name them all: the student's and every bridge's."
        )
    return {tensor: names[tensor] for tensor in held}


def _copied(value: Any, parameter: Tensor) -> Any:
    def copied(tensor: Tensor) -> Tensor:
        device = parameter.device if tensor.ndim else tensor.device
        return tensor.detach().to(device, copy=True)

    return map_tensors(copied, value)
