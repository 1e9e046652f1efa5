"""Rows of `fcfd.logits`."""

from fcfd import logits

from .row import Row, logit_pair

ROWS: tuple[Row, ...] = (Row(logits.kl, "match the teacher's softened probabilities", "B·C", logit_pair),)
