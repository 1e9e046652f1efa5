"""Where the channels of a feature are: maps have them first, token sequences last, and some maps last too."""

import math

from torch import Tensor


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether a feature is a map `[batch, height, width, channels]`: its first two sizes alone are equal."""
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def channel_axis(shape: tuple[int, ...]) -> int:
    """The last axis of tokens `[batch, tokens, width]` and of channels-last maps, else the second."""
    return len(shape) - 1 if len(shape) == 3 or channels_last(shape) else 1


def places(shape: tuple[int, ...]) -> int:
    """How many places in space a feature has: pixels of a map, tokens of a sequence, one of a vector.

    Example:
        >>> places((2, 64, 7, 7)), places((2, 7, 7, 64)), places((2, 49, 64)), places((2, 64))
        (49, 49, 49, 1)
    """
    return math.prod(shape[1:]) // shape[channel_axis(shape)]


def average(feature: Tensor) -> Tensor:
    """The mean of a feature over its places: `[batch, channels]`."""
    if feature.ndim == 2:
        return feature
    return feature.movedim(channel_axis(tuple(feature.shape)), 1).flatten(2).mean(2)
