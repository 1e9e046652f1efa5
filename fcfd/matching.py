"""Match networks of different depths: which features of the longer lie where those of the shorter do."""

from collections.abc import Sequence
from itertools import combinations
from math import log2

from ._layout import places


def match(longer: Sequence[tuple[int, ...]], shorter: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Choose as many features of the longer network as the shorter has, in order, by where they lie.

    ```
    argmin over increasing j of  Σ_i |log2(places_j / places_i)| + |i / (m + 1) − j / (n + 1)|
    ```

    So features match by resolution, and where that does not tell, by relative depth.

    Args:
        longer: Shapes of a network's n features, logits excluded.
        shorter: Shapes of another's m ≤ n features.

    Returns:
        m depths of the longer network, from 1, increasing.

    Example:
        >>> maps = [(2, 64, side, side) for side in (112, 56, 28, 14, 7)]
        >>> match(maps, [(2, 32, 28, 28), (2, 96, 7, 7)])
        (3, 5)
        >>> match([(2, 197, 768)] * 12, [(2, 197, 384)] * 3)
        (3, 6, 10)
    """
    counts = [places(shape) for shape in longer]

    def distance(depths: tuple[int, ...]) -> float:
        return sum(
            abs(log2(counts[depth - 1] / places(shape)))
            + abs(at / (len(shorter) + 1) - depth / (len(longer) + 1))
            for at, (depth, shape) in enumerate(zip(depths, shorter, strict=True), start=1)
        )

    return min(combinations(range(1, len(longer) + 1), len(shorter)), key=distance)
