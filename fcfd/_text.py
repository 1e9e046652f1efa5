"""What the library says: tables of records, and the texts of errors about arguments. No torch here."""

from collections.abc import Mapping, Sequence
from math import inf
from numbers import Integral, Real
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
        rows = [*rows[:half], ("…", f"{len(rows) - 2 * half} more"), *rows[-half:]]
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


# Arguments. `SymInt` and `SymFloat` are torch's numbers of a trace, told by name: torch is not imported here.


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


def check_choice(function: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise unless a value is one of a few words."""
    if not isinstance(value, str) or value not in choices:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{function}: {name} {value!r} must be {' or '.join(map(repr, choices))}.")


def check_flag(function: str, name: str, value: Any) -> None:
    """Raise a TypeError unless a value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{function}: {name} {value!r} must be True or False.")


def check_integer(function: str, name: str, value: Any, *, least: int | None = None) -> int:
    """A whole number of any type that is one (numpy's too), but for a truth value."""
    symbolic = type(value).__name__ == "SymInt"
    if isinstance(value, bool) or not (isinstance(value, (int, Integral)) or symbolic):
        raise TypeError(f"{function}: {name} {value!r} must be a whole number.")
    number: int = value if isinstance(value, int) or symbolic else int(value)
    if least is not None and number < least:
        raise ValueError(f"{function}: {name} {number} must be at least {least}.")
    return number


def check_plain(
    function: str,
    name: str,
    value: Any,
    *,
    above: float = -inf,
    least: float = -inf,
    most: float = inf,
    below: float = inf,
) -> None:
    """Raise unless a value is a finite number in a range that Python itself can read."""
    symbolic = type(value).__name__ in ("SymFloat", "SymInt")
    if isinstance(value, bool) or not (isinstance(value, (float, int, Real)) or symbolic):
        raise TypeError(f"{function}: {name} {value!r} must be a number.")
    number: Any = value
    if not (above < number < below and least <= number <= most):
        bounds = {"above": above, "at least": least, "below": below, "at most": most}
        wanted = [f"{word} {bound:g}" for word, bound in bounds.items() if abs(bound) != inf]
        raise ValueError(f"{function}: {name} {value} must be {' and '.join(wanted) or 'finite'}.")


def check_number(function: str, name: str, value: Any, **bounds: float) -> None:
    """The same of a number or a tensor of one, which is not read: the host would have to wait for it."""
    if isinstance(value, (float, int)) or not hasattr(value, "is_floating_point"):
        check_plain(function, name, value, **bounds)
    elif value.ndim:
        raise ValueError(f"{function}: {name} {list(value.shape)} must be a number, or a tensor of one, [].")
    elif not value.is_floating_point():
        raise TypeError(f"{function}: {name} {list(value.shape)} of {value.dtype} must be floating-point.")
