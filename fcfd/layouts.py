"""Layouts: where a feature has its channels and its places.

Losses and bridges read features in one of these forms, and take the number of axes for the form:

| form | axes |
|---|---|
| vector | `[batch, channels]` |
| tokens | `[batch, tokens, channels]` |
| map | `[batch, channels, height, width]` |
| volume | `[batch, channels, depth, height, width]` |

A network may hand out others: channels last, a sequence with channels first, a grid laid out in a row. A
pattern in the words of einops says which: `"b c t"`, `"b h w c"`, `"b (h w) c"` with a size, `"b (h=4 w) c"`,
and class tokens before a grid, `"b (1 + h=14 w) c"`. `fcfd.link` brings every feature into its form by it.
"""

import math
from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from ._text import check_type

Shape = tuple[int, ...]


class Grid(NamedTuple):
    """How tokens lie in space: rows and columns, and class tokens before them."""

    height: int
    width: int
    prefix: int = 0


class Layout(NamedTuple):
    """A pattern, read.

    Args:
        raw: The axes as the network hands them out, in einops' words.
        form: The axes in the form that losses and bridges read.
        sizes: The sizes of places that the pattern tells.
        prefix: How many class tokens stand before the places; `None` where no grid is spoken of.
    """

    raw: str
    form: str
    sizes: dict[str, int]
    prefix: int | None = None


# From a pattern to a layout


def parse(pattern: str) -> Layout:
    """Read a pattern of axes.

    `b` is the batch, `c` the channels, every other name a place. A row of places in brackets is one axis.

    Raises:
        ValueError: The pattern has no batch, no channels, or something that is no axis.

    Example:
        >>> parse("b c t")
        Layout(raw='b c t', form='b c 1 t', sizes={}, prefix=None)
        >>> parse("b (h=4 w) c")
        Layout(raw='b (h w) c', form='b c h w', sizes={'h': 4}, prefix=None)
        >>> parse("b (1 + h=14 w) c").prefix
        1
    """
    if not isinstance(pattern, str):
        raise TypeError(f"parse: a layout is a pattern such as 'b c t', not {type(pattern).__name__}.")
    words = pattern.replace("(", " ( ").replace(")", " ) ").replace("+", " + ").split()
    prefix = None
    if "+" in words:
        at = words.index("+")
        if at < 2 or words[at - 2] != "(" or not words[at - 1].isdigit():
            raise ValueError(f"layout {pattern!r}: write class tokens as 'b (1 + h w) c'.")
        prefix = int(words[at - 1])
        del words[at - 1 : at + 1]
    axes, sizes = list[str](), dict[str, int]()
    in_a_row = False
    for at, word in enumerate(words):
        name, equals, size = word.partition("=")
        if name not in ("(", ")") and not name.isidentifier():
            raise ValueError(f"layout {pattern!r}: {word!r} is no axis; write names such as 'b c h w'.")
        in_a_row = name == "(" or (in_a_row and name != ")")
        if equals and not (in_a_row and size.isdecimal() and int(size) > 0):
            raise ValueError(
                f"layout {pattern!r}: {word!r} is no size of a place in a row; write 'b (h=4 w) c'."
            )
        if equals:
            sizes[name] = int(size)
        axes.append(name)
        words[at] = name
    names = [name for name in axes if name not in ("(", ")")]
    if sorted(names) != sorted({*names}) or not {"b", "c"} <= {*names}:
        raise ValueError(f"layout {pattern!r}: name every axis once, 'b' the batch and 'c' the channels.")
    places = [name for name in names if name not in ("b", "c")]
    raw = " ".join(words).replace("( ", "(").replace(" )", ")")
    return Layout(raw, _form(raw, places, sizes, prefix), sizes, prefix)


def _form(raw: str, places: list[str], sizes: dict[str, int], prefix: int | None) -> str:
    row = f"({' '.join(places)})"
    in_a_row = "(" in raw
    if not places:
        return "b c"
    if prefix is not None or (in_a_row and len(sizes) < len(places) - 1):
        return f"b {row} c"  # tokens with class tokens, or on a grid that is not known
    if len(places) == 1:
        return f"b {places[0]} c" if raw.endswith("c") else f"b c 1 {places[0]}"
    return f"b c {' '.join(places)}"


def is_formed(layout: Layout) -> bool:
    """Whether features of a layout are in their form already."""
    return layout.raw == layout.form


def into_form(feature: Tensor, layout: Layout) -> Tensor:
    """A feature of the network, in the form that losses and bridges read.

    Raises:
        ValueError: The feature does not have these axes.

    Example:
        >>> import torch
        >>> list(into_form(torch.zeros(2, 7, 5, 16), parse("b h w c")).shape)
        [2, 16, 7, 5]
    """
    return _rearranged(feature, layout.raw, layout.form, layout)


def out_of_form(feature: Tensor, layout: Layout) -> Tensor:
    """The same feature as the network hands it out: `into_form` backwards."""
    return _rearranged(feature, layout.form, layout.raw, layout)


def _rearranged(feature: Tensor, before: str, after: str, layout: Layout) -> Tensor:
    check_type("layout", "the feature", feature, Tensor, "a tensor")
    if before == after:
        if feature.ndim != (3 if "(" in after else len(after.split())):
            raise ValueError(
                f"layout {layout.raw!r}: a feature {list(feature.shape)} does not have these axes."
            )
        return feature
    axes = before.replace("(", "").replace(")", "").split()
    sizes = {name: size for name, size in layout.sizes.items() if name in axes and "(" in before}
    try:
        return rearrange(feature, f"{before} -> {after}", **sizes)
    except RuntimeError as error:  # of einops
        raise ValueError(
            f"layout {layout.raw!r}: a feature {list(feature.shape)} does not have these axes."
        ) from error


# From a shape to a reading


def channels_last(shape: Shape) -> bool:
    """Whether a feature is a map `[batch, height, width, channels]`: its first two sizes alone are equal."""
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def channel_axis(shape: Shape) -> int:
    """The last axis of tokens `[batch, tokens, channels]`, else the second."""
    return 2 if len(shape) == 3 else 1


def places(shape: Shape) -> int:
    """How many places in space a feature has: pixels of a map, tokens of a sequence, one of a vector.

    Example:
        >>> places((2, 64, 7, 7)), places((2, 49, 64)), places((2, 64))
        (49, 49, 1)
    """
    axis = 3 if channels_last(shape) else channel_axis(shape)
    return math.prod(shape[1:]) // shape[axis]


def average(feature: Tensor) -> Tensor:
    """The mean of a feature over its places: `[batch, channels]`."""
    if feature.ndim == 2:
        return feature
    return feature.movedim(channel_axis(tuple(feature.shape)), 1).flatten(2).mean(2)


def grid(tokens: int, *, layout: Layout | None = None, ratio: float | None = None) -> Grid | None:
    """The grid of a sequence of tokens: as its layout tells, or as a ratio of height to width tells.

    Args:
        tokens: How many there are, class tokens included.
        layout: Where it is stated: `"b (1 + h=14 w) c"`.
        ratio: Height by width of what the tokens were made of, an image or a map.

    Returns:
        The grid, or `None` where neither tells one.

    Raises:
        ValueError: The layout's sizes do not divide the tokens, or two grids fit the ratio.

    Example:
        >>> grid(197, ratio=1.0)
        Grid(height=14, width=14, prefix=1)
        >>> grid(64, ratio=0.25)
        Grid(height=4, width=16, prefix=0)
    """
    if layout is not None and layout.sizes:
        return _stated(tokens, layout)
    if ratio is None:
        return None
    prefixes = [layout.prefix] if layout is not None and layout.prefix is not None else range(6)
    fitting = list[Grid]()
    for prefix in prefixes:
        height = round(math.sqrt(max(tokens - prefix, 0) * ratio))
        if height > 0 and (tokens - prefix) % height == 0:
            width = (tokens - prefix) // height
            if abs(height - ratio * width) < 1e-6 * height:
                fitting.append(Grid(height, width, prefix))
    if len(fitting) > 1:
        both = " or ".join(f"{one.prefix} + {one.height}·{one.width}" for one in fitting)
        raise ValueError(f"layout: {tokens} tokens may be {both}; state one, as in 'b (1 + h=14 w) c'.")
    return fitting[0] if fitting else None


def _stated(tokens: int, layout: Layout) -> Grid:
    names = layout.raw[layout.raw.find("(") + 1 : layout.raw.find(")")].split()
    prefix, known = layout.prefix or 0, math.prod(layout.sizes.values())
    others = [name for name in names if name not in layout.sizes]
    if (
        len(names) != 2
        or len(others) > 1
        or (tokens - prefix) % known
        or (not others and tokens - prefix != known)
    ):
        raise ValueError(f"layout {layout.raw!r} with {layout.sizes}: {tokens} tokens are no such grid.")
    sizes = layout.sizes | dict.fromkeys(others, (tokens - prefix) // known)
    return Grid(sizes[names[0]], sizes[names[1]], prefix)
