"""What a stage's copy refuses: to write to its weights, and to be read when the call is over."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# Writing to weights


@contextmanager
def unwritten(weights: Iterable[Tensor], text: str) -> Iterator[None]:
    """Refuse, by an error of this text, what writes to weights: before it does, or else it is undone.

    The context slows every operation down, so it is for a first call alone.
    """
    held = [(weight, weight.requires_grad, _version(weight), _memory(weight)) for weight in weights]
    data = [weight.detach() for weight, *_ in held]
    wrote = False
    try:
        with _Watch({memory for *_, memory in held if memory}, text):
            yield
    finally:
        for own, (weight, flag, version, memory) in zip(data, held, strict=True):
            if weight.requires_grad != flag:
                weight.requires_grad_(flag)
                wrote = True
            if _memory(weight) != memory:
                weight.data = own
                wrote = True
            wrote = wrote or _version(weight) != version
    if wrote:
        raise ValueError(text)


class _Watch(TorchDispatchMode):
    """Refuses operations that write to some memory."""

    supports_higher_order_operators = True

    def __init__(self, memory: set[int], text: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory, self.text = memory, text

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # operators of higher order have none
        if schema is not None and schema.is_mutable:
            for at, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = args[at] if at < len(args) else kwargs.get(argument.name)
                    for tensor in written if isinstance(written, list | tuple) else (written,):
                        if isinstance(tensor, Tensor) and _memory(tensor) in self.memory:
                            raise ValueError(self.text)
        return func(*args, **kwargs)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Functions that the model compiles for itself stay compiled."""
        return True


def _memory(tensor: Tensor) -> int:
    """Where a tensor's memory is; 0 where it has none, or is one of `torch.func`, which does not tell."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


# Reading when the call is over


class Absent(Tensor):
    """Stands where a call puts a weight. Whatever reads it comes too late: between calls there is none."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():  # a trace asks for its shape
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        raise ValueError(
            "stage: the module reads its parameters when its call is over, and a stage has none then. Where "
            "it recomputes in the backward pass by itself (torch.utils.checkpoint), turn that off, and "
            "recompute the stage: fcfd.checkpointed."
        )

    def __repr__(self) -> str:  # type: ignore[override]
        return "Absent()"

    def __deepcopy__(self, memo: Any) -> Tensor:
        return absent()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return absent, ()


def absent() -> Tensor:
    """A new `Absent`."""
    return torch.empty(0, device="meta").as_subclass(Absent)


def vacate(copied: nn.Module) -> None:
    """Put an `Absent` in every place of a module that a call fills."""
    for module in copied.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    held[key] = absent()  # type: ignore[assignment]
