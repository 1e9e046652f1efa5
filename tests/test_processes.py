"""Several processes that each see a part of a batch train as one process that sees all of it."""

import socket
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
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


def _averaged(found):
    for name, tensor in found.items():
        if name.startswith("gradient/"):
            distributed.all_reduce(tensor)
            tensor /= distributed.get_world_size()
    return found


def _several(rows=slice(None), transform=lambda column: column):
    """Gradients and statistics of two BatchNorms side by side, each by a batch of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norms = [nn.BatchNorm1d(3).double() for _ in range(2)]
        for norm in norms:
            nn.init.normal_(norm.weight)
        x = torch.randn(2, 4, 3, dtype=torch.float64)
    (run,) = transform((fcfd.stage(norms[0]),))

    def loss(own, buffers, x):
        y, new = run(own, buffers, x)
        return y.sin().mean(), new

    stacks = torch.func.stack_module_state(norms)
    gradient, written = torch.vmap(torch.func.grad(loss, has_aux=True))(*stacks, x[:, rows])
    return {
        f"{kind}/{name}": tensor.detach()
        for kind, own in (("gradient", gradient), ("statistic", written))
        for name, tensor in own.items()
    }


# Tensor parallelism


def _in_parallel(mesh=None):
    """A step beside a teacher whose linear maps are parts of one, if there is a mesh."""

    def network(width):
        sizes = ((6, width), (width, width), (width, 5))
        return nn.Sequential(
            *(nn.Sequential(nn.Linear(a, 2 * width), nn.GELU(), nn.Linear(2 * width, b)) for a, b in sizes)
        )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher, student = network(8).double(), network(4).double()
        batch = torch.randn(4, 6, dtype=torch.float64), torch.arange(4)
        if mesh is not None:
            plan = {f"{at}.0": ColwiseParallel() for at in range(3)}
            plan |= {f"{at}.2": RowwiseParallel() for at in range(3)}
            parallelize_module(teacher, mesh, plan)
        torch.manual_seed(1)
        networks = {"t": fcfd.split(list(teacher)), "s": fcfd.split(list(student))}
        nets = fcfd.link(networks, example=batch[0])
    assert all(isinstance(tensor, DTensor) == (mesh is not None) for tensor in nets.params["t"].values())
    loss, _ = losses.fcfd(*nets.columns, *batch, paths=nets.crossings)
    loss.backward()
    own = [*student.named_parameters(), *nets.bridges.named_parameters()]
    return {"loss": loss.detach()} | {name: tensor.grad for name, tensor in own}


def _parallelized_too_late(mesh):
    linear = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network = fcfd.split(list(linear))
    parallelize_module(linear, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
    params = {"s": dict(linear.named_parameters())}
    try:
        fcfd.walk(fcfd.plan(("ss",)), {"s": network.stages}, params, {"s": {}}, {"": torch.ones(1, 4)})
    except ValueError as error:
        return str(error)


# A run that goes on in another layout


PAGE = Path(__file__).parents[1] / "docs" / "resume.md"


@cache
def _on_the_page():
    """How the page saves and loads shards."""
    block = PAGE.read_text().split("## Many processes")[1].split("```python\n")[1].split("store = ")[0]
    names = {"torch": torch, "dcp": dcp, "fcfd": fcfd}
    exec(block, names)
    return names["save_shards"], names["load_shards"]


def _goes_on(steps, rows=slice(None), mesh=None, placements=(), before=None, after=None):
    """Some steps by the statistics of the whole batch, after those of one checkpoint and into another."""
    save, load = _on_the_page()
    _, _, nets = pair()
    images, labels = batch(SIZE)
    params = dict(nets.params)
    stages = {column: fcfd.synchronised(own) for column, own in nets.stages.items()}
    if mesh is not None:
        params = {column: fcfd.spread(own, mesh, *placements) for column, own in params.items()}
        stages = {column: fcfd.gathered(own) for column, own in stages.items()}
    trained = ("s", *nets.bridges)
    own = {f"{column}/{name}": tensor for column in trained for name, tensor in params[column].items()}
    buffers = {column: dict(nets.buffers[column]) for column in trained}
    optimizer = torch.optim.AdamW([*own.values()], 0.01, eps=1e-3)  # nothing is made of rounding
    if before is not None:
        assert load(before, own, buffers, optimizer) == steps[0]
    for at in steps:
        columns = fcfd.Columns(stages, params, nets.buffers | buffers)
        paths = fcfd.draw(nets.crossings, 1, seed=0, step=at)
        loss, aux = losses.fcfd(*columns, images[rows], labels[rows], paths=paths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for column in trained:
            buffers[column] = aux.buffers[column]
    if after is not None:
        save(after, steps[-1] + 1, own, buffers, optimizer)
    return _flat(own, buffers, fcfd.slots(optimizer, own))


def _flat(own, buffers, slots):
    found = {f"weight/{name}": tensor for name, tensor in own.items()}
    for column, tensors in buffers.items():
        found |= {f"statistic/{column}/{name}": tensor for name, tensor in tensors.items()}
    for name, entries in slots.items():
        found |= {f"slot/{name}/{key}": tensor for key, tensor in entries.items()}
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in found.items()
    }


def _alone(case):
    kept = {key: case[key] for key in ("optimizer", "clip") if key in case}
    step = Step()
    return _by_module(step, step, **kept)


def _of_two(rank, port, folder, results):
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
        found[how] = _averaged(_batch_statistics(fcfd.synchronised, rows, how))
    found["tensor parallel"] = _in_parallel(mesh)
    found["too late"] = _parallelized_too_late(mesh)
    found["several"] = _averaged(_several(rows, fcfd.synchronised))
    found["first steps"] = _goes_on(range(2), rows, mesh, [Shard(0)], after=folder / "two")
    results[rank] = found
    distributed.destroy_process_group()


def _of_four(rank, port, folder, results):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    rows = slice(rank, rank + 1)
    square = init_device_mesh("cpu", (2, 2))
    found = {"hsdp": _by_placement(square, [Replicate(), Shard(0)], rows)}
    layout = square, [Replicate(), Shard(0)]
    found["next steps"] = _goes_on(range(2, 4), rows, *layout, before=folder / "two", after=folder / "four")
    results[rank] = found
    distributed.destroy_process_group()


@cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="fcfd-processes-")


@cache
def _two():
    return _run(_of_two, 2)


@cache
def _four():
    """They go on where the two stopped."""
    _two()
    return _run(_of_four, 4)


def _run(function, count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        spawn(function, (port, Path(_folder().name), results), nprocs=count)
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
    first, second = _two()
    _assert_equal(first["ddp"], _alone({}), [second["ddp"]])


@pytest.mark.parametrize("name", CASES)
def test_placements_equal_one_process(name):
    first, second = _two()
    _assert_equal(first[name], _alone(CASES[name]), [second[name]])


@pytest.mark.parametrize("how", HOWS)
def test_synchronised_statistics_equal_those_of_one_process(how):
    first, second = _two()
    expected = _batch_statistics()
    assert first[how].keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(first[how][name], tensor, rtol=1e-10, atol=1e-12, msg=name)
        assert torch.equal(first[how][name], second[how][name])
    apart = _batch_statistics(rows=slice(0, 2))
    assert any(not torch.allclose(apart[name], tensor) for name, tensor in expected.items())


def test_tensor_parallel_teachers_are_split_as_they_are():
    expected = _in_parallel()
    for found in (own["tensor parallel"] for own in _two()):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12, msg=name)


def test_a_model_that_is_parallelized_after_its_split_does_not_run():
    for found in (own["too late"] for own in _two()):
        assert "walk: path 's': entry 0 of column 's' cannot run on" in found
        assert "got mixed torch.Tensor and DTensor" in found


def test_synchronised_statistics_of_several_students_under_vmap():
    expected = _several()
    for found in (own["several"] for own in _two()):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12, msg=name)


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("inner", [lambda f: f, torch.func.grad], ids=["values", "gradients"])
def test_synchronised_statistics_are_not_those_of_each_example(inner, one_process):
    norm = nn.BatchNorm1d(3)
    (run,) = fcfd.synchronised((fcfd.stage(norm),))
    params, buffers = dict(norm.named_parameters()), dict(norm.named_buffers())
    each = torch.vmap(inner(lambda x: run(params, buffers, x[None])[0].sum()))
    with pytest.raises(ValueError, match=r"synchronised: torch.vmap goes over the input .* not over its run"):
        each(torch.randn(4, 3))
    norm.eval()
    assert each(torch.randn(4, 3)).shape[0] == 4


def test_synchronised_wants_a_process_group():
    _, _, nets = pair()
    (run, *_) = fcfd.synchronised(nets.stages["s"])
    with pytest.raises(ValueError, match=r"synchronised: there is no process group\. Call torch.distributed"):
        run(nets.params["s"], nets.buffers["s"], batch()[0])


def test_shards_of_replicas_equal_one_process():
    first, *others = _four()
    _assert_equal(first["hsdp"], _alone({}), [other["hsdp"] for other in others])


def test_a_run_goes_on_with_other_numbers_of_processes(one_process):
    """Two processes with shards, then four with shards of replicas, then one with whole tensors."""
    parts = [[own["first steps"] for own in _two()], [own["next steps"] for own in _four()]]
    parts.append([_goes_on(range(4, 6), before=Path(_folder().name) / "four")])
    for count, (first, *others) in zip((2, 4, 6), parts, strict=True):
        expected = _goes_on(range(count))
        assert first.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(first[name], tensor, rtol=1e-10, atol=1e-12, msg=name)
            assert all(torch.equal(first[name], other[name]) for other in others), name
    started = {name.rpartition("/")[0] for name in parts[0][0] if name.startswith("slot/")}
    assert len(started) < sum(name.startswith("weight/") for name in parts[0][0])
    forgetful = _goes_on(range(4, 6))
    assert any(not torch.allclose(forgetful[name], tensor) for name, tensor in first.items())
