"""Whether the tensors that a stage is given are still its module's.

A dict of parameters holds a module's own tensors. Somebody may put others into the module: `.to` does so
with buffers, `load_state_dict(assign=True)` with all. The dict keeps the old ones, and a walk would read them
in silence.
"""

from collections.abc import Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from .copies import Copy, Places


class _Own(NamedTuple):
    """A tensor that a module had when its copy was made."""

    name: str  # in the network's dict
    part: nn.Module
    key: str
    tensor: ref[Tensor]


_OWN: WeakKeyDictionary[nn.Module, tuple[_Own, ...]] = WeakKeyDictionary()
"""By the copy. Tensors are not kept alive: a module may release them."""


def remember(copied: nn.Module, module: nn.Module, places: Places) -> None:
    """Keep in mind what a module holds, in the places that every call of its copy fills."""
    own = []
    for place, name in (places.params | places.buffers).items():
        owner, _, key = place.rpartition(".")
        part = module.get_submodule(owner)
        tensor = part._parameters.get(key, part._buffers.get(key))
        if tensor is not None:
            own.append(_Own(name, part, key, ref(tensor)))
    _OWN[copied] = tuple(own)


def check_standing(own: Copy, given: Mapping[str, Tensor]) -> None:
    """Raise where a stage is given a tensor that was its module's and is not any more.

    Other tensors may be anybody's: an average, a shard, one of `torch.func`.
    """
    for name, part, key, tensor in _OWN.get(own.module, ()):
        if name in given and given[name] is tensor():
            now = part._parameters.get(key, part._buffers.get(key))
            if now is not given[name] and not (now is not None and now.is_meta):
                raise ValueError(
                    f"stage: {name!r} is not the module's any more, which has another there, as after .to "
                    "or load_state_dict(assign=True). Split and link after that."
                )
