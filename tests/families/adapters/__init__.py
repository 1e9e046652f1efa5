"""How the published losses are said in this library: one adapter a name, compositions by composing.

`ADAPTERS` gives what the published code computes. `PAPER` gives what the paper's formula says, for the names
where the code does something else.
"""

from . import (
    compositions,
    contrastive,
    detection,
    divergences,
    features,
    logits,
    maps,
    ranks,
    relations,
    sparse,
    tokens,
    vocabularies,
)
from ._types import Adapters as Adapters

_FAMILIES = (
    logits,
    compositions,
    divergences,
    ranks,
    sparse,
    vocabularies,
    features,
    maps,
    relations,
    contrastive,
    tokens,
    detection,
)

ADAPTERS: Adapters = {name: adapter for family in _FAMILIES for name, adapter in family.ADAPTERS.items()}
PAPER: Adapters = {name: adapter for family in _FAMILIES for name, adapter in family.PAPER.items()}
