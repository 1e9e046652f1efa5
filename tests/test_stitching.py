"""Stitches: least squares beside torch's own, and columns that meet at any two depths."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import fcfd
from fcfd import losses, recipes
from fcfd.stitching import Affine, stitch, stitched

from .nets import batch, stages
from .purity import assert_unchanged, snapshot

SHAPES = [
    ((40, 5), (40, 3), []),
    ((6, 7, 5), (6, 7, 4), []),
    ((3, 5, 8, 8), (3, 4, 8, 8), []),
    ((3, 5, 8, 8), (3, 4, 4, 4), ["resize"]),
    ((3, 5, 4, 4), (3, 4, 8, 8), ["resize"]),
    ((3, 5, 7, 5), (3, 4, 4, 3), ["resize"]),
    ((5, 7, 7, 3), (5, 4, 7, 3), []),  # a map of seven channels, though its first sizes are equal
    ((3, 5, 4, 4, 4), (3, 4, 2, 2, 2), ["resize"]),
    ((3, 17, 5), (3, 4, 4, 4), ["map"]),
    ((3, 16, 5), (3, 4, 8, 8), ["map", "resize"]),
    ((3, 4, 4, 4), (3, 17, 5), ["tokens"]),
    ((3, 4, 8, 8), (3, 17, 5), ["resize", "tokens"]),
    ((3, 17, 5), (3, 10, 4), ["resize"]),
    ((3, 12, 5), (3, 7, 4), ["resize"]),
]


def _rows(feature):
    axis = 2 if feature.ndim == 3 else 1
    return feature.movedim(axis, -1).reshape(-1, feature.shape[axis])


def _noise(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("source, target, before", SHAPES)
def test_a_stitch_is_the_least_squares_solution(source, target, before):
    source, target = _noise(source), _noise(target, 1)
    things = source, target
    held = snapshot(*things)
    module = stitch(source, target)
    assert_unchanged(held, *things)
    assert [name for name, _ in module.named_children()] == [*before, "affine"]
    assert module(source).shape == target.shape
    x, y = _rows(module[:-1](source)), _rows(target)
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    expected = torch.linalg.lstsq(ones, y, driver="gelsd").solution
    torch.testing.assert_close(module.affine.weight, expected[:-1].T, rtol=0, atol=1e-8)
    torch.testing.assert_close(module.affine.bias, expected[-1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(50, 4), (6, 9, 4), (4, 4, 5, 5), (2, 4, 3, 3, 3)])
def test_an_affine_relation_is_found(shape):
    source = _noise(shape)
    axis = 2 if source.ndim == 3 else 1
    weight, bias = _noise((3, 4), 1), _noise((3,), 2)
    target = (source.movedim(axis, -1) @ weight.T + bias).movedim(-1, axis)
    module = stitch(source, target)
    torch.testing.assert_close(module.affine.weight, weight)
    torch.testing.assert_close(module.affine.bias, bias)
    torch.testing.assert_close(module(source), target)


@settings(max_examples=30, deadline=None)
@given(examples=st.integers(1, 8), inputs=st.integers(1, 5), seed=st.integers(0, 3))
def test_no_other_affine_map_is_nearer(examples, inputs, seed):
    source, target = _noise((examples, inputs), seed), _noise((examples, 2), seed + 7)
    module = stitch(source, target)
    best = (module(source) - target).square().sum()
    for other in range(4):
        nudged = Affine(
            module.affine.weight.detach() + 1e-3 * _noise((2, inputs), other),
            module.affine.bias.detach() + 1e-3 * _noise((2,), other + 9),
            writes=torch.float64,
        )
        assert bool((nudged(source) - target).square().sum() >= best - 1e-12)


def test_dead_and_doubled_channels_get_the_least_weight():
    live = _noise((30, 1))
    dead = torch.full((30, 1), 3.0, dtype=torch.float64)
    module = stitch(torch.cat([live, live, dead], 1), 2 * live + 1)
    expected = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(module.affine.weight, expected)
    torch.testing.assert_close(module.affine.bias, torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("source", [torch.zeros(9, 3), torch.ones(1, 3)])
def test_a_source_without_variance_gives_the_mean(source):
    target = torch.randn(len(source), 2)
    module = stitch(source, target)
    assert not module.affine.weight.any()
    torch.testing.assert_close(module.affine.bias, target.mean(0))


def test_ridge_shrinks_as_its_formula_says():
    source, target = _noise((20, 3)), _noise((20, 2), 1)
    x, y = source - source.mean(0), target - target.mean(0)
    penalty = 0.5 * 20 * x.square().mean(0).mean()
    expected = torch.linalg.solve(x.T @ x + penalty * torch.eye(3), x.T @ y).T
    module = stitch(source, target, ridge=0.5)
    torch.testing.assert_close(module.affine.weight, expected)
    torch.testing.assert_close(module(source).mean(0), target.mean(0))


@pytest.mark.parametrize(
    "here, there", [*itertools.product([torch.float16, torch.bfloat16, torch.float32], repeat=2)]
)
def test_precisions(here, there):
    source, target = _noise((30, 4), dtype=torch.float32).to(here), _noise((30, 2), 1).to(there)
    module = stitch(source, target)
    assert module.affine.weight.dtype == torch.float32
    assert module(source).dtype == there
    expected = stitch(source.double(), target.double())
    torch.testing.assert_close(module.affine.weight, expected.affine.weight.float())
    large = torch.tensor([[60000.0], [-60000.0]], dtype=torch.float16)
    torch.testing.assert_close(stitch(large, large)(large), large)


def test_a_large_mean_costs_no_digits():
    source = _noise((200, 3)) + 1e6
    module = stitch(source, source - 1e6)
    torch.testing.assert_close(module(source), source - 1e6, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "source, target, options, error, says",
    [
        (torch.ones(3, 2), torch.ones(4, 2), {}, ValueError, "source [3, 2] and target [4, 2]"),
        (torch.ones(3, 2), [1.0], {}, TypeError, "target is of type list; give a feature of one tensor"),
        (torch.ones(3, 2), torch.ones(3, 2).long(), {}, TypeError, "target [3, 2] of torch.int64"),
        (torch.ones(3), torch.ones(3), {}, ValueError, "source [3] must be vectors, tokens, maps or volumes"),
        (torch.ones(0, 2), torch.ones(0, 2), {}, ValueError, "source [0, 2] must be vectors"),
        (torch.full((3, 2), torch.inf), torch.ones(3, 2), {}, ValueError, "source [3, 2] holds numbers"),
        (torch.ones(3, 2), torch.full((3, 2), torch.nan), {}, ValueError, "target [3, 2] holds numbers"),
        (torch.ones(3, 2), torch.ones(3, 2), {"ridge": -1.0}, ValueError, "ridge -1.0 must be at least 0"),
        (torch.ones(3, 2), torch.ones(3, 2), {"ridge": "a"}, TypeError, "ridge 'a' must be a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_stitched_is_refused(source, target, options, error, says):
    with pytest.raises(error, match=f"^stitch: {re.escape(says)}"):
        stitch(source, target, **options)


def test_forms_without_a_way_between_them_are_the_bridge_s_refusal():
    with pytest.raises(ValueError, match="bridge: no bridge leads from"):
        stitch(torch.ones(3, 2), torch.ones(3, 2, 4, 4))


# Columns that meet


@pytest.fixture
def columns():
    """A network of five stages and one of four, in eval."""
    torch.manual_seed(0)
    first, *rest = stages(3)
    parts = {"s": [first, nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)), *rest], "t": stages(4)}
    modules = {letter: nn.ModuleList(own).double().eval() for letter, own in parts.items()}
    networks = {letter: fcfd.split(list(own)) for letter, own in modules.items()}
    return fcfd.Columns(*({letter: network[at] for letter, network in networks.items()} for at in range(3)))


@pytest.mark.parametrize("here, there", [*itertools.product(range(1, 5), range(1, 4))])
def test_any_depth_meets_any_depth(columns, here, there):
    images, _ = batch(4)
    pure, _ = fcfd.walk(("s", "ss", "sss", "ssss", "t", "tt", "ttt", "tttt"), *columns, {"": images})
    source, target = "s" * here, "t" * there
    module = stitch(pure[source], pure[target])
    before = snapshot(module, *columns)
    cut = stitched(*columns, module, source, target)
    path = "s" + "t" * (4 - there)
    terms = recipes.fula(path)
    loss, aux = fcfd.objective(terms, *cut, {"": images})
    assert_unchanged(before, module, *columns)
    assert torch.equal(aux.values["s"], pure[source])
    assert torch.equal(aux.values["t"], pure[target])
    assert torch.equal(aux.values["s>t"], module(pure[source]))
    x = module(pure[source])
    for at in range(there, 4):
        x, _ = columns.stages["t"][at](columns.params["t"], columns.buffers["t"], x)
    torch.testing.assert_close(aux.values[path], x)
    assert torch.equal(aux.values["t" * (5 - there)], pure["tttt"])
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    networks = [*columns.params["s"].values(), *columns.params["t"].values()]
    assert all(parameter.grad is None for parameter in networks)


@pytest.mark.parametrize(
    "weights, read",
    [((1, 0, 0), ["latent/s>t"]), ((0, 1, 0), ["latent/st"]), ((0, 0, 1), ["latent/stt"])],
)
def test_each_target_of_a_stitch_is_terms_on_one_path(columns, weights, read):
    images, _ = batch(4)
    module = nn.Conv2d(3, 8, 3, 2, 1).double()
    cut = stitched(*columns, module, "ss", "tt")
    _, aux = fcfd.objective(recipes.fula("stt", weights=weights), *cut, {"": images})
    assert list(aux.parts) == read


def test_training_a_stitch_comes_nearer(columns):
    images, _ = batch(8)
    pure, _ = fcfd.walk(("s", "ss", "t", "tt"), *columns, {"": images})
    module = stitch(pure["ss"], pure["tt"])
    cut = stitched(*columns, module, "ss", "tt")
    terms = {"kl": fcfd.Term(losses.kl, "stt", "ttt")}
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    course = []
    for _ in range(10):
        loss, _ = fcfd.objective(terms, *cut, {"": images})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    assert course[-1] < course[0]


def test_linked_columns_are_stitched_too():
    networks = {letter: fcfd.split(stages(width)) for letter, width in (("s", 3), ("t", 4))}
    nets = fcfd.link(networks, example=torch.randn(2, 3, 8, 8))
    cut = stitched(*nets.columns, nn.Conv2d(3, 8, 3, 2, 1), "s", "t2")
    assert list(cut.stages) == ["s", "t", "s>t"] == list(cut.params) == list(cut.buffers)
    assert [len(column) for column in cut.stages.values()] == [4, 3, 1]


def test_whole_networks_of_one_feature():
    networks = {letter: fcfd.split([nn.Linear(3, 4), nn.Linear(4, 2)]) for letter in "ab"}
    columns = [{letter: network[at] for letter, network in networks.items()} for at in range(3)]
    cut = stitched(*columns, nn.Identity(), "a", "b")
    values, _ = fcfd.walk(fcfd.plan(("ab",)), *cut, {"": torch.ones(1, 3)})
    torch.testing.assert_close(
        values["ab"], networks["b"].stages[1](networks["b"].params, {}, values["a"])[0]
    )


@pytest.mark.parametrize(
    "source, target, says",
    [
        ("s", "s", "stitched: 's' and 's' are features of one network; stitch two"),
        ("", "t", "stitched: source is ''; give a feature of one network, such as 'sss'"),
        ("s>t", "t", "stitched: source is 's>t'; give a feature of one network"),
        ("s", "st", "stitched: target is 'st'; give a feature of one network"),
        ("x", "t", "stitched: there is no network 'x'; stages has 's', 't'"),
        ("s5", "t", "stitched: source 'sssss' is no feature of network 's'; it has some at depths 1 to 4"),
        ("s", "t4", "stitched: target 'tttt' is no feature of network 't'; it has some at depths 1 to 3"),
    ],
)
def test_paths_that_are_no_features_are_refused(columns, source, target, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        stitched(*columns, nn.Identity(), source, target)


def test_kinds_of_arguments(columns):
    with pytest.raises(TypeError, match="stitched: module is of type function; give a module"):
        stitched(*columns, lambda x: x, "s", "t")
    with pytest.raises(TypeError, match="stitched: stages is of type tuple; give a dict by column"):
        stitched((), *columns[1:], nn.Identity(), "s", "t")
    with pytest.raises(ValueError, match="stitched: params has no network 't'"):
        stitched(columns[0], {"s": columns[1]["s"]}, columns[2], nn.Identity(), "s", "t")
