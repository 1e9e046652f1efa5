"""Layouts: patterns of axes, the forms that losses read, and grids of tokens."""

import pytest
import torch
from hypothesis import given, strategies as st

from fcfd.layouts import average, grid, into_form, is_formed, out_of_form, parse, places

PATTERNS = {
    "b c": ((2, 3), (2, 3)),
    "b c t": ((2, 3, 5), (2, 3, 1, 5)),
    "b t c": ((2, 5, 3), (2, 5, 3)),
    "t b c": ((5, 2, 3), (2, 5, 3)),
    "b c h w": ((2, 3, 4, 5), (2, 3, 4, 5)),
    "b h w c": ((2, 4, 5, 3), (2, 3, 4, 5)),
    "b (h=4 w) c": ((2, 20, 3), (2, 3, 4, 5)),
    "b c (h=4 w)": ((2, 3, 20), (2, 3, 4, 5)),
    "b (h w) c": ((2, 20, 3), (2, 20, 3)),
    "b (1 + h=4 w) c": ((2, 21, 3), (2, 21, 3)),
    "b d h w c": ((2, 6, 4, 5, 3), (2, 3, 6, 4, 5)),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_feature_comes_into_its_form_and_back(pattern):
    raw, form = PATTERNS[pattern]
    layout, feature = parse(pattern), torch.randn(raw)
    formed = into_form(feature, layout)
    assert formed.shape == form
    assert is_formed(layout) == (raw == form and layout.raw == layout.form)
    assert torch.equal(out_of_form(formed, layout), feature)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("b t", "name every axis once, 'b' the batch and 'c' the channels"),
        ("c h w", "name every axis once"),
        ("b c h h", "name every axis once"),
        ("b c ...", "'...' is no axis"),
        ("b 1 + h c", "write class tokens as"),
        ("b (x + h) c", "write class tokens as"),
    ],
)
def test_a_pattern_that_is_none_is_refused(pattern, text):
    with pytest.raises(ValueError, match="^layout ") as error:
        parse(pattern)
    assert text in str(error.value)


def test_a_feature_with_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"layout 'b h w c': a feature \[2, 3, 4\] does not have these axes"):
        into_form(torch.zeros(2, 3, 4), parse("b h w c"))
    with pytest.raises(TypeError, match="parse: a layout is a pattern such as 'b c t', not NoneType"):
        parse(None)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_a_stated_grid_is_the_grid(height, width, prefix):
    stated = parse(f"b ({prefix} + h={height} w) c")
    assert grid(prefix + height * width, layout=stated) == (height, width, prefix)


@given(st.integers(6, 40), st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0]), st.integers(0, 2))
def test_a_grid_is_found_by_the_ratio_of_the_image(side, ratio, prefix):
    height, width = round(side * ratio) * 4, side * 4
    if height != ratio * width:
        return
    assert grid(prefix + height * width, ratio=ratio) == (height, width, prefix)


def test_no_grid_is_guessed():
    assert grid(64) is None
    assert grid(87, ratio=1.0) is None
    with pytest.raises(ValueError, match=r"layout: 5 tokens may be 1 \+ 2·2 or 4 \+ 1·1; state one"):
        grid(5, ratio=1.0)


def test_a_pooled_feature_is_averaged_over_its_places():
    """Maps, volumes and tokens of the same content have the same mean for each channel."""
    x = torch.randn(2, 6, 4, 4)
    for feature in (x, x.unsqueeze(2), x.flatten(2).mT):
        torch.testing.assert_close(average(feature), x.mean((2, 3)))
        assert places(tuple(feature.shape)) == 16
    assert average(x[:, :, 0, 0]).shape == (2, 6)
