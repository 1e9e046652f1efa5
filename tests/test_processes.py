"""Several processes that each see a part of a batch train as one process that sees all of it."""

import socket
from functools import cache

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.multiprocessing.spawn import spawn

import fcfd
from fcfd import losses

from .nets import batch, pair

SIZE = 4
OPTIMIZERS = {
    "sgd": lambda own: torch.optim.SGD(own, 0.01, momentum=0.9),
    "adamw": lambda own: torch.optim.AdamW(own, 0.01),
    "adamw, one by one": lambda own: torch.optim.AdamW(own, 0.01, foreach=False),
}


class Step(nn.Module):
    """The module whose forward is the step: what DDP has to wrap."""

    def __init__(self) -> None:
        super().__init__()
        teacher, self.student, self.nets = _networks()
        self.teacher, self.bridges = [teacher], self.nets.bridges

    def forward(self, images, labels, step):
        paths = fcfd.draw(self.nets.crossings, 1, seed=0, step=step)
        return losses.fcfd(*self.nets.columns, images, labels, paths=paths)[0]


HOWS = ("backward", "func.grad", "compiled")


def _networks():
    teacher, student, nets = pair()
    nets.bridges.eval()
    return teacher.eval(), student.eval(), nets


def _step(step, optimizer, module, images, labels, clip=False):
    optimizer.zero_grad()
    module(images, labels, step).backward()
    if clip:
        nn.utils.clip_grad_norm_(
            [tensor for group in optimizer.param_groups for tensor in group["params"]], 0.5
        )
    optimizer.step()


def _by_module(module, step, rows=slice(None), optimizer="sgd", clip=False):
    images, labels = batch(SIZE)
    trained = OPTIMIZERS[optimizer]([*step.student.parameters(), *step.bridges.parameters()])
    for at in range(3):
        _step(at, trained, module, images[rows], labels[rows], clip)
    found = {f"s/{name}": tensor for name, tensor in step.student.named_parameters()}
    for column, bridges in step.bridges.items():
        found |= {f"{column}/{name}": tensor for name, tensor in bridges.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def _by_placement(mesh, placements, rows, transform=fcfd.gathered, optimizer="sgd", clip=False, teacher=True):
    _, _, nets = _networks()
    images, labels = batch(SIZE)
    params = {
        column: fcfd.spread(own, mesh, *placements) if teacher or column != "t" else own
        for column, own in nets.params.items()
    }
    columns = fcfd.Columns(
        {column: transform(own) for column, own in nets.stages.items()}, params, nets.buffers
    )

    def step(images, labels, at):
        paths = fcfd.draw(nets.crossings, 1, seed=0, step=at)
        return losses.fcfd(*columns, images, labels, paths=paths)[0]

    own = {
        f"{column}/{name}": tensor
        for column in params
        if column != "t"
        for name, tensor in params[column].items()
    }
    trained = OPTIMIZERS[optimizer]([*own.values()])
    for at in range(3):
        _step(at, trained, step, images[rows], labels[rows], clip)
    assert all(isinstance(tensor, DTensor) for tensor in own.values())
    return {name: tensor.full_tensor().detach() for name, tensor in own.items()}


CASES = {
    **{f"shards, {name}": {"placements": [Shard(0)], "optimizer": name} for name in OPTIMIZERS},
    "shards, clipped": {"placements": [Shard(0)], "optimizer": "adamw", "clip": True},
    "replicas": {"placements": [Replicate()]},
    "teacher whole": {"placements": [Shard(0)], "teacher": False},
    "checkpointed around": {
        "placements": [Shard(0)],
        "transform": lambda column: fcfd.checkpointed(fcfd.gathered(column)),
    },
    "checkpointed inside": {
        "placements": [Shard(0)],
        "transform": lambda column: fcfd.gathered(fcfd.checkpointed(column)),
    },
}


def _batch_statistics(transform=lambda column: column, rows=slice(None), how="backward"):
    """Gradients and new statistics of one step in which student and bridges normalise by the batch."""
    _, _, nets = pair()
    images, labels = batch(SIZE)
    stages = {column: transform(own) for column, own in nets.stages.items()}

    def loss(own):
        columns = stages, nets.params | own, nets.buffers
        value, aux = losses.fcfd(*columns, images[rows], labels[rows], paths=nets.crossings[:2])
        return value, {column: aux.buffers[column] for column in own}

    own = {column: nets.params[column] for column in ("s", *nets.bridges)}
    if how == "func.grad":
        gradient, written = torch.func.grad(loss, has_aux=True)(own)
    else:
        run = torch.compile(loss, fullgraph=True, backend="aot_eager") if how == "compiled" else loss
        value, written = run(own)
        leaves = [tensor for tensors in own.values() for tensor in tensors.values()]
        found = iter(torch.autograd.grad(value, leaves, materialize_grads=True))
        gradient = {column: {name: next(found) for name in tensors} for column, tensors in own.items()}
    return {
        f"{kind}/{column}/{name}": tensor.detach()
        for kind, columns in (("gradient", gradient), ("statistic", written))
        for column, tensors in columns.items()
        for name, tensor in tensors.items()
    }


def _synchronised(rows, how):
    found = _batch_statistics(fcfd.synchronised, rows, how)
    for name, tensor in found.items():
        if name.startswith("gradient/"):
            distributed.all_reduce(tensor)
            tensor /= distributed.get_world_size()
    return found


def _alone(case):
    kept = {key: case[key] for key in ("optimizer", "clip") if key in case}
    step = Step()
    return _by_module(step, step, **kept)


def _of_two(rank, port, results):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rows = slice(2 * rank, 2 * rank + 2)
    found = {}
    step = Step()
    wrapped = nn.parallel.DistributedDataParallel(step, find_unused_parameters=True)
    found["ddp"] = _by_module(wrapped, step, rows)
    mesh = init_device_mesh("cpu", (2,))
    for name, case in CASES.items():
        found[name] = _by_placement(mesh, rows=rows, **case)
    for how in HOWS:
        found[how] = _synchronised(rows, how)
    results[rank] = found
    distributed.destroy_process_group()


def _of_four(rank, port, results):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    rows = slice(rank, rank + 1)
    square = init_device_mesh("cpu", (2, 2))
    results[rank] = {"hsdp": _by_placement(square, [Replicate(), Shard(0)], rows)}
    distributed.destroy_process_group()


@cache
def _run(function, count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        spawn(function, (port, results), nprocs=count)
        return [results[rank] for rank in range(count)]


def _assert_equal(found, expected, others):
    start = Step()
    moved = [
        name
        for name, tensor in expected.items()
        if name.startswith("s/") and not torch.equal(tensor, start.student.get_parameter(name[2:]))
    ]
    assert len(moved) > 10
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12, msg=name)
        assert all(torch.equal(found[name], other[name]) for other in others), name


def test_ddp_around_the_step_equals_one_process():
    first, second = _run(_of_two, 2)
    _assert_equal(first["ddp"], _alone({}), [second["ddp"]])


@pytest.mark.parametrize("name", CASES)
def test_placements_equal_one_process(name):
    first, second = _run(_of_two, 2)
    _assert_equal(first[name], _alone(CASES[name]), [second[name]])


@pytest.mark.parametrize("how", HOWS)
def test_synchronised_statistics_equal_those_of_one_process(how):
    first, second = _run(_of_two, 2)
    expected = _batch_statistics()
    assert first[how].keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(first[how][name], tensor, rtol=1e-10, atol=1e-12, msg=name)
        assert torch.equal(first[how][name], second[how][name])
    apart = _batch_statistics(rows=slice(0, 2))
    assert any(not torch.allclose(apart[name], tensor) for name, tensor in expected.items())


def test_synchronised_wants_a_process_group():
    _, _, nets = pair()
    (run, *_) = fcfd.synchronised(nets.stages["s"])
    with pytest.raises(ValueError, match=r"synchronised: there is no process group\. Call torch.distributed"):
        run(nets.params["s"], nets.buffers["s"], batch()[0])


def test_shards_of_replicas_equal_one_process():
    first, *others = _run(_of_four, 4)
    _assert_equal(first["hsdp"], _alone({}), [other["hsdp"] for other in others])
