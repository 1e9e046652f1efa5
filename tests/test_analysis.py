"""How later layers read a feature, beside dense Jacobians, which only small networks have."""

import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

import fcfd
from fcfd import losses
from fcfd.analysis import crossed_accuracy, distance, linearized, response, spectrum, tail

from .nets import batch, pair
from .purity import assert_unchanged, snapshot


@pytest.fixture(scope="module")
def nets():
    """A teacher and a student in float64, statistics and bridges not at their start."""
    teacher, student, linked = pair()
    generator = torch.Generator().manual_seed(3)
    for module in [*teacher.modules(), *student.modules(), *linked.bridges.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    student.eval(), linked.bridges.eval()
    return linked


def _values(nets, *paths, size=3):
    images, _ = batch(size)
    return fcfd.walk(fcfd.plan(paths), *nets.columns, {"": images})[0]


def _dense(function, feature):
    """The Jacobian of each example, whole, row by row: `[batch, numbers out, numbers in]`."""

    def one(x):
        return function(x.unsqueeze(0)).flatten()

    whole = [torch.autograd.functional.jacobian(one, x) for x in feature.detach()]
    return torch.stack([rows.reshape(len(rows), -1) for rows in whole])


# Tail


@pytest.mark.parametrize(
    "source, target",
    [
        ("t", "tttt"),
        ("tt", "ttt"),
        ("ss", "sstt"),
        ("ss>t", "sstt"),
        ("", "ssss"),
        ("s1", "s1>t"),
        ("tt", "tt"),
    ],
)
def test_a_tail_gives_what_the_walk_gives(nets, source, target):
    values = _values(nets, *filter(None, (source, target)))
    function = tail(source, target, *nets.columns)
    assert torch.equal(function(values[fcfd.expand(source)]), values[fcfd.expand(target)])


def test_known_values_behind_the_source_are_computed_anew(nets):
    values = _values(nets, "tttt")
    other = values["tt"] + 1
    function = tail("tt", "tttt", *nets.columns, values)
    assert torch.equal(function(other), tail("tt", "tttt", *nets.columns)(other))
    assert not torch.equal(function(other), values["tttt"])


def _sees():
    """Networks with a bridge that sees its target."""
    networks = {name: fcfd.split([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)]) for name in "st"}

    class Sum(nn.Module):
        def forward(self, pair):
            return pair[0] + 2 * pair[1]

    return fcfd.link(networks, example=torch.randn(2, 3), paths=("s&tt", "s&ttt"), bridges={"s&t": Sum()})


def test_a_bridge_that_sees_reads_what_is_known_or_what_is_walked():
    nets, images = _sees(), torch.randn(2, 3)
    values, _ = fcfd.walk(fcfd.plan(("s&tt",)), *nets.columns, {"": images})
    for known in ({"": images}, {"t": values["t"]}):
        assert torch.equal(tail("s", "s&tt", *nets.columns, known)(values["s"]), values["s&tt"])
    with pytest.raises(ValueError, match=r"path 't' reads the batch, values\[''\], which is missing"):
        tail("s", "s&tt", *nets.columns)(values["s"])


def test_what_a_bridge_sees_varies_where_it_is_the_source():
    nets, images = _sees(), torch.randn(2, 3)
    values, _ = fcfd.walk(fcfd.plan(("s&t",)), *nets.columns, {"": images})
    function = tail("t", "s&t", *nets.columns, {"s": values["s"]})
    assert torch.equal(function(values["t"] + 1), values["s"] + 2 * (values["t"] + 1))
    whole = tail("", "s&t", *nets.columns, values)
    assert torch.equal(
        whole(images + 1), fcfd.walk(fcfd.plan(("s&t",)), *nets.columns, {"": images + 1})[0]["s&t"]
    )


def test_a_batch_of_named_inputs_reaches_every_stage_of_a_tail():
    def stage(params, buffers, x):
        return x * buffers["mask"], {}

    columns = {"t": (stage, stage)}, {"t": {}}, {"t": {}}
    mask = torch.tensor([[1.0, 0.0]])
    function = tail("t", "tt", *columns, {"": {"mask": mask}})
    assert torch.equal(function(torch.ones(1, 2)), mask)
    gains = spectrum(function, torch.ones(1, 2), count=2).gains
    torch.testing.assert_close(gains, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize(
    "source, target", [("ss", "tttt"), ("ttt", "tt"), ("sst", "ssss"), ("s", ""), ("tt>s", "ttt")]
)
def test_a_source_beside_the_way_is_refused(nets, source, target):
    with pytest.raises(ValueError, match=f"tail: '{source}' is not on the way to '{target}'"):
        tail(source, target, *nets.columns)


def test_values_of_a_tail_are_a_mapping(nets):
    with pytest.raises(TypeError, match="tail: values is of type Tensor; give what is known, by path"):
        tail("t", "tt", *nets.columns, torch.ones(1))


# Spectrum


@pytest.mark.parametrize("target", ["ttt", "tttt", "ttss"])
def test_gains_are_the_singular_values_of_the_dense_jacobian(nets, target):
    feature = _values(nets, "tt")["tt"]
    function = tail("tt", target, *nets.columns)
    dense = _dense(function, feature)
    singular = torch.linalg.svdvals(dense)
    found = spectrum(function, feature, count=6, iterations=20)
    torch.testing.assert_close(found.gains, singular[:, :6], rtol=0, atol=1e-6)
    for at, direction in enumerate(found.directions):
        rows = direction.flatten(1)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3, dtype=torch.float64))
        moved = torch.einsum("bij,bj->bi", dense, rows).norm(dim=1)
        torch.testing.assert_close(moved, found.gains[:, at], rtol=0, atol=1e-6)
    moved = torch.einsum("bij,bj->bi", dense, found.bottom.flatten(1)).norm(dim=1)
    torch.testing.assert_close(moved, found.bottom_gain, rtol=0, atol=1e-6)
    assert bool((found.bottom_gain >= (0 if dense.shape[1] < dense.shape[2] else singular[:, -1])).all())


def test_all_singular_values_at_once(nets):
    feature = _values(nets, "tt")["tt"]
    function = tail("tt", "ttt", *nets.columns)
    singular = torch.linalg.svdvals(_dense(function, feature))
    found = spectrum(function, feature, count=singular.shape[1], iterations=1)
    torch.testing.assert_close(found.gains, singular, rtol=0, atol=1e-6)
    assert float(found.errors.max()) < 1e-10


def test_ten_logits_are_exact_without_refinement_and_have_directions_of_no_gain(nets):
    feature = _values(nets, "tt")["tt"]
    function = tail("tt", "tttt", *nets.columns)
    found = spectrum(function, feature, count=10, iterations=1)
    singular = torch.linalg.svdvals(_dense(function, feature))
    torch.testing.assert_close(found.gains, singular, rtol=0, atol=1e-10)
    assert float(found.bottom_gain.max()) < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    rank=st.integers(0, 12),
    iterations=st.integers(0, 4),
    seed=st.integers(0, 3),
)
def test_some_singular_value_is_within_the_error_of_each_gain(inputs, outputs, rank, iterations, seed):
    generator = torch.Generator().manual_seed(inputs + 13 * outputs)
    left, right = (
        torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in (outputs, inputs)
    )
    weight = left @ right.T
    count = min(inputs, outputs, 3)
    feature = torch.zeros(2, inputs, dtype=torch.float64)
    found = spectrum(lambda x: x @ weight.T, feature, count=count, iterations=iterations, seed=seed)
    singular = torch.linalg.svdvals(weight)
    apart = (found.gains.unsqueeze(2) - singular).abs().amin(2)
    assert bool((apart <= found.errors + 1e-9).all())
    assert bool((found.gains <= singular[0] + 1e-9).all())
    least = singular[-1] if inputs <= outputs else torch.tensor(0.0)
    assert bool((found.bottom_gain >= least - 1e-9).all())
    assert bool((found.gains.diff(dim=1) <= 1e-12).all())


def test_random_gain_is_the_root_mean_square_over_directions():
    weight = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.0], dtype=torch.float64))
    found = spectrum(lambda x: x @ weight, torch.zeros(1, 4, dtype=torch.float64), count=4, iterations=0)
    expected = weight.square().sum().div(4).sqrt()
    torch.testing.assert_close(found.random_gain, expected.expand(1))
    few = [
        spectrum(
            lambda x: x @ weight, torch.zeros(1, 4, dtype=torch.float64), count=1, iterations=0, seed=seed
        )
        for seed in range(200)
    ]
    mean = torch.stack([one.random_gain.square() for one in few]).mean().sqrt()
    torch.testing.assert_close(mean, expected, rtol=0.1, atol=0)


def test_a_tiny_and_a_huge_jacobian_keep_their_digits():
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    for scale in (1e-15, 1e15):
        found = spectrum(lambda x, scale=scale: (x @ weight) * scale, torch.ones(2, 2), count=2)
        torch.testing.assert_close(found.gains / scale, torch.tensor([[2.0, 1.0]] * 2))


@pytest.mark.parametrize(
    "constant", [lambda x: 0 * x, lambda x: torch.ones(len(x), 5), lambda x: x.detach() * 0]
)
def test_a_tail_of_rank_0_has_no_gain(constant):
    found = spectrum(constant, torch.randn(3, 4), count=2)
    assert not found.gains.any()
    assert not found.errors.any()
    assert not found.random_gain.any()
    assert not found.bottom_gain.any()
    for direction in (*found.directions, found.bottom):
        torch.testing.assert_close(direction.norm(dim=1), torch.ones(3))


def test_a_dead_relu_has_no_gain_where_it_is_dead():
    feature = torch.tensor([[-1.0, -2.0, -3.0], [1.0, 2.0, -3.0]])
    found = spectrum(F.relu, feature, count=3)
    torch.testing.assert_close(found.gains, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))


def test_one_number_a_feature():
    found = spectrum(lambda x: 3 * x, torch.ones(4), count=1)
    torch.testing.assert_close(found.gains, torch.full((4, 1), 3.0))
    assert found.directions[0].shape == (4,)


def test_trees_vary_in_their_floating_tensors_only():
    feature = {"p": (torch.randn(2, 3, 2, 2), torch.randn(2, 3, 1, 1)), "at": torch.arange(2), "no": None}

    def function(tree):
        large, small = tree["p"]
        return [2 * large, (5 * small).squeeze(), tree["at"], tree["no"]]

    found = spectrum(function, feature, count=4)
    torch.testing.assert_close(found.gains, torch.tensor([[5.0, 5.0, 5.0, 2.0]] * 2))
    first = found.directions[0]
    assert torch.equal(first["at"], feature["at"])
    assert first["no"] is None
    assert float(first["p"][0].norm()) < 1e-5
    moved = response(function, feature, first, size=0.5)
    torch.testing.assert_close(moved, torch.full((2,), 2.5))


class _Attention(nn.Module):
    """Attention in its fused form, behind a layer norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.all = nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, x):
        query, key, value = self.all(self.norm(x)).chunk(3, -1)
        return x + F.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference"])
@pytest.mark.parametrize("kind", ["fused attention", "encoder layer"])
def test_tokens_through_attention(kind, mode):
    torch.manual_seed(0)
    block = (
        _Attention() if kind == "fused attention" else nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    )
    net = fcfd.split([nn.Linear(3, 8), block.eval(), nn.Linear(8, 2)])
    columns = {"t": net.stages}, {"t": fcfd.frozen(net.params)}, {"t": net.buffers}
    feature = torch.randn(2, 5, 8)
    function = tail("t", "ttt", *columns)
    dense = _dense(function, feature)
    context = {"eval": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with context():
        found = spectrum(function, feature, count=10)
        other = feature + 0.1
        moved = linearized(function)(other, feature)
    assert before == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())
    torch.testing.assert_close(found.gains, torch.linalg.svdvals(dense), rtol=1e-4, atol=1e-5)
    expected = torch.einsum("bij,bj->bi", dense, (other - feature).flatten(1)).norm(dim=1)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).to(dtype)
    found = spectrum(layer, torch.randn(3, 6).to(dtype), count=2)
    assert found.gains.dtype == torch.float32
    assert found.directions[0].dtype == dtype
    expected = torch.linalg.svdvals(layer.weight.float())[:2].expand(3, 2)
    torch.testing.assert_close(found.gains, expected, rtol=2e-2, atol=0)


def test_half_precision_at_its_ends():
    large = torch.full((2, 4), 60000.0, dtype=torch.float16)
    torch.testing.assert_close(distance(large, -large), torch.full((2,), 240000.0))
    assert torch.equal(distance(large, large), torch.zeros(2))


def test_a_spectrum_is_a_function_of_its_arguments(nets):
    feature = _values(nets, "tt")["tt"]
    function = tail("tt", "tttt", *nets.columns)
    before = snapshot(nets.bridges, nets.params, nets.buffers, feature)
    first = spectrum(function, feature, count=2, iterations=0)
    again = spectrum(function, feature, count=2, iterations=0)
    other = spectrum(function, feature, count=2, iterations=0, seed=1)
    assert_unchanged(before, nets.bridges, nets.params, nets.buffers, feature)
    assert torch.equal(first.gains, again.gains)
    assert not torch.equal(first.gains, other.gains)
    assert not first.gains.requires_grad


def test_each_example_has_its_own_spectrum(nets):
    feature = _values(nets, "tt", size=5)["tt"]
    function = tail("tt", "tttt", *nets.columns)
    whole = spectrum(function, feature, count=3).gains
    alone = torch.cat([spectrum(function, x.unsqueeze(0), count=3).gains for x in feature])
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("coupling", ["batch norm", "neighbours", "one to the last"])
def test_examples_that_meet_are_refused(size, coupling):
    def function(x):
        if coupling == "batch norm":
            return F.batch_norm(x, None, None, training=True)
        if coupling == "neighbours":
            return x + x.roll(1, 0)
        return torch.cat([x[:-1], x[-1:] + x[:1]])

    with pytest.raises(ValueError, match="spectrum: what one example returns depends on another"):
        spectrum(function, torch.randn(size, 4), count=2)


def test_one_example_in_train_mode_has_a_jacobian():
    feature = torch.randn(1, 3, 4, dtype=torch.float64)
    function = partial(F.batch_norm, running_mean=None, running_var=None, training=True)
    found = spectrum(function, feature, count=12)
    singular = torch.linalg.svdvals(_dense(function, feature))
    torch.testing.assert_close(found.gains, singular, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "function, feature, says",
    [
        (lambda x: F.dropout(x), torch.ones(2, 9), "returned other values when it was called again"),
        (lambda x: x * float("nan"), torch.ones(2, 3), "or none that are finite"),
        (lambda x: x.sqrt(), torch.zeros(2, 3), "a derivative of the function .* is not finite"),
        (lambda x: x.sum(0), torch.ones(2, 3), r"returned \[3\] of torch.float32 for 2 examples"),
        (lambda x: x.argmax(1), torch.ones(2, 3), "what the function returns holds no floating-point tensor"),
        (lambda x: None, torch.ones(2, 3), r"function returns holds .* it is NoneType \(no tensor\)"),
        (lambda x: x, torch.ones(2, 3, dtype=torch.long), r"feature holds no .*\[2, 3\] of torch.int64"),
        (lambda x: x, torch.ones(2, 3, dtype=torch.cfloat), r"feature \[2, 3\] is complex"),
        (lambda x: x, torch.tensor(1.0), r"feature is \[\]; every tensor must begin with one batch axis"),
        (lambda x: x, torch.ones(0, 3), "hold at least one number"),
        (lambda x: x[0], (torch.ones(2, 3), torch.ones(3, 3)), r"feature is \[2, 3\] and \[3, 3\]; every"),
        (lambda x: x[:, :1], torch.ones(2, 3), "a Jacobian from 3 numbers to 1 has 1 singular"),
    ],
)  # fmt: skip
def test_what_has_no_spectrum_is_refused(function, feature, says):
    with pytest.raises(ValueError, match=f"^spectrum: .*{says}"):
        spectrum(function, feature, count=2)


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"count": 0}, ValueError, "spectrum: count 0 must be at least 1"),
        ({"count": 1.5}, TypeError, "spectrum: count 1.5 must be a whole number"),
        ({"iterations": -1}, ValueError, "spectrum: iterations -1 must be at least 0"),
        ({"seed": "a"}, TypeError, "spectrum: seed 'a' must be a whole number"),
    ],
)
def test_arguments_of_a_spectrum(options, error, says):
    with pytest.raises(error, match=re.escape(says)):
        spectrum(torch.sin, torch.ones(2, 3), **options)


def test_what_is_called_must_be_a_function():
    for call in (
        partial(spectrum, 3, torch.ones(1, 1)),
        partial(response, 3, torch.ones(1), torch.ones(1), size=1),
    ):
        with pytest.raises(TypeError, match="function is of type int; give a function"):
            call()
    with pytest.raises(TypeError, match="linearized: function is of type int; give a function"):
        linearized(3)
    with pytest.raises(TypeError, match="linearized: loss is of type str; give a function"):
        linearized(torch.sin, "kl")


def test_the_print_of_a_spectrum_is_a_table():
    found = spectrum(lambda x: x * torch.tensor([2.0, 1.0]), torch.ones(3, 2), count=2)
    lines = repr(found).splitlines()
    assert lines[0].split() == ["direction", "gain,", "mean", "of", "3"]
    assert [line.split() for line in lines[1:3]] == [["1", "2"], ["2", "1"]]
    assert [line.split()[0] for line in lines[3:]] == ["random", "bottom"]


# Distances


def test_distance_is_the_norm_by_example():
    a, b = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    expected = torch.stack([(x - y).square().sum().sqrt() for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(distance(a, b), expected)
    both = distance((a, {"x": b}), (b, {"x": a}))
    torch.testing.assert_close(both, expected * 2**0.5)
    assert torch.autograd.gradcheck(distance, (a.requires_grad_(), b))
    equal = torch.ones(2, 3, requires_grad=True)
    distance(equal, torch.ones(2, 3)).sum().backward()
    assert not equal.grad.any()


@pytest.mark.parametrize("target", ["ttt", "tttt"])
def test_the_first_order_distance_is_that_of_the_dense_jacobian(nets, target):
    values = _values(nets, "ss>t", "tt")
    function = tail("tt", target, *nets.columns)
    step = (values["ss>t"] - values["tt"]).flatten(1)
    expected = torch.einsum("bij,bj->bi", _dense(function, values["tt"]), step)
    found = linearized(function)(values["ss>t"], values["tt"])
    torch.testing.assert_close(found, expected.norm(dim=1), rtol=0, atol=1e-6)
    mean = linearized(function, losses.squared_error)(values["ss>t"], values["tt"])
    torch.testing.assert_close(mean, expected.square().mean(1), rtol=0, atol=1e-6)
    if target == "tttt":
        base = function(values["tt"])
        found = linearized(function, losses.kl)(values["ss>t"], values["tt"])
        torch.testing.assert_close(found, losses.kl(base + expected, base), rtol=0, atol=1e-6)


def test_it_meets_the_true_distance_as_the_step_shrinks(nets):
    feature = _values(nets, "tt")["tt"]
    function = tail("tt", "tttt", *nets.columns)
    step = torch.randn(feature.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = []
    for size in (1e-1, 1e-3, 1e-5):
        other = feature + size * step
        true = distance(function(other), function(feature))
        apart.append(((linearized(function)(other, feature) - true).abs() / true).max().item())
    assert apart[0] > apart[2]
    assert apart[2] < 1e-4
    assert torch.equal(linearized(function)(feature, feature), torch.zeros(3, dtype=torch.float64))


def test_its_gradient(nets):
    values = _values(nets, "ss>t", "tt", size=1)
    function = tail("tt", "tttt", *nets.columns)
    other = (values["tt"] + 0.1).detach().requires_grad_()
    for loss in (distance, losses.squared_error, losses.kl):
        measured = partial(linearized(function, loss), target=values["tt"].detach())
        assert torch.autograd.gradcheck(measured, (other,), fast_mode=True)
    dense = _dense(function, values["tt"])[0]
    (found,) = torch.autograd.grad(
        linearized(function, losses.squared_error)(other, values["tt"]).sum(), other
    )
    step = (other - values["tt"]).flatten().detach()
    torch.testing.assert_close(found.flatten(), 2 / len(dense) * dense.T @ dense @ step, rtol=0, atol=1e-6)


def test_as_a_term_it_trains_the_student_and_leaves_the_target_alone(nets):
    images, labels = batch(3)
    function = tail("tt", "tttt", *nets.columns)
    terms = {
        "label": fcfd.Term(losses.cross_entropy, "ssss", "Labels"),
        "first/ss>t": fcfd.Term(linearized(function), "ss>t", "tt", 0.5),
    }
    before = snapshot(nets.bridges, nets.params, nets.buffers, images)
    loss, aux = fcfd.objective(terms, *nets.columns, {"": images, "Labels": labels})
    assert_unchanged(before, nets.bridges, nets.params, nets.buffers, images)
    assert "tttt" not in aux.values, "the jvp computes what it needs"
    expected = linearized(function)(aux.values["ss>t"], aux.values["tt"]).mean()
    torch.testing.assert_close(aux.parts["first/ss>t"], expected)
    grads = torch.autograd.grad(
        loss, list(nets.params["s"].values()) + list(nets.params["s>t"].values()), allow_unused=True
    )
    reached = dict(zip([*nets.params["s"], *nets.params["s>t"]], grads, strict=True))
    assert reached["0.0.weight"].any()
    assert reached["1.conv.weight"].any()

    def of_student(own):
        params = nets.params | {"s": own}
        return fcfd.objective(terms, nets.stages, params, nets.buffers, {"": images, "Labels": labels})

    functional, _ = torch.func.grad(of_student, has_aux=True)(nets.params["s"])
    torch.testing.assert_close(functional["0.0.weight"], reached["0.0.weight"])


def test_a_target_gives_no_gradient_through_the_point_of_its_jacobian():
    prediction, target = torch.tensor([[3.0]]), torch.tensor([[2.0]], requires_grad=True)
    term = {"first": fcfd.Term(linearized(torch.exp), "s", "t")}
    part = fcfd.evaluate(term, {"s": prediction, "t": target})["first"]
    assert not part.requires_grad


def test_trees_are_linearized_and_read_by_entry():
    feature = {"x": torch.randn(2, 3), "at": torch.arange(2)}
    other = {"x": feature["x"] + 1, "at": feature["at"]}

    def function(tree):
        return {"logits": tree["x"] ** 2, "nothing": None, "at": tree["at"] + 1}

    seen = []

    def loss(prediction, target):
        seen.append((prediction, target))
        return losses.squared_error(prediction["logits"], target["logits"])

    found = linearized(function, loss)(other, feature)
    torch.testing.assert_close(found, (2 * feature["x"]).square().mean(1))
    prediction, target = seen[0]
    assert prediction["nothing"] is None
    assert torch.equal(prediction["at"], feature["at"] + 1)
    assert torch.equal(target["logits"], feature["x"] ** 2)
    entry = fcfd.terms.entry("logits", losses.squared_error)
    assert torch.equal(linearized(function, entry)(other, feature), found)


def test_batch_statistics_write_nothing(nets):
    teacher, _, linked = pair(teacher_mode="train")
    images, _ = batch(3)
    values, _ = fcfd.walk(("t", "tt"), *linked.columns, {"": images})
    before = snapshot(teacher, linked.buffers)
    linearized(tail("tt", "tttt", *linked.columns))(values["tt"] + 1, values["tt"])
    response(tail("tt", "tttt", *linked.columns), values["tt"], values["tt"], size=1.0)
    assert_unchanged(before, teacher, linked.buffers)


def test_compiled_is_eager():
    torch.manual_seed(0)
    modules = [
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
    ]
    net = fcfd.split(modules)
    columns = {"t": net.stages}, {"t": fcfd.frozen(net.params)}, {"t": net.buffers}
    target = torch.randn(2, 4, 6, 6)
    for loss in (distance, losses.kl):
        measured = linearized(tail("t", "ttt", *columns), loss)

        def step(prediction, measured=measured):
            return measured(prediction, target)

        eager, compiled = (target + 1).requires_grad_(), (target + 1).requires_grad_()
        expected = step(eager)
        found = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(compiled.grad, eager.grad)
    torch.compiler.reset()


@pytest.mark.parametrize("transform", [fcfd.checkpointed, partial(fcfd.compiled, backend="eager")])
def test_stages_that_cannot_be_differentiated_are_refused(transform):
    net = fcfd.split([nn.Linear(3, 4), nn.Linear(4, 2)])
    columns = {"t": transform(net.stages)}, {"t": fcfd.frozen(net.params)}, {"t": net.buffers}
    function, feature = tail("t", "tt", *columns), torch.randn(2, 4)
    with pytest.raises(ValueError, match="spectrum: torch.func cannot differentiate .* Give plain stages"):
        spectrum(function, feature, count=2)
    if transform is not fcfd.checkpointed:
        with pytest.raises(ValueError, match="linearized: torch.func cannot differentiate .*Give plain"):
            linearized(function)(feature + 1, feature)
    torch.compiler.reset()


def test_other_precisions_than_the_target_s():
    target = torch.randn(2, 3)
    prediction = (target + 1).bfloat16().requires_grad_()
    found = linearized(torch.sin)(prediction, target)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert prediction.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("call", [distance, linearized(torch.sin)])
@pytest.mark.parametrize(
    "prediction, target",
    [
        (torch.ones(2, 3), torch.ones(2, 4)),
        (torch.ones(2, 3), torch.ones(1, 3)),
        (torch.ones(2, 3), (torch.ones(2, 3),)),
        ((torch.ones(2, 3), torch.ones(2, 1)), (torch.ones(2, 3), torch.arange(2))),
    ],
)
def test_features_that_differ_are_refused(call, prediction, target):
    with pytest.raises(ValueError, match="prediction .* and target .* must be alike, in form and shapes"):
        call(prediction, target)


# Response


def test_a_response_is_to_a_step_of_the_given_length():
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    feature, direction = torch.randn(2, 2), torch.tensor([[7.0, 0.0], [0.0, 0.1]])
    found = response(lambda x: x @ weight, feature, direction, size=2.0)
    torch.testing.assert_close(found, torch.tensor([6.0, 8.0]), rtol=1e-4, atol=0)
    each = response(lambda x: x @ weight, feature, direction, size=torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(each, torch.tensor([3.0, 2.0]), rtol=1e-4, atol=0)


def test_small_steps_along_the_directions_move_by_the_gains(nets):
    feature = _values(nets, "tt")["tt"]
    function = tail("tt", "tttt", *nets.columns)
    found = spectrum(function, feature, count=3, iterations=10)
    for at in range(3):
        moved = response(function, feature, found.directions[at], size=1e-6) / 1e-6
        torch.testing.assert_close(moved, found.gains[:, at], rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    "direction, size, error, says",
    [
        (torch.zeros(2, 3), 1.0, ValueError, "direction is 0 or not finite for some example"),
        (torch.full((2, 3), float("inf")), 1.0, ValueError, "direction is 0 or not finite"),
        (torch.ones(2, 4), 1.0, ValueError, r"direction \[2, 4\] and feature \[2, 3\] must be alike"),
        (torch.ones(2, 3), torch.ones(3), ValueError, r"size \[3\] must be .* one for each example, \[2\]"),
        (torch.ones(2, 3), "1", TypeError, "size '1' must be a number"),
        (torch.ones(2, 3), float("nan"), ValueError, "size nan must be finite"),
    ],
)  # fmt: skip
def test_arguments_of_a_response(direction, size, error, says):
    with pytest.raises(error, match=f"^response: {says}"):
        response(torch.sin, torch.ones(2, 3), direction, size=size)


# Crossed accuracy


def test_crossed_accuracy_counts_each_path_s_hits(nets):
    images, labels = batch(9)
    before = snapshot(nets.bridges, nets.params, nets.buffers, images)
    paths = (*nets.crossings, "ssss", "t4")
    found = crossed_accuracy(*nets.columns, images, labels, paths=paths)
    assert_unchanged(before, nets.bridges, nets.params, nets.buffers, images)
    assert list(found) == [fcfd.expand(path) for path in paths]
    values = _values(nets, *paths, size=9)
    for path, share in found.items():
        hits = [int(row.argmax()) == int(label) for row, label in zip(values[path], labels, strict=True)]
        assert share.item() == pytest.approx(sum(hits) / 9)


@pytest.mark.parametrize(
    "labels, paths, error, says",
    [
        (torch.zeros(4), ("ssss",), TypeError, r"labels \[4\] of torch.float32 must be integer classes"),
        ([0, 1], ("ssss",), TypeError, "labels is of type list; give integer classes"),
        (torch.zeros(3, dtype=torch.long), ("ssss",), ValueError, r"path 'ssss' .* for labels \[3\]"),
        (torch.full((4,), 10), ("ssss",), ValueError, "path 'ssss' has 10 classes, 0 to 9"),
        (torch.full((4,), -1), ("ssss",), ValueError, "path 'ssss' .*some of the 4 labels is none"),
        (torch.zeros(4, dtype=torch.long), ("ss",), ValueError, "path 'ss' returns .*it must lead to logits"),
        (torch.zeros(4, dtype=torch.long), "ssss", ValueError, "paths is the string 'ssss'"),
    ],
)  # fmt: skip
def test_arguments_of_crossed_accuracy(nets, labels, paths, error, says):
    with pytest.raises(error, match=f"^crossed_accuracy: {says}"):
        crossed_accuracy(*nets.columns, batch(4)[0], labels, paths=paths)
