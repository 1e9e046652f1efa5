"""What a frozen network keeps for the gradient of a student's feature: the whole of it in bits."""

from functools import cache

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

import fcfd
from benchmarks.step import CIFAR, HYPER, pair
from fcfd import losses

from .test_operations import kept


@cache
def _pair():
    return pair(CIFAR._replace(batch=2))


def _own():
    """What is held anyway: weights, statistics and the batch."""
    on = _pair()
    return on.images, on.nets.params, on.nets.buffers


def _kept(function, x, held):
    """Bytes kept beside weights and the batch, which the closure of `run` shows."""

    def run(x):
        assert held is not None
        return function(x)

    return kept(run, x)


def _tail(stages):
    nets = _pair().nets
    params, buffers = nets.params["t"], nets.buffers["t"]

    def run(x):
        for stage in stages[2:]:
            x, _ = stage(params, buffers, x)
        return x

    return run


@pytest.mark.slow
def test_the_tail_of_a_teacher():
    """Kept at most 0.13 of what it keeps as it is."""
    teacher, x = _pair().nets.stages["t"], torch.randn(2, 64, 32, 32, requires_grad=True)
    value, plain = _kept(_tail(teacher), x, _own())
    same, lean = _kept(_tail(fcfd.lean(teacher)), x, _own())
    assert torch.equal(same, value)
    assert lean <= 0.13 * plain, (lean, plain)
    torch.testing.assert_close(
        torch.autograd.grad(same.sum(), x), torch.autograd.grad(value.sum(), x), rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_a_step_of_two_paths_into_the_teacher():
    """Kept at most 0.55 of what it keeps as it is; the loss is the same."""
    on = _pair()
    paths = [path for path in on.nets.crossings if path[0] == "s"][:2]

    def step(stages):
        def run(images):
            return losses.fcfd(stages, *on.nets.columns[1:], images, on.labels, paths=paths, **HYPER)[0]

        return run

    loss, plain = _kept(step(on.nets.stages), on.images, _own())
    stages = {**on.nets.stages, "t": fcfd.lean(on.nets.stages["t"])}
    same, lean = _kept(step(stages), on.images, _own())
    assert torch.equal(same, loss)
    assert lean <= 0.55 * plain, (lean, plain)


@pytest.mark.slow
def test_what_the_partitioner_keeps_of_a_compiled_tail():
    """At most 0.25 of what it keeps of the plain one."""
    backend = aot_autograd(
        fw_compiler=lambda graph, _: graph,
        bw_compiler=lambda graph, _: graph,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table,
    )
    teacher, x = _pair().nets.stages["t"][:4], torch.randn(2, 64, 32, 32, requires_grad=True)
    memory = {}
    for name, stages in (("plain", teacher), ("lean", fcfd.lean(teacher))):
        torch.compiler.reset()
        tail = torch.compile(_tail(stages), fullgraph=True, backend=backend)
        memory[name] = _kept(tail, x, _own())[1]
    assert memory["lean"] <= 0.25 * memory["plain"], memory
