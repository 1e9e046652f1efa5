"""What the account of a step says is counted in a small step."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import fcfd
from benchmarks import accounting
from fcfd import losses

from ..many import Moves, processes

DEPTH, PATHS = 4, ("sstt", "ttss")
PROCESSES = accounting.PROCESSES
LAYOUTS = {
    "replicas": ((PROCESSES,), [Replicate()], 1),
    "FSDP": ((PROCESSES,), [Shard(0)], PROCESSES),
    "HSDP": ((8, PROCESSES // 8), [Shard(0), Replicate()], 8),
}


def _linked():
    def network(width):
        sizes = [(64, width), (width, width), (width, width), (width, 64)]
        return [nn.Linear(*size, bias=False) for size in sizes]

    networks = {"t": fcfd.split(network(128)), "s": fcfd.split(network(64))}
    images, labels = torch.randn(6, 64), torch.randint(64, (6,))
    return fcfd.link(networks, example=images), images, labels


def _moves(shape, placements, teacher):
    """What a step sends and receives in fact."""
    nets, images, labels = _linked()
    mesh = init_device_mesh("cpu", shape)
    params = {
        column: fcfd.spread(own, mesh, *placements) if teacher or column != "t" else own
        for column, own in nets.params.items()
    }
    stages = {column: fcfd.checkpointed(fcfd.gathered(own)) for column, own in nets.stages.items()}
    with Moves() as moves:
        losses.fcfd(stages, params, nets.buffers, images, labels, paths=PATHS)[0].backward()
    return nets, moves.bytes


@pytest.mark.parametrize("teacher", [True, False], ids=["teacher sharded", "teacher on each"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_moves_what_the_account_says(name, teacher):
    shape, placements, over = LAYOUTS[name]
    with processes(PROCESSES):
        nets, found = _moves(shape, placements, teacher)
    received = sent = 0.0
    for (column, at), count in accounting.counts(PATHS, DEPTH).items():
        own = [tensor for name, tensor in nets.params[column].items() if name.startswith(f"{at}.")]
        size = sum(tensor.nbytes for tensor in own)
        assert size
        if teacher or column != "t":
            received += accounting.gathered(count, size, over)
        if column != "t":
            sent += accounting.reduced(count.backward, size, over)
    replicas = PROCESSES / over
    whole = found["reduce_scatter_tensor"] * (over - 1) / over
    assert found["all_gather_into_tensor"] * (over - 1) / over == pytest.approx(received)
    assert whole + found["all_reduce"] * 2 * (replicas - 1) / replicas == pytest.approx(sent)
    assert sent > 0


def test_replicas_of_shards_move_more_if_their_axis_is_the_first():
    """torch reduces axis by axis: the whole gradient over the first, a shard of it over the second."""
    with processes(PROCESSES):
        _, first = _moves((8, 8), [Shard(0), Replicate()], True)
        _, last = _moves((8, 8), [Replicate(), Shard(0)], True)
    assert last["all_reduce"] == 8 * first["all_reduce"]
    assert last["reduce_scatter_tensor"] == first["reduce_scatter_tensor"]


def test_models_have_as_many_parameters_as_published():
    assert sum(accounting.TEACHER.stages(16)) == 70_553_706_496
    assert sum(accounting.STUDENT.stages(7)) == 8_030_261_248


def test_shards_hold_less_and_move_more():
    rows = [accounting.row(placement, ("sstt", "ttss"), DEPTH) for placement in accounting.PLACEMENTS]
    assert [row.held for row in rows] == sorted([row.held for row in rows], reverse=True)
    assert [row.gathered for row in rows] == sorted(row.gathered for row in rows)
    assert rows[0].gathered == rows[0].largest == 0
