"""From the names and hyper-parameters of the published losses to calls of `fcfd.relations`."""

from ._types import Adapters

ADAPTERS: Adapters = {}

PAPER: Adapters = {}
