"""Rows of `fcfd.features`."""

from fcfd import features

from .row import Row, map_pair

ROWS: tuple[Row, ...] = (
    Row(features.squared_error, "match a feature value by value", "B·C·N", map_pair),
    Row(
        features.pooled_squared_error,
        "match what a classifier reads of a map",
        "B·C·N",
        map_pair,
        kinks="",
    ),
)
