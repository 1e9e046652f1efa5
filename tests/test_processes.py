"""Two processes that each see half of a batch train as one process that sees all of it."""

import socket

import torch
from torch import distributed, multiprocessing, nn
from torch.multiprocessing.spawn import spawn

import fcfd
from fcfd import losses

from .nets import batch, pair


class Step(nn.Module):
    """The module whose forward is the step: what DDP has to wrap."""

    def __init__(self) -> None:
        super().__init__()
        teacher, student, self.nets = pair()
        self.teacher, self.student, self.bridges = [teacher.eval()], student.eval(), self.nets.bridges.eval()

    def forward(self, images, labels, step):
        paths = fcfd.draw(self.nets.crossings, 1, seed=0, step=step)
        return losses.fcfd(*self.nets.columns, images, labels, paths=paths)[0]


def _trained(module, step, rows=slice(None)):
    images, labels = batch(4)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.01, momentum=0.9)
    for at in range(3):
        optimizer.zero_grad()
        module(images[rows], labels[rows], at).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in step.named_parameters()}


def _one_of_two(rank, port, results):
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    step = Step()
    wrapped = nn.parallel.DistributedDataParallel(step, find_unused_parameters=True)
    results[rank] = _trained(wrapped, step, slice(2 * rank, 2 * rank + 2))
    distributed.destroy_process_group()


def test_ddp_around_the_step_equals_one_process():
    alone = Step()
    expected = _trained(alone, alone)
    start = {name: tensor.detach() for name, tensor in Step().named_parameters()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        spawn(_one_of_two, (port, results), nprocs=2)
        first, second = results[0], results[1]
    moved = [name for name, tensor in expected.items() if not torch.equal(tensor, start[name])]
    assert len(moved) > 10
    for name, tensor in expected.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-12, atol=1e-12, msg=name)
        assert torch.equal(first[name], second[name]), name
