"""A mapping whose values are converted when they are read, and no sooner."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch


class Reading(Mapping[str, Any]):
    """The names of a mapping, and what a function makes of its values: one object while anybody has it."""

    def __init__(self, held: Mapping[str, Any], convert: Callable[[Any], Any]) -> None:
        self.held, self.convert = held, convert
        # A compiler cannot follow weak references.
        self.alive = None if torch.compiler.is_compiling() else WeakValueDictionary[Any, Any]()

    def __getitem__(self, name: str) -> Any:
        if self.alive is None or torch.compiler.is_compiling():
            return self.convert(self.held[name])
        key = name, torch.is_grad_enabled()  # without a gradient it is another tensor
        value = self.alive.get(key)
        if value is None:
            value = self.alive[key] = self.convert(self.held[name])
        return value

    def __contains__(self, name: object) -> bool:  # or else an entry is converted to see whether it is there
        return name in self.held

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)
