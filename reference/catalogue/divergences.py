"""Rows of `fcfd.families.divergences`."""

from fcfd.families import divergences

from .row import Row, Size, logit_pair

CROSS_ENTROPY = "a cross-entropy: the teacher's own entropy is not subtracted"

ROWS: tuple[Row, ...] = (
    Row(
        divergences.ikl,
        "match all differences of logits, also of unlikely classes",
        "B·C",
        logit_pair,
        output="...",
        not_zero=CROSS_ENTROPY,
    ),
    Row(
        divergences.gkl,
        "the same, with a weight for each example",
        "B·C",
        logit_pair,
        {"gamma": 0.5},
        output="",
        couples="an example's weight is relative to the others'",
        not_zero=CROSS_ENTROPY,
    ),
    Row(
        divergences.ab_divergence,
        "between the forward and the reverse divergence, in two directions",
        "B·C",
        logit_pair,
        output="...",
    ),
    Row(
        divergences.akl,
        "forward or reverse, by what part of the distribution is wrong",
        "B·C·log C",
        logit_pair,
        output="...",
        detaches="the student in the weights of the two divergences",
    ),
    Row(
        divergences.alpha_mixture,
        "put an assistant between student and teacher",
        "B·C",
        logit_pair,
        output="..., classes",
        targets=(),
        least=Size(1, 2, 1),
    ),
    Row(
        divergences.taid,
        "follow a target that moves to the teacher",
        "B·C",
        logit_pair,
        output="...",
        not_zero=CROSS_ENTROPY,
        detaches="the student in the target",
    ),
)
