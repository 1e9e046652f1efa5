"""Transforms of columns: the same values, gradients and statistics; and how many graphs there are."""

from functools import partial
from itertools import combinations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import fcfd
from fcfd import losses
from fcfd.transforms import checkpointed, compiled, joined, lean

from .nets import batch, pair
from .purity import assert_unchanged, snapshot

PATHS = ("sstt", "ttss")


def _step(nets, stages, paths=PATHS):
    images, labels = batch()
    loss, aux = losses.fcfd(stages, nets.params, nets.buffers, images, labels, paths=paths)
    own = {f"{c}/{n}": p for c, params in nets.params.items() for n, p in params.items() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    return loss, dict(zip(own, gradients, strict=True)), aux


def _columns(nets, transform):
    return {column: transform(stages) for column, stages in nets.stages.items()}


TRANSFORMS = {
    "compiled": lambda stages: compiled(stages, backend="aot_eager"),
    "checkpointed": checkpointed,
    "both": lambda stages: checkpointed(compiled(stages, backend="aot_eager")),
    "lean": lean,
    "lean, compiled": lambda stages: compiled(lean(stages), backend="aot_eager"),
    "compiled, lean": lambda stages: lean(compiled(stages, backend="aot_eager")),
    "lean, checkpointed": lambda stages: checkpointed(lean(stages)),
    "checkpointed, lean": lambda stages: lean(checkpointed(stages)),
    "lean, recomputing": partial(lean, recompute=True),
    "recomputing, compiled": lambda stages: compiled(lean(stages, recompute=True), backend="aot_eager"),
    "compiled, recomputing": lambda stages: lean(compiled(stages, backend="aot_eager"), recompute=True),
    "recomputing, checkpointed": lambda stages: checkpointed(lean(stages, recompute=True)),
    "checkpointed, recomputing": lambda stages: lean(checkpointed(stages), recompute=True),
    "all within": lambda stages: compiled(checkpointed(lean(stages)), backend="aot_eager"),
    "all within, recomputing": lambda stages: compiled(
        lean(checkpointed(stages), recompute=True), backend="aot_eager"
    ),
    "all": lambda stages: checkpointed(compiled(lean(stages), backend="aot_eager")),
}


ONCE = ("checkpointed", "compiled", "lean", "lean, recomputing")
"""What is tried in train mode, too, by tests that are not slow."""


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "eval") for name in TRANSFORMS),
        *(pytest.param(name, "train", marks=() if name in ONCE else pytest.mark.slow) for name in TRANSFORMS),
    ],
)
def test_a_transformed_column_computes_the_same(name, mode):
    torch.compiler.reset()
    *_, nets = pair(teacher_mode=mode)
    loss, gradients, aux = _step(nets, nets.stages)
    same_loss, same_gradients, same_aux = _step(nets, _columns(nets, TRANSFORMS[name]))
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(same_gradients, gradients)
    torch.testing.assert_close(same_aux.parts, aux.parts)
    torch.testing.assert_close(same_aux.buffers, aux.buffers)


def test_every_plan_runs_on_the_graphs_of_the_stages():
    """Each stage has one graph for inputs that need a gradient and one for those that do not, at most."""
    torch.compiler.reset()
    *_, nets = pair()
    counter = CompileCounter()
    stages = _columns(nets, lambda column: compiled(column, backend=counter))
    for paths in combinations(nets.crossings, 2):
        _step(nets, stages, paths)
    graphs = counter.frame_count
    built = sum(stage is not None for column in stages.values() for stage in column)
    assert graphs <= 2 * built
    for paths in combinations(nets.crossings, 2):
        _step(nets, stages, paths)
    assert counter.frame_count == graphs, "no plan recompiles"


def test_many_shapes_of_one_stage_do_not_spend_the_limit_of_another():
    torch.compiler.reset()
    counter = CompileCounter()
    stages = compiled(tuple(fcfd.stage(torch.nn.ReLU()) for _ in range(12)), backend=counter, dynamic=False)
    for stage in stages:
        for size in (1, 2, 3):
            stage({}, {}, torch.ones(size))
    assert counter.frame_count == 36


def test_a_stage_that_does_not_compile_whole_is_an_error():
    def breaks(params, buffers, x):
        torch._dynamo.graph_break()
        return x, {}

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled((breaks,), backend="eager")[0]({}, {}, torch.ones(1))


def test_a_checkpointed_column_keeps_less():
    """What autograd saves for backward, outside of parameters and buffers, falls to the stages' inputs."""
    *_, nets = pair()
    kept = {}
    for name, stages in (("plain", nets.stages), ("checkpointed", _columns(nets, checkpointed))):
        held: dict[int, int] = {}

        def pack(tensor, held=held):
            held[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            images, labels = batch()
            losses.fcfd(stages, nets.params, nets.buffers, images, labels, paths=PATHS)
        kept[name] = sum(held.values())
    assert kept["checkpointed"] < 0.5 * kept["plain"], kept


def test_a_lean_column_works_in_part_and_under_func():
    """A part of the teacher lean: the same values to the last bit; `torch.func.grad` passes it."""
    *_, nets = pair()
    teacher = nets.stages["t"]
    columns = {**nets.stages, "t": (*teacher[:2], *lean(teacher[2:]))}
    images, labels = batch()

    def gradients(stages):
        def of_student(own):
            params = nets.params | {"s": own}
            return losses.fcfd(stages, params, nets.buffers, images, labels, paths=PATHS)[0]

        return torch.func.grad_and_value(of_student)(nets.params["s"])

    torch.testing.assert_close(gradients(columns), gradients(nets.stages), rtol=1e-10, atol=1e-10)


def test_a_lean_step_is_one_graph():
    torch.compiler.reset()
    *_, nets = pair()
    wanted, gradients, _ = _step(nets, nets.stages)
    stages = {**nets.stages, "t": lean(nets.stages["t"])}
    images, labels = batch()
    own = [p for params in nets.params.values() for p in params.values() if p.requires_grad]

    def objective(params, buffers):
        return losses.fcfd(stages, params, buffers, images, labels, paths=PATHS)[0]

    loss = torch.compile(objective, fullgraph=True, backend="aot_eager")(nets.params, nets.buffers)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(loss, own, allow_unused=True)
    torch.testing.assert_close(found, tuple(gradients.values()), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("recompute", [False, True])
def test_lean_leaves_everything_alone(recompute):
    teacher, student, nets = pair()
    things = teacher, student, nets.params, nets.buffers
    before = snapshot(*things)
    _step(nets, _columns(nets, partial(lean, recompute=recompute)))
    assert_unchanged(before, *things)
    assert not torch.overrides._get_current_function_mode_stack(), "no mode stays on"


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_joined_stages_compute_the_same(mode):
    *_, nets = pair(teacher_mode=mode)
    images, _ = batch()
    for letter in "st":
        dicts = nets.params, nets.buffers, {"": images}
        apart, written = fcfd.walk(fcfd.plan([letter * 4]), nets.stages, *dicts)
        columns = {letter: joined(nets.stages[letter], (2, 4))}
        values, of_joined = fcfd.walk((letter, letter * 2), columns, *dicts)
        assert torch.equal(values[letter], apart[letter * 2])
        assert torch.equal(values[letter * 2], apart[letter * 4])
        torch.testing.assert_close(
            fcfd.merge_buffers(nets.buffers, of_joined), fcfd.merge_buffers(nets.buffers, written)
        )


@pytest.mark.parametrize("ends", [(), (2, 2, 4), (3, 1, 4), (0, 4), (1, 3), (1, 5)])
def test_stages_join_only_in_order_and_whole(ends):
    with pytest.raises(ValueError, match=r"joined: ends \[.*\] must increase from at least 1 to 4"):
        joined(pair()[-1].stages["s"], ends)


def test_missing_bridges_stay_missing():
    assert compiled((None,)) == checkpointed((None,)) == lean((None,)) == (None,)
