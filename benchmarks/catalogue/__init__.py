"""The catalogue: one row for every public function of the loss families.

`tests/test_laws.py` holds every row to the laws, the docs print the rows as a table, and
`python -m benchmarks.losses` measures them. Adding a loss is adding a row.
"""

from . import contrastive, detection, features, logits, maps, policies, relations
from .row import Row as Row, Size as Size

FAMILIES = ("logits", "policies", "features", "maps", "relations", "contrastive", "detection")

ROWS: tuple[Row, ...] = (
    *logits.ROWS,
    *policies.ROWS,
    *features.ROWS,
    *maps.ROWS,
    *relations.ROWS,
    *contrastive.ROWS,
    *detection.ROWS,
)
