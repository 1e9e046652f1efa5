"""The catalogue: one row for every public function of the loss families.

`tests/families/test_laws.py` holds every row to the laws, the docs print the rows as a table, and
`python -m benchmarks.losses` measures them. Adding a loss is adding a row.
"""

from . import (
    contrastive,
    detection,
    divergences,
    features,
    logits,
    maps,
    ranks,
    relations,
    sparse,
    standardization,
    temperatures,
    tokens,
    vocabularies,
)
from .row import Row as Row, Size as Size

FAMILIES = (
    "logits",
    "divergences",
    "ranks",
    "sparse",
    "vocabularies",
    "temperatures",
    "features",
    "maps",
    "tokens",
    "standardization",
    "relations",
    "contrastive",
    "detection",
)

ROWS: tuple[Row, ...] = (
    *logits.ROWS,
    *divergences.ROWS,
    *ranks.ROWS,
    *sparse.ROWS,
    *vocabularies.ROWS,
    *temperatures.ROWS,
    *features.ROWS,
    *maps.ROWS,
    *tokens.ROWS,
    *standardization.ROWS,
    *relations.ROWS,
    *contrastive.ROWS,
    *detection.ROWS,
)
