"""How the published losses are said in this library: one adapter a name, compositions by composing."""

from . import contrastive, detection, features, logits, relations
from ._types import Adapter as Adapter

ADAPTERS: dict[str, Adapter] = {
    **logits.ADAPTERS,
    **features.ADAPTERS,
    **relations.ADAPTERS,
    **contrastive.ADAPTERS,
    **detection.ADAPTERS,
}
