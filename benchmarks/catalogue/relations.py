"""Rows of `fcfd.relations`."""

from .row import Row

ROWS: tuple[Row, ...] = ()
