"""What the account of a step says is counted in a small step."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import fcfd
from benchmarks import accounting
from fcfd import losses, placement

DEPTH = 4


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_every_stage_is_gathered_as_often_as_the_account_says(mesh, monkeypatch):
    read = []
    full = placement._full

    def counted(tensor):
        read.append(tensor)
        return full(tensor)

    monkeypatch.setattr(placement, "_full", counted)

    def network(width):
        return [nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 3)]

    networks = {"t": fcfd.split(network(7)), "s": fcfd.split(network(4))}
    images, labels = torch.randn(6, 5), torch.randint(3, (6,))
    nets = fcfd.link(networks, example=images)
    paths = ("sstt", "ttss")
    params = {column: fcfd.spread(own, mesh, Shard(0)) for column, own in nets.params.items()}
    stages = {column: fcfd.checkpointed(fcfd.gathered(own)) for column, own in nets.stages.items()}
    losses.fcfd(stages, params, nets.buffers, images, labels, paths=paths)[0].backward()
    for (column, at), count in accounting.counts(paths, DEPTH).items():
        first = next(tensor for name, tensor in params[column].items() if name.startswith(f"{at}."))
        assert sum(one is first for one in read) == count.forward + count.backward, (column, at)


def test_models_have_as_many_parameters_as_published():
    assert sum(accounting.TEACHER.stages(16)) == 70_553_706_496
    assert sum(accounting.STUDENT.stages(7)) == 8_030_261_248


def test_shards_hold_less_and_move_more():
    rows = [accounting.row(placement, ("sstt", "ttss"), DEPTH) for placement in accounting.PLACEMENTS]
    assert [row.held for row in rows] == sorted([row.held for row in rows], reverse=True)
    assert [row.gathered for row in rows] == sorted(row.gathered for row in rows)
    assert rows[0].gathered == rows[0].largest == 0
