"""What the library says: tables of records, and the texts of errors about arguments. No torch here."""

from collections.abc import Mapping, Sequence
from math import inf
from numbers import Real
from typing import Any

_ROWS = 12
_WIDTH = 48


# Records


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header, columns aligned; of many rows the first and the last, of long cells the ends.

    Example:
        >>> print(table(("part", "value"), [("label", "2.3"), ("kl/student", "0.1")]))
        part        value
        label       2.3
        kl/student  0.1
    """
    if len(rows) > _ROWS:
        half = _ROWS // 2
        rows = [*rows[:half], (f"… {len(rows) - 2 * half} more",), *rows[-half:]]
    lines = [[short(cell) for cell in row] for row in (header, *rows)]
    widths = [0] * len(header)
    for line in lines:
        for at, cell in enumerate(line):
            widths[at] = max(widths[at], len(cell))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )


def short(text: str) -> str:
    """A text of one line and at most 48 characters, its middle left out where it is longer."""
    text = " ".join(str(text).split())
    half = (_WIDTH - 1) // 2
    return text if len(text) <= _WIDTH else f"{text[:half]}…{text[-half:]}"


def listing(names: Sequence[str], most: int = 8) -> str:
    """Names in a row, and how many more there are.

    Example:
        >>> listing(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(short(name) for name in names[:most]) or "none") + more


# Arguments


def check_type(function: str, name: str, value: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise a TypeError unless a value is of a kind; `wanted` says what to give."""
    if not isinstance(value, kind):
        raise TypeError(f"{function}: {name} is of type {type(value).__name__}; give {wanted}.")


def check_mapping(function: str, name: str, value: Any, wanted: str) -> None:
    """Raise a TypeError unless a value is a mapping."""
    check_type(function, name, value, Mapping, wanted)


def check_callable(function: str, name: str, value: Any) -> None:
    """Raise a TypeError unless a value can be called."""
    if not callable(value):
        raise TypeError(f"{function}: {name} is of type {type(value).__name__}; give a function.")


def check_integer(function: str, name: str, value: Any, *, least: int | None = None) -> int:
    """An integer of any type that is one (numpy's too), but for a truth value."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{function}: {name} is {value!r} of type {type(value).__name__}; give an integer.")
    value = value.__index__()
    if least is not None and value < least:
        raise ValueError(f"{function}: {name} is {value}; give at least {least}.")
    return int(value)


def check_number(
    function: str, name: str, value: Any, *, above: float | None = None, least: float | None = None
) -> None:
    """Raise unless a value is a finite number in a range. Tensors are not read: the host would wait."""
    is_number = isinstance(value, (int, float, Real)) and not isinstance(value, bool)
    if not is_number:
        if not hasattr(value, "ndim"):
            raise TypeError(f"{function}: {name} is {value!r} of type {type(value).__name__}; give a number.")
        if value.ndim > 0:
            raise ValueError(f"{function}: {name} has the shape {list(value.shape)}; give one number.")
        return
    if not -inf < value < inf:
        raise ValueError(f"{function}: {name} is {value}; give a finite number.")
    if (above is not None and value <= above) or (least is not None and value < least):
        bound = f"above {above}" if above is not None else f"of at least {least}"
        raise ValueError(f"{function}: {name} is {value}; give a number {bound}.")
