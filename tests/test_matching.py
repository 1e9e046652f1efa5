"""Matching: the minimum of all combinations, found in the time of a table."""

from itertools import combinations
from math import log2

import pytest
from hypothesis import given, strategies as st

from fcfd import match

sides = st.lists(st.sampled_from([7, 14, 28, 56]), max_size=8).map(lambda found: sorted(found, reverse=True))


def _cost(depths, longer, shorter):
    return sum(
        abs(log2((longer[j - 1] / side) ** 2)) + abs(i / (len(shorter) + 1) - j / (len(longer) + 1))
        for i, (j, side) in enumerate(zip(depths, shorter, strict=True), start=1)
    )


@given(sides, sides)
def test_it_is_the_minimum_of_all_combinations(one, other):
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    shapes = [[(2, 8, side, side) for side in own] for own in (longer, shorter)]
    found = match(*shapes)
    best = min(
        _cost(depths, longer, shorter) for depths in combinations(range(1, len(longer) + 1), len(shorter))
    )
    assert list(found) == sorted({*found})
    assert _cost(found, longer, shorter) == pytest.approx(best)


def test_deep_networks_are_matched_at_once():
    """By all combinations this would take years."""
    found = match([(2, 197, 768)] * 96, [(2, 197, 384)] * 48)
    assert len(found) == 48


def test_the_longer_network_comes_first():
    with pytest.raises(ValueError, match="match: the longer network has 1 features, the shorter 2; exchange"):
        match([(2, 3)], [(2, 3), (2, 3)])
