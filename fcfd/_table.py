"""Tables of text: how records show themselves, short whatever they hold."""

from collections.abc import Sequence

_ROWS = 12
_WIDTH = 48


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
