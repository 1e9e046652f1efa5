"""Rows of `fcfd.contrastive`."""

from .row import Row

ROWS: tuple[Row, ...] = ()
