"""Splitting: from a model, without an edit to it, to stages."""

from .cutting import Boundary as Boundary, Network as Network, split as split
