"""Draw `figures/paths.svg`: two columns, one crossed path, and the name of every value.

`python -m docs.scripts.schematic` writes the file.
"""

from pathlib import Path

FILE = Path(__file__).parents[1] / "figures" / "paths.svg"

STUDENT, TEACHER, BRIDGE, INK = "#1d4ed8", "#b45309", "#7c3aed", "#334155"
ROWS = {"s": 100, ">": 190, "t": 280}
LEFT, STEP, WIDTH, HEIGHT = 70, 150, 900, 345


def drawn() -> str:
    """The figure as text."""
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>', *map(_marker, _COLOURS)]
    stages = ("stage 1", "stage 2", "stage 3", "stage 4", "classifier")
    parts += [_text(_x(at + 0.5), 45, stage, INK, 13) for at, stage in enumerate(stages)]
    parts += [_text(LEFT, 45, "batch", INK, 13), _value(0, 190, '""', INK)]
    for letter, colour in (("s", STUDENT), ("t", TEACHER)):
        first = ROWS[letter]
        parts.append(_arrow(_x(0) + 12, 190 + (14 if first > 190 else -14), _x(1) - 34, first, colour))
        parts += [_along(at, at + 1, first, colour) for at in range(1, 5)]
        parts += [_value(at, first, letter * at, colour) for at in range(1, 6)]
    parts.append(_arrow(_x(2), ROWS["s"] + 15, _x(2), ROWS[">"] - 16, BRIDGE))
    parts.append(_text(_x(2) + 12, 149, "bridge", BRIDGE, 13, "start"))
    parts += [_along(at, at + 1, ROWS[">"], TEACHER) for at in range(2, 5)]
    crossed = ("ss&gt;t", "sst", "sstt", "ssttt")
    parts += [_value(at, ROWS[">"], path, BRIDGE) for at, path in enumerate(crossed, 2)]
    for at, label in ((2, "appearance"), (3, "function"), (4, "function"), (5, "function")):
        parts.append(_arrow(_x(at), ROWS[">"] + 15, _x(at), ROWS["t"] - 16, INK, "stroke-dasharray='3 4'"))
        parts.append(_text(_x(at) + 10, 239, label, INK, 12, "start"))
    parts += [_text(_x(1), ROWS["s"] - 24, "student", STUDENT, 14), _text(_x(1), 319, "teacher", TEACHER, 14)]
    parts.append(_text(_x(3.6), 160, "the teacher’s own stages, run on the student’s feature", TEACHER, 13))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Two networks of five stages and a path that crosses from one to the other">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


_COLOURS = (STUDENT, TEACHER, BRIDGE, INK)


def _x(at: float) -> float:
    return LEFT + STEP * at


def _marker(colour: str) -> str:
    return (
        f'<marker id="{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
    )


def _arrow(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    more = more.replace("'", '"')
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="2" '
        f'marker-end="url(#{colour[1:]})"{" " + more if more else ""}/>'
    )


def _along(begin: float, end: float, y: float, colour: str) -> str:
    return _arrow(_x(begin) + 34, y, _x(end) - 35, y, colour)


def _value(at: float, y: float, path: str, colour: str) -> str:
    box = (
        f'<rect x="{_x(at) - 33:g}" y="{y - 15:g}" width="66" height="30" rx="8" fill="#f8fafc" '
        f'stroke="{colour}" stroke-width="1.5"/>'
    )
    return box + _text(_x(at), y + 5, path, colour, 15, family="ui-monospace, monospace")


def _text(
    x: float, y: float, text: str, colour: str, size: int, anchor: str = "middle", family: str = "sans-serif"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" font-family="{family}" '
        f'text-anchor="{anchor}">{text}</text>'
    )


if __name__ == "__main__":
    FILE.write_text(drawn())
