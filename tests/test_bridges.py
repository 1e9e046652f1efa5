"""Bridges: the published rules, and everything beyond them."""

import pickle

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from fcfd import bridge
from fcfd.bridges import Orthogonal
from fcfd.layouts import channels_last

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
    ("source", "target"), [((2, 3, 4, 4), (2, 5)), ((2, 3, 4, 4, 4), (2, 3, 4, 4)), ((2,), (2, 3))]
)
def test_layouts_without_a_bridge_are_refused(source, target):
    with pytest.raises(ValueError, match=r"bridge: no bridge leads from \[2.*Pass a module of your own"):
        bridge(source, target)


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(
        ValueError, match=r"bridge: 15 tokens are no grid of 4·4 or its ratio, .* State their layout"
    ):
        bridge((2, 15, 6), (2, 3, 4, 4))


@pytest.mark.parametrize(("tokens", "wide"), [(64, 16), (66, 16), (16, 8), (256, 32)])
def test_tokens_lie_on_the_grid_of_the_map_at_the_other_end(tokens, wide):
    """A map of 4·16 knows its own size and ratio: 64 tokens are not laid out 8·8."""
    to_map = bridge((2, tokens, 8), (2, 6, 4, 16)).eval()
    assert to_map.map.grid.width == wide
    assert to_map(torch.randn(2, tokens, 8)).shape == (2, 6, 4, 16)
    to_tokens = bridge((2, 6, 4, 16), (2, tokens, 8)).eval()
    assert to_tokens(torch.randn(2, 6, 4, 16)).shape == (2, tokens, 8)


def test_tokens_that_no_grid_of_the_ratio_holds_are_refused():
    with pytest.raises(ValueError, match=r"bridge: 81 tokens are no grid of 4·16 or its ratio"):
        bridge((2, 6, 4, 16), (2, 81, 8))


def test_a_stated_grid_is_taken():
    module = bridge((2, 1 + 60, 8), (2, 6, 3, 5), layouts=("b (1 + h=6 w) c", None)).eval()
    assert module.map.grid == (6, 10, 1)
    with pytest.raises(ValueError, match="61 tokens are no such grid"):
        bridge((2, 61, 8), (2, 6, 3, 5), layouts=("b (1 + h=7 w) c", None))


def test_tokens_of_a_larger_image_lie_on_a_larger_grid_of_the_same_ratio():
    module = bridge((2, 1 + 4 * 6, 8), (2, 6, 4, 6)).eval()
    assert module(torch.randn(2, 1 + 8 * 12, 8)).shape == (2, 6, 8, 12)
    with pytest.raises(ValueError, match=r"bridge: 25 tokens lie on no grid of the ratio 4·6"):
        module(torch.randn(2, 26, 8))


LAYOUTS = {
    "b c t": (2, 6, 20),
    "b t c": (2, 20, 6),
    "b c h w": (2, 6, 4, 5),
    "b h w c": (2, 4, 5, 6),
    "b (h=4 w) c": (2, 20, 6),
    "b (1 + h=4 w) c": (2, 21, 6),
}


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_every_layout_of_places_leads_to_every_other(source, target):
    row, other = "t" in source.split(), "t" in target.split()
    if row != other:
        return  # a sequence and a map of several rows have no places in common, unless tokens have a grid
    module = bridge(LAYOUTS[source], LAYOUTS[target], layouts=(source, target)).eval()
    x = torch.randn(LAYOUTS[source], requires_grad=True)
    y = module(x)
    assert y.shape == LAYOUTS[target]
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_a_sequence_with_channels_first_is_convolved_along_its_length():
    module = bridge((2, 64, 100), (2, 32, 50), layouts=("b c t", "b c t"))
    assert module.conv.weight.shape == (32, 64, 1, 3)
    assert module(torch.randn(2, 64, 200)).shape == (2, 32, 100)


@pytest.mark.parametrize("there", [(4, 6, 8), (2, 3, 4), (8, 12, 16), (3, 5, 7)])
def test_volumes(there):
    module = bridge((2, 3, 4, 6, 8), (2, 5, *there), rectified=True)
    x = torch.randn(2, 3, 4, 6, 8)
    assert module(x).shape == (2, 5, *there)
    torch.testing.assert_close(
        torch.compile(module.eval(), fullgraph=True, backend="aot_eager")(x), module(x)
    )


# Orthogonal


@pytest.mark.parametrize("source, target", [(4, 7), (7, 4), (5, 5), (1, 3)])
def test_a_projection_is_orthogonal_whatever_its_weight(source, target):
    module = Orthogonal(source, target).double()
    with torch.no_grad():
        module.weight.copy_(torch.randn(target, source))
    p = module.projection()
    short = p.mT @ p if target >= source else p @ p.mT
    torch.testing.assert_close(short, torch.eye(min(source, target), dtype=torch.float64))
    x = torch.randn(2, 3, source, dtype=torch.float64)
    torch.testing.assert_close(module(x), x @ p.mT)


def test_an_orthogonal_weight_is_the_projection():
    for sign in (1, -1):
        module = Orthogonal(3, 6)
        with torch.no_grad():
            module.weight.mul_(sign)
        torch.testing.assert_close(module.projection(), module.weight)


def test_an_orthogonal_bridge_is_an_ordinary_module():
    module, other = Orthogonal(4, 6), Orthogonal(4, 6)
    x = torch.randn(5, 4)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x), module(x))
    params = {"weight": torch.randn(6, 4, dtype=torch.float64).requires_grad_()}
    called = torch.func.functional_call(module, params, (x.double(),))
    torch.testing.assert_close(called.norm(dim=-1), x.double().norm(dim=-1))
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(module, {"weight": weight}, (x.double(),)), params["weight"]
    )
    copied = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(copied(x), module(x))
    assert module(x.half()).dtype == torch.float16
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_it_learns_a_rotation():
    """Gradient descent on the free weight reaches what an orthogonal map can reach."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    module = Orthogonal(4, 4)
    with torch.no_grad():
        start = torch.eye(4)
        start[0] *= torch.linalg.det(rotation).sign()
        module.weight.copy_(start)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(300):
        loss = (module(x) - x @ rotation.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (1.5, 3), (3, "4")])
def test_widths_are_whole_numbers(sizes):
    with pytest.raises((TypeError, ValueError), match="^Orthogonal: (source|target) "):
        Orthogonal(*sizes)
