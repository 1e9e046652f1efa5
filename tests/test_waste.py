"""A step computes nothing twice, keeps no graph of the teacher, and never waits for the device."""

from collections import Counter
from itertools import combinations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

import fcfd
from fcfd import losses
from reference.zoo import NETWORKS

from .nets import batch, pair

SYNCHRONISES = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
}
"""Operations that the host must wait for: `.item()`, `if tensor:`, `float(tensor)`, sizes from data."""


class NoSynchronisation(TorchDispatchMode):
    """Fail on an operation that a device could not run behind the host's back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        waits = masked or func in SYNCHRONISES
        assert not waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("use", [lambda x: x.sum().item(), lambda x: bool(x.sum() > 0), lambda x: x[x > 0]])
def test_the_guard_catches_what_it_should(use):
    with pytest.raises(AssertionError, match="waits for the device"), NoSynchronisation():
        use(torch.ones(3))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_step_does_not_wait_for_the_device(mode):
    _, student, nets = pair(teacher_mode=mode)
    images, labels = batch()
    optimizer = torch.optim.SGD([*student.parameters(), *nets.bridges.parameters()], lr=0.1)
    with NoSynchronisation():
        paths = fcfd.draw(nets.crossings, 2, seed=0, step=0)
        weight = 5 * fcfd.schedules.linear_warmup(3, steps=20)
        loss, aux = losses.fcfd(*nets.columns, images, labels, paths=paths, feature_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fcfd.write_buffers_(student, aux.buffers["s"])


def test_a_split_model_does_not_wait_either():
    build, at = NETWORKS["resnet8"]
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    networks = {"t": build().eval(), "s": build()}
    cut = {letter: fcfd.split(model, at=at, example=images) for letter, model in networks.items()}
    nets = fcfd.link(cut, example=images, first=2)
    with NoSynchronisation():
        loss, _ = losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)
        loss.backward()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_step_of_split_models_compiles_in_one_graph(mode):
    build, at = NETWORKS["resnet8"]
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    networks = {"t": build().train(mode == "train"), "s": build()}
    cut = {letter: fcfd.split(model, at=at, example=images) for letter, model in networks.items()}
    nets = fcfd.link(cut, example=images, first=2)

    def step(params, buffers):
        loss, aux = losses.fcfd(nets.stages, params, buffers, images, labels, paths=nets.crossings[:1])
        return loss, aux.buffers

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(nets.params, nets.buffers), step(nets.params, nets.buffers))


@pytest.mark.parametrize("whole", [True, False])
def test_other_sizes_of_a_batch_compile_once_more_and_no_oftener(whole):
    *_, nets = pair()
    images, labels = batch(size=8)
    counter = CompileCounter()
    torch.compiler.reset()
    stages, step = nets.stages, losses.fcfd
    if whole:
        step = torch.compile(step, fullgraph=True, backend=counter)
    else:
        stages = {column: fcfd.compiled(own, backend=counter) for column, own in stages.items()}
    graphs = []
    for size in (8, 7, 6, 5):
        step(stages, nets.params, nets.buffers, images[:size], labels[:size], paths=nets.crossings)
        graphs.append(counter.frame_count)
    assert graphs[0] < graphs[1] == graphs[2] == graphs[3]
    assert graphs[3] <= 2 * graphs[0]


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_schedule_does_not_compile_anew(kind):
    *_, nets = pair()
    images, labels = batch()
    counter = CompileCounter()
    torch.compiler.reset()
    step = torch.compile(losses.fcfd, fullgraph=True, backend=counter)
    for at in range(4):
        weight = kind(5 * fcfd.schedules.linear_warmup(at, steps=20))
        step(*nets.columns, images, labels, paths=(), feature_weight=weight)
    assert counter.frame_count <= (1 if kind is torch.tensor else 2)


def test_every_value_of_a_step_is_computed_once():
    *_, nets = pair()
    calls: Counter = Counter()

    def counted(column, at, stage):
        def run(params, buffers, x):
            calls[column, at] += 1
            return stage(params, buffers, x)

        return stage and run

    stages = {
        column: tuple(counted(column, at, stage) for at, stage in enumerate(own))
        for column, own in nets.stages.items()
    }
    _, aux = losses.fcfd(stages, nets.params, nets.buffers, *batch(), paths=nets.crossings)
    assert calls.total() == len(aux.values) - 2, "one call a path; the batch and the labels are given"
    assert calls["t", 0] == calls["s", 0] == 1


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_teacher_s_own_pass_keeps_no_graph(mode):
    *_, nets = pair(teacher_mode=mode)
    _, aux = losses.fcfd(*nets.columns, *batch(), paths=nets.crossings)
    for path, value in aux.values.items():
        if path and path != "Labels":
            assert value.requires_grad == ("s" in path), path
    assert not any(tensor.requires_grad for own in aux.buffers.values() for tensor in own.values())


@pytest.mark.slow
def test_the_fifteen_plans_of_five_stages_compile_once_each_stage():
    """Two of six crossings: 15 plans. Graphs are of stages; no plan recompiles and none falls back."""
    torch.compiler.reset()
    teacher, at = NETWORKS["resnet14"].build().eval(), NETWORKS["resnet14"].at
    student = NETWORKS["resnet8"].build()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    cut = {"t": fcfd.split(teacher, at=at, example=images), "s": fcfd.split(student, at=at, example=images)}
    nets = fcfd.link(cut, example=images)
    assert len(nets.crossings) == 6
    counter = CompileCounter()
    stages = {column: fcfd.compiled(own, backend=counter) for column, own in nets.stages.items()}
    plans = list(combinations(nets.crossings, 2))
    assert len(plans) == 15

    def run_all():
        for paths in plans:
            loss, _ = losses.fcfd(stages, nets.params, nets.buffers, images, labels, paths=paths)
            loss.backward()

    run_all()
    graphs = counter.frame_count
    built = sum(stage is not None for own in stages.values() for stage in own)
    assert graphs <= 2 * built
    run_all()
    assert counter.frame_count == graphs
