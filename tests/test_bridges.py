"""Bridges: the published rules, and everything beyond them."""

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from fcfd import bridge
from fcfd._layout import average, channels_last, places

side = st.integers(1, 12)
channels = st.integers(1, 5)


def _children(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


@settings(max_examples=40, deadline=None)
@given(channels, side, side, channels, side, side, st.booleans())
def test_a_map_reaches_any_other_map(c, h, w, c2, h2, w2, rectified):
    assume(not channels_last((2, c, h, w)) and not channels_last((2, c2, h2, w2)))
    module = bridge((2, c, h, w), (2, c2, h2, w2), rectified=rectified)
    x = torch.randn(2, c, h, w, requires_grad=True)
    y = module.eval()(x)
    assert y.shape == (2, c2, h2, w2)
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert ("act" in _children(module)) == rectified


def test_the_published_bridge_of_equal_size():
    module = bridge((4, 3, 8, 8), (4, 5, 8, 8), rectified=True)
    x = torch.randn(4, 3, 8, 8)
    y = F.conv2d(x, module.conv.weight, padding=1)
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(module(x), F.leaky_relu((y - mean) / (var + 1e-5).sqrt(), 0.1))
    assert [name for name, _ in module.named_parameters()] == ["conv.weight", "bn.weight", "bn.bias"]


def test_the_published_bridges_of_double_and_half_size():
    down = bridge((2, 3, 8, 6), (2, 5, 4, 3))
    assert isinstance(down.conv, nn.Conv2d)
    assert (down.conv.stride, down.conv.kernel_size, down.conv.padding) == ((2, 2), (3, 3), (1, 1))
    assert down.conv.bias is not None
    up = bridge((2, 3, 4, 3), (2, 5, 8, 6))
    assert isinstance(up.conv, nn.ConvTranspose2d)
    assert (up.conv.stride, up.conv.kernel_size, up.conv.padding) == ((2, 2), (4, 4), (1, 1))
    assert up.conv.bias is not None
    assert _children(down) == _children(up) == ["conv", "bn"]


def test_the_published_start():
    """Kaiming's normal, fan-out, for ReLU: a standard deviation of √(2 / (9 · out))."""
    torch.manual_seed(0)
    weight = bridge((2, 64, 8, 8), (2, 64, 8, 8)).conv.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_a_map_of_another_resolution_is_resized_by_the_same_ratio():
    module = bridge((2, 3, 7, 7), (2, 4, 5, 10))
    assert module(torch.zeros(2, 3, 14, 21)).shape == (2, 4, 10, 30)


def test_a_resized_map_reads_all_of_its_source():
    """Where a map shrinks it is averaged: no pixel goes unread, as bilinear sampling would leave some."""
    x = torch.zeros(1, 1, 9, 9, requires_grad=True)
    bridge((1, 1, 9, 9), (1, 1, 2, 2)).resize(x).sum().backward()
    assert (x.grad > 0).all()


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_become_a_map_without_their_class_tokens(prefix):
    module = bridge((2, 16 + prefix, 6), (2, 3, 4, 4)).eval()
    x = torch.randn(2, 16 + prefix, 6)
    y = module(x)
    assert y.shape == (2, 3, 4, 4)
    x[:, :prefix] += 1
    assert torch.equal(module(x), y)
    laid_out = module.map(x)
    for row in range(4):
        for column in range(4):
            assert torch.equal(laid_out[:, :, row, column], x[:, prefix + 4 * row + column])


def test_a_map_becomes_tokens_with_a_class_token_of_their_mean():
    module = bridge((2, 3, 4, 4), (2, 17, 6), rectified=True).eval()
    y = module(torch.randn(2, 3, 4, 4))
    assert y.shape == (2, 17, 6)
    torch.testing.assert_close(y[:, 0], y[:, 1:].mean(1))


def test_tokens_of_one_length_keep_their_places():
    module = bridge((2, 17, 6), (2, 17, 8))
    assert _children(module) == ["linear", "norm"]
    assert module(torch.randn(2, 17, 6)).shape == (2, 17, 8)


def test_tokens_of_another_length_are_resized_on_their_grid():
    resize = bridge((2, 1 + 16, 6), (2, 1 + 4, 6)).resize
    x = torch.randn(2, 17, 6)
    y = resize(x)
    assert y.shape == (2, 5, 6)
    assert torch.equal(y[:, 0], x[:, 0])
    corner = x[:, 1:].unflatten(1, (4, 4))[:, :2, :2].mean((1, 2))
    torch.testing.assert_close(y[:, 1], corner)


def test_tokens_without_a_grid_are_resized_along_their_length():
    resize = bridge((2, 12, 6), (2, 24 + 6, 6)).resize
    assert resize(torch.randn(2, 12, 6)).shape == (2, 30, 6)


@pytest.mark.parametrize("rectified", [False, True])
def test_channels_may_be_last(rectified):
    """A bridge to or from `[batch, height, width, channels]` is the bridge of the other order, rearranged."""
    shapes = {"first": (2, 6, 4, 4), "last": (2, 4, 4, 6)}
    for source, target in [("first", "last"), ("last", "first"), ("last", "last")]:
        module = bridge(shapes[source], shapes[target], rectified=rectified).eval()
        x = torch.randn(shapes[source])
        y = module(x)
        assert y.shape == shapes[target]
        plain = bridge(shapes["first"], shapes["first"], rectified=rectified).eval()
        plain.load_state_dict(module.state_dict())
        same = plain(x if source == "first" else x.movedim(3, 1))
        torch.testing.assert_close(y if target == "first" else y.movedim(3, 1), same)


def test_a_pooled_feature_is_averaged_over_its_places():
    """Maps, channels-last maps and tokens of the same content have the same mean for each channel."""
    x = torch.randn(2, 6, 4, 4)
    for feature in (x, x.movedim(1, 3), x.flatten(2).mT):
        torch.testing.assert_close(average(feature), x.mean((2, 3)))
        assert places(tuple(feature.shape)) == 16
    assert average(x[:, :, 0, 0]).shape == (2, 6)


def test_vectors():
    module = bridge((2, 6), (2, 4), rectified=True)
    assert _children(module) == ["linear", "bn", "act"]
    assert module(torch.randn(5, 6)).shape == (5, 4)


def test_bridges_compile_in_one_graph():
    for source, target in [
        ((2, 3, 6, 6), (2, 4, 4, 4)),
        ((2, 17, 6), (2, 3, 4, 4)),
        ((2, 17, 6), (2, 5, 4)),
        ((2, 7, 7, 6), (2, 17, 4)),
    ]:
        module = bridge(source, target).eval()
        x = torch.randn(source)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize(
    ("source", "target"), [((2, 3, 4, 4), (2, 5)), ((2, 3, 4, 4, 4), (2, 3, 4, 4, 4)), ((2,), (2, 3))]
)
def test_layouts_without_a_bridge_are_refused(source, target):
    with pytest.raises(ValueError, match=r"bridge: no bridge leads from \[2.*Pass a module of your own"):
        bridge(source, target)


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(ValueError, match=r"bridge: 15 tokens are no square grid .* \(3·3 leaves 6\)"):
        bridge((2, 15, 6), (2, 3, 4, 4))
