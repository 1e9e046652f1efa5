"""Splitting: from a model, without an edit to it, to stages."""

from .cutting import split as split
from .network import Boundary as Boundary, Network as Network
