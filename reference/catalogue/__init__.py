"""The catalogue: one row for every public function of the loss families.

`tests/families/test_laws.py` holds every row to the laws, the docs print the rows as a table, and
`python -m benchmarks.losses` measures them. Adding a loss is adding a row.
"""

from . import contrastive, detection, features, logits, maps, relations, temperatures
from .row import Row as Row, Size as Size

FAMILIES = ("logits", "temperatures", "features", "maps", "relations", "contrastive", "detection")

ROWS: tuple[Row, ...] = (
    *logits.ROWS,
    *temperatures.ROWS,
    *features.ROWS,
    *maps.ROWS,
    *relations.ROWS,
    *contrastive.ROWS,
    *detection.ROWS,
)
