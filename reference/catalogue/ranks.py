"""Rows of `fcfd.families.ranks`."""

from fcfd.families import ranks

from .row import Row, Size, logit_pair, logit_pair_and_labels

ROWS: tuple[Row, ...] = (
    Row(
        ranks.rld,
        "leave out what the teacher ranks above the label",
        "B·C",
        logit_pair_and_labels,
        output="...",
        not_zero="the label is to be as likely as the teacher's first class",
    ),
    Row(
        ranks.gdkd,
        "weigh the teacher's first classes and the rest apart",
        "B·C·log C",
        logit_pair,
        {"k": 2},
        output="...",
        least=Size(1, 3, 1),
    ),
    Row(
        ranks.gdkd3,
        "the same, the very first by itself",
        "B·C·log C",
        logit_pair,
        {"k": 2},
        output="...",
        least=Size(1, 3, 1),
    ),
    Row(
        ranks.topk_nckd,
        "decouple the label from the teacher's first classes",
        "B·C·log C",
        logit_pair_and_labels,
        {"k": 3},
        output="...",
    ),
)
