"""The three losses that run through networks: sums, gradients, purity, transforms, compilation, refusals."""

import pytest
import torch
from torch import nn

import fcfd
from fcfd import losses

from .nets import batch, pair, stages
from .purity import assert_unchanged, snapshot

ONE_EACH = ("sstt", "ttss")


def _fcfd(nets, images, labels, params=None, **options):
    options = {"paths": ONE_EACH} | options
    return losses.fcfd(nets.stages, params or nets.params, nets.buffers, images, labels, **options)


def _with_grad(nets) -> set[str]:
    return {
        f"{column}/{name}"
        for column, params in nets.params.items()
        for name, tensor in params.items()
        if tensor.grad is not None
    }


def test_fcfd_is_the_sum_of_kd_appearance_and_function():
    *_, nets = pair()
    images, labels = batch()
    loss, aux = _fcfd(nets, images, labels, feature_weight=0.7, path_weight=0.2, temperature=3.0)
    columns = nets.columns
    app, _ = losses.appearance(*columns, images)
    fun, _ = losses.function(
        *columns, images, paths=ONE_EACH, feature_weight=0.7, path_weight=0.2, temperature=3.0
    )
    label = losses.cross_entropy(aux.values["ssss"], labels).mean()
    divergence = losses.kl(aux.values["ssss"], aux.values["tttt"], temperature=3.0).mean()
    torch.testing.assert_close(loss, label + divergence + 0.7 * app + fun)


@pytest.mark.parametrize("crossed", [0.0, 0.3, 1.0, torch.tensor(0.3)])
def test_crossed_is_a_factor_of_function_and_of_nothing_else(crossed):
    *_, nets = pair()
    images, labels = batch()
    without, _ = _fcfd(nets, images, labels, paths=(), feature_weight=0.7)
    fun, _ = losses.function(*nets.columns, images, paths=ONE_EACH, feature_weight=0.7, path_weight=0.2)
    loss, aux = _fcfd(nets, images, labels, feature_weight=0.7, path_weight=0.2, crossed=crossed)
    torch.testing.assert_close(loss, without + crossed * fun)
    computed = {path for path in aux.values if path in ONE_EACH}
    assert computed == (set(ONE_EACH) if crossed else set()), "what weighs nothing is not computed"


def test_crossed_must_be_a_number():
    *_, nets = pair()
    with pytest.raises(TypeError, match=r"weights\['feature/ss"):
        _fcfd(nets, *batch(), crossed="0.5")


def test_the_parts_carry_the_names_of_their_paths():
    *_, nets = pair()
    _, aux = _fcfd(nets, *batch(), paths=("sttt", "ttss"))
    assert list(aux.parts) == [
        *("label", "kl/student", "feature/s>t", "feature/ss>t", "feature/sss>t", "pooled/sss>t"),
        *("feature/st", "feature/stt", "pooled/stt", "kl/sttt", "kl/ttss"),
    ]
    assert aux.values["sttt"].shape == (4, 10)


@pytest.mark.parametrize(
    ("paths", "student", "bridges"),
    [
        ((), "0123", {"s>t.0", "s>t.1", "s>t.2"}),
        (("sttt",), "0123", {"s>t.0", "s>t.1", "s>t.2"}),
        (("ttss",), "0123", {"s>t.0", "s>t.1", "s>t.2", "t>s.1"}),
        (("tsss", "sstt"), "0123", {"s>t.0", "s>t.1", "s>t.2", "t>s.0"}),
    ],
)
def test_gradients_reach_what_trains_and_nothing_else(paths, student, bridges):
    teacher, _, nets = pair()
    loss, _ = _fcfd(nets, *batch(), paths=paths)
    loss.backward()
    reached = _with_grad(nets)
    expected = {f"s/{name}" for name in nets.params["s"] if name[0] in student}
    for bridge in bridges:
        column, _, at = bridge.partition(".")
        expected |= {f"{column}/{name}" for name in nets.params[column] if name.startswith(f"{at}.")}
    assert reached == expected
    assert all(tensor.grad is None for tensor in teacher.parameters())


@pytest.mark.parametrize(
    ("path", "student", "bridge"),
    [("sttt", "0", "s>t/0."), ("sstt", "01", "s>t/1."), ("tsss", "123", "t>s/0."), ("ttss", "23", "t>s/1.")],
)
def test_a_crossed_path_trains_its_bridge_and_its_own_student_stages(path, student, bridge):
    """Into the teacher: the stages before it, through frozen ones. Into the student: the stages after it."""
    *_, nets = pair()
    loss, _ = losses.function(*nets.columns, batch()[0], paths=(path,))
    loss.backward()
    expected = {f"s/{name}" for name in nets.params["s"] if name[0] in student}
    column, _, prefix = bridge.partition("/")
    expected |= {f"{column}/{name}" for name in nets.params[column] if name.startswith(prefix)}
    assert _with_grad(nets) == expected


def test_a_network_beside_itself_has_nothing_to_learn():
    """With identity bridges every crossed path is the pure path: appearance and function are zero."""
    torch.manual_seed(0)
    network = fcfd.split(list(nn.ModuleList(stages(4)).double().eval()))
    identity = {f"{a * at}>{b}": nn.Identity() for a, b in ("st", "ts") for at in (1, 2, 3)}
    identity = {path: module for path, module in identity.items() if path != "ttt>s"}
    images, _ = batch()
    nets = fcfd.link({"s": network, "t": network}, example=images, bridges=identity)
    app, _ = losses.appearance(*nets.columns, images)
    fun, aux = losses.function(*nets.columns, images, paths=nets.crossings)
    assert app.item() == 0.0
    assert abs(fun.item()) < 1e-14
    for path in nets.crossings:
        assert torch.equal(aux.values[path], aux.values["tttt"])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_changes_unless_it_is_written(mode):
    teacher, student, nets = pair(teacher_mode=mode)
    images, labels = batch()
    things = teacher, student, nets.bridges, nets.params, nets.buffers, images, labels
    before = snapshot(*things)
    _, aux = _fcfd(nets, images, labels, paths=nets.crossings)
    losses.appearance(*nets.columns, images)
    assert_unchanged(before, *things)
    fcfd.write_buffers_(student, aux.buffers["s"])
    for name, tensor in student.named_buffers():
        assert torch.equal(tensor, aux.buffers["s"][name])


def test_the_teacher_s_statistics_come_back_only_from_train_mode():
    for mode, moves in (("eval", False), ("train", True)):
        *_, nets = pair(teacher_mode=mode)
        _, aux = _fcfd(nets, *batch())
        moved = any(not torch.equal(aux.buffers["t"][name], old) for name, old in nets.buffers["t"].items())
        assert moved == moves


def _gradients(nets, images, labels):
    loss, aux = _fcfd(nets, images, labels)
    names, tensors = zip(*nets.params["s"].items(), strict=True)
    return loss, aux, dict(zip(names, torch.autograd.grad(loss, tensors), strict=True))


def test_torch_func_gives_the_same_gradients():
    *_, nets = pair()
    images, labels = batch()
    loss, aux, expected = _gradients(nets, images, labels)

    def of_student(own):
        return _fcfd(nets, images, labels, params=nets.params | {"s": own})

    gradients, aux_of = torch.func.grad(of_student, has_aux=True)(nets.params["s"])
    value, pull, _ = torch.func.vjp(of_student, nets.params["s"], has_aux=True)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(gradients, expected)
    torch.testing.assert_close(pull(torch.ones_like(value))[0], expected)
    torch.testing.assert_close(aux_of.parts, aux.parts)
    torch.testing.assert_close(aux_of.buffers, aux.buffers)


def test_the_gradient_is_that_of_finite_differences():
    *_, nets = pair()
    images, labels = batch(3)
    own = {name: tensor.detach().clone() for name, tensor in nets.params["s"].items()}

    def along(step):
        moved = {name: tensor + step * direction[name] for name, tensor in own.items()}
        return _fcfd(nets, images, labels, params=nets.params | {"s": moved})[0]

    torch.manual_seed(3)
    direction = {name: torch.randn_like(tensor) for name, tensor in own.items()}
    gradient = torch.func.grad(lambda p: _fcfd(nets, images, labels, params=nets.params | {"s": p})[0])(own)
    exact = sum((gradient[name] * direction[name]).sum() for name in own)
    h = 1e-7
    torch.testing.assert_close((along(h) - along(-h)) / (2 * h), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_compiled_equals_eager_in_one_graph(mode):
    torch.compiler.reset()
    *_, nets = pair(teacher_mode=mode)
    images, labels = batch()
    loss, aux, expected = _gradients(nets, images, labels)
    compiled = torch.compile(losses.fcfd, fullgraph=True, backend="aot_eager")
    columns = nets.columns
    value, aux_of = compiled(*columns, images, labels, paths=ONE_EACH)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(aux_of.parts, aux.parts)
    torch.testing.assert_close(aux_of.buffers, aux.buffers)
    got = torch.autograd.grad(value, list(nets.params["s"].values()))
    torch.testing.assert_close(dict(zip(expected, got, strict=True)), expected)


def test_a_weight_that_moves_by_step_does_not_recompile():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    *_, nets = pair()
    images, labels = batch()
    compiled = torch.compile(losses.fcfd, fullgraph=True, backend=counter)
    for epoch in range(6):
        weight = 5 * fcfd.schedules.linear_warmup(epoch, steps=20)
        compiled(*nets.columns, images, labels, paths=(), feature_weight=weight)
    assert counter.frame_count <= 2, "one graph for the first value, one for all others"


def test_the_networks_may_have_any_letters():
    teacher, student, nets = pair()
    renamed = {"t": "a", "s": "b"}
    cut = {renamed["t"]: fcfd.split(list(teacher)), renamed["s"]: fcfd.split(list(student))}
    images, labels = batch()
    other = fcfd.link(cut, example=images, student="b", teacher="a")
    for column, bridges in nets.bridges.items():
        letters = column.translate(str.maketrans(renamed))
        other.bridges[letters].load_state_dict(bridges.state_dict())
    loss, _ = _fcfd(nets, images, labels)
    same, _ = _fcfd(other, images, labels, paths=("bbaa", "aabb"), student="b", teacher="a")
    torch.testing.assert_close(loss, same)


def test_half_precision_parameters_give_a_finite_step():
    *_, nets = pair(dtype=torch.bfloat16)
    images, labels = batch(dtype=torch.bfloat16)
    loss, _ = _fcfd(nets, images, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in nets.params["s"].values())


def test_autocast_gives_a_finite_step_near_the_exact_one():
    *_, nets = pair(dtype=torch.float32)
    images, labels = batch(dtype=torch.float32)
    exact, _ = _fcfd(nets, images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = _fcfd(nets, images, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.0)


REFUSED = {
    "unknown network": ({"paths": ("ssxx",)}, "path 'ss>x' needs bridges 's>x'"),
    "unknown student": ({"student": "q"}, "fcfd: there is no network 'q'; stages has 't', 's', 's>t', 't>s'"),
    "too long": ({"paths": ("sssttt",)}, "fcfd: path 'sssttt' runs 6 stages; a path to the logits runs 4"),
    "too short": ({"paths": ("sst",)}, "fcfd: path 'sst' runs 3 stages; a path to the logits runs 4"),
    "no crossing": ({"paths": ("ssss",)}, "fcfd: path 'ssss' stays in one network"),
    "no path": ({"paths": ("ss>ttt",)}, "write 'sst' for 'ss>tt'"),
    "a string": ({"paths": "sstt"}, "fcfd: paths is the string 'sstt'; give a tuple of paths: ('sstt',)"),
    "missing bridge": ({"paths": ("ttts",)}, "needs a bridge 't>s' after stage 2, which was not built"),
    "label shape": (
        {"labels": torch.zeros(3, dtype=torch.long)},
        "labels [3] of torch.int64 must be integer",
    ),
    "label dtype": (
        {"labels": torch.zeros(4)},
        "labels [4] of torch.float32 must be integer classes of shape",
    ),
    "integer images": (
        {"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)},
        "fcfd: images [4, 3, 8, 8] are torch.uint8; make them floats",
    ),
    "empty batch": ({"images": torch.zeros(0, 3, 8, 8)}, "fcfd: the batch [0, 3, 8, 8] is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_with_a_reason(name):
    changed, text = REFUSED[name]
    *_, nets = pair()
    images, labels = batch()
    options = {"images": images, "labels": labels} | changed
    with pytest.raises((TypeError, ValueError)) as error:
        _fcfd(nets, options.pop("images"), options.pop("labels"), **options)
    assert text in str(error.value)


def test_other_class_counts_are_refused():
    *_, nets = pair(teacher_classes=100)
    with pytest.raises(ValueError, match="'kl/student', 'ssss' towards 'tttt'") as error:
        _fcfd(nets, *batch())
    assert "prediction [4, 10] and target [4, 100] must have the same shape" in str(error.value)
    assert "same classes" in str(error.value)


def test_a_batch_of_one_is_refused_where_batchnorm_needs_two():
    *_, nets = pair()
    images, labels = batch(1)
    with pytest.raises(ValueError, match=r"walk: path 's+': .*Expected more than 1 value per channel"):
        _fcfd(nets, images[..., :1, :1], labels)


def test_a_parameter_that_is_missing_is_named():
    *_, nets = pair()
    own = dict(nets.params["s"])
    del own["1.1.bias"]
    with pytest.raises(ValueError, match=r"path 'ss': .* params lacks '1\.1\.bias'"):
        _fcfd(nets, *batch(), params=nets.params | {"s": own})


def test_nothing_to_compare_is_refused():
    *_, nets = pair()
    pure = {letter: nets.stages[letter] for letter in "st"}
    columns = pure, nets.params, nets.buffers, batch()[0]
    with pytest.raises(ValueError, match="appearance: no bridge was built from 's' to 't'; link some"):
        losses.appearance(*columns)
    with pytest.raises(ValueError, match="function: there is no path; give at least one"):
        losses.function(*columns, paths=())


def test_other_counts_of_stages_are_refused():
    *_, nets = pair()
    short = nets.stages | {"s": nets.stages["s"][1:]}
    with pytest.raises(ValueError, match="network 's' has 3 stages, 't' has 4; cut them alike"):
        losses.appearance(short, nets.params, nets.buffers, batch()[0])


@pytest.mark.parametrize("loss", [losses.fcfd, losses.function, losses.appearance])
def test_a_frozen_student_beside_a_teacher_that_is_not_is_refused(loss):
    teacher, _, nets = pair()
    images, labels = batch()
    own = {"t": dict(teacher.named_parameters()), "s": fcfd.frozen(nets.params["s"])}
    given = {losses.fcfd: (images, labels), losses.function: (images,), losses.appearance: (images,)}[loss]
    options = {} if loss is losses.appearance else {"paths": nets.crossings[:1]}

    def run(params):
        return loss(nets.stages, params, nets.buffers, *given, **options)[0]

    with pytest.raises(
        ValueError, match=rf"{loss.__name__}: the parameters of student 's' are detached, those"
    ):
        run(nets.params | own)
    run(nets.params | {"s": own["s"]})  # both frozen: bridges alone learn
    with torch.no_grad():
        run(nets.params | own)
