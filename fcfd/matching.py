"""Match networks of different depths: which features of the longer lie where those of the shorter do."""

from collections.abc import Sequence
from math import inf, log2

from ._text import check_integer, check_type
from .layouts import places

Shape = tuple[int, ...]


def match(longer: Sequence[Shape], shorter: Sequence[Shape]) -> tuple[int, ...]:
    """Choose as many features of the longer network as the shorter has, in order, by where they lie.

    ```
    argmin over increasing j of
        Σ_i |log2(places_j / places_i)| + |i / (m + 1) − j / (n + 1)|
    ```

    So features match by resolution, and where that does not tell, by relative depth. The minimum is found by
    dynamic programming, in time n · m; of several, the earliest depths.

    Args:
        longer: Shapes of a network's n features, logits excluded.
        shorter: Shapes of another's m ≤ n features.

    Returns:
        m depths of the longer network, from 1, increasing.

    Raises:
        ValueError: The shorter network has more features than the longer.

    Example:
        >>> maps = [(2, 64, side, side) for side in (112, 56, 28, 14, 7)]
        >>> match(maps, [(2, 32, 28, 28), (2, 96, 7, 7)])
        (3, 5)
        >>> match([(2, 197, 768)] * 12, [(2, 197, 384)] * 3)
        (3, 6, 10)
    """
    for name, shapes in (("longer", longer), ("shorter", shorter)):
        check_type("match", name, shapes, Sequence, "the shapes of a network's features")
        for one in shapes:
            check_type("match", f"an entry of {name}", one, (tuple, list), "a shape, as tuple(feature.shape)")
            for size in one:
                check_integer("match", f"a size of {name}", size)
            if len(one) < 2 or min(one) < 1:
                raise ValueError(f"match: {name} has {list(one)}, which is no shape of a feature.")
    n, m = len(longer), len(shorter)
    if m > n:
        raise ValueError(f"match: the longer network has {n} features, the shorter {m}; exchange them.")
    # best[i][j]: the least cost of matching the shorter's features from i on to the longer's from j on, and
    # which of the longer's then is the first.
    best = [[(inf, n)] * (n + 1) for _ in range(m)] + [[(0.0, n)] * (n + 1)]
    for i in reversed(range(m)):
        for j in reversed(range(n)):
            here = _distance(longer[j], shorter[i], (j + 1) / (n + 1), (i + 1) / (m + 1))
            best[i][j] = min((here + best[i + 1][j + 1][0], j), best[i][j + 1])
    depths = [0]
    for i in range(m):
        depths.append(best[i][depths[-1]][1] + 1)
    return tuple(depths[1:])


def _distance(one: Shape, other: Shape, depth: float, other_depth: float) -> float:
    """How far apart two features lie: in octaves of resolution, and in relative depth."""
    return abs(log2(places(one) / places(other))) + abs(depth - other_depth)
