"""A mapping whose values are converted when they are read, and no sooner."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Reading(Mapping[str, Any]):
    """The names of a mapping, and what a function makes of its values."""

    def __init__(self, held: Mapping[str, Any], convert: Callable[[Any], Any]) -> None:
        self.held, self.convert = held, convert

    def __getitem__(self, name: str) -> Any:
        return self.convert(self.held[name])

    def __contains__(self, name: object) -> bool:  # or else an entry is converted to see whether it is there
        return name in self.held

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)
