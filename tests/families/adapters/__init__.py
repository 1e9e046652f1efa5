"""How the published losses are said in this library: one adapter a name, compositions by composing.

`ADAPTERS` gives what the published code computes. `PAPER` gives what the paper's formula says, for the names
where the code does something else.
"""

from . import contrastive, detection, features, logits, maps, relations
from ._types import Adapters as Adapters

_FAMILIES = (logits, features, maps, relations, contrastive, detection)

ADAPTERS: Adapters = {name: adapter for family in _FAMILIES for name, adapter in family.ADAPTERS.items()}
PAPER: Adapters = {name: adapter for family in _FAMILIES for name, adapter in family.PAPER.items()}
