"""Rows of `fcfd.detection`."""

from .row import Row

ROWS: tuple[Row, ...] = ()
