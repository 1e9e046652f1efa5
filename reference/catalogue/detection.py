"""Rows of `fcfd.families.detection`."""

from fcfd.families import detection

from .row import Row, logit_pair

ROWS: tuple[Row, ...] = (
    Row(
        detection.kd_quality_focal,
        "match the class scores of a detection head",
        "B·C",
        logit_pair,
        output="..., classes",
    ),
)
