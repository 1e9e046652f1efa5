"""Columns that read tensors in another type, on another device, or from shards."""

import gc
import weakref

import pytest
import torch
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import fcfd
from fcfd import losses, placement
from fcfd._reading import Reading
from fcfd.bridging import _fitted
from fcfd.placement import _full

from .many import processes
from .nets import batch, pair
from .purity import assert_unchanged, snapshot


def _seen(params, buffers, x):
    """A stage that says what it read."""
    return {"w": params["w"], "n": buffers["n"], "mask": buffers["Mask"], "x": x}, {"n": buffers["n"] + 1}


def _read(column):
    (run,) = column
    dicts = (
        {"w": torch.ones(2), "unread": torch.ones(2)},
        {"n": torch.tensor(1), "Mask": torch.ones(2, dtype=torch.bool)},
    )
    return run(*dicts, {"image": torch.ones(2, 3), "label": torch.tensor([1, 2])})


# Types


def test_cast_reads_floats_in_the_type_and_leaves_the_rest():
    y, new = _read(fcfd.cast((_seen,), torch.bfloat16))
    assert y["w"].dtype == y["x"]["image"].dtype == torch.bfloat16
    assert y["n"].dtype == y["x"]["label"].dtype == torch.int64
    assert y["mask"].dtype == torch.bool
    assert new["n"] == 2
    assert new["n"].dtype == torch.int64


def test_new_buffers_have_the_type_of_the_old():
    norm = nn.BatchNorm1d(3)
    (run,) = fcfd.cast((fcfd.stage(norm),), torch.bfloat16)
    y, new = run(dict(norm.named_parameters()), dict(norm.named_buffers()), torch.randn(4, 3))
    assert y.dtype == torch.bfloat16
    assert {name: tensor.dtype for name, tensor in new.items()} == {
        name: tensor.dtype for name, tensor in norm.named_buffers()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_network_computes_what_the_module_in_that_type_does(dtype):
    teacher, _, nets = pair(dtype=torch.float32)
    images, _ = batch(dtype=torch.float32)
    stages = {"t": fcfd.cast(nets.stages["t"], dtype)}
    with torch.no_grad():
        values, _ = fcfd.walk(fcfd.plan(("tttt",)), stages, nets.params, nets.buffers, {"": images})
        x = images.to(dtype)
        for entry in teacher.to(dtype):
            x = entry(x)
    assert torch.equal(values["tttt"], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_with_a_teacher_in_half_precision_trains_float32_bridges(dtype):
    teacher, student, _ = pair(dtype=torch.float32)
    images, labels = batch(dtype=torch.float32)
    networks = {"t": fcfd.split(list(teacher)), "s": fcfd.split(list(student))}
    networks["t"] = networks["t"]._replace(stages=fcfd.cast(networks["t"].stages, dtype))
    nets = fcfd.link(networks, example=images)
    assert {tensor.dtype for tensor in nets.bridges.parameters()} == {torch.float32}
    loss, aux = losses.fcfd(*nets.columns, images, labels, paths=nets.crossings)
    loss.backward()
    assert aux.values["tt"].dtype == aux.values["ss>t"].dtype == dtype
    assert aux.values["ts"].dtype == loss.dtype == torch.float32
    for tensor in (*student.parameters(), *nets.bridges.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.dtype == torch.float32
    assert teacher[0][0].weight.dtype == torch.float32


def test_a_cast_network_stays_in_its_type_inside_autocast():
    _, _, nets = pair(dtype=torch.float32)
    stages = {"t": fcfd.cast(nets.stages["t"], torch.bfloat16)}
    given = nets.params, nets.buffers, {"": batch(dtype=torch.float32)[0]}
    expected, _ = fcfd.walk(fcfd.plan(("tttt",)), stages, *given)
    with torch.autocast("cpu", torch.float16):
        found, _ = fcfd.walk(fcfd.plan(("tttt",)), stages, *given)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found["tttt"], expected["tttt"])


def test_cast_composes_with_checkpointed_compiled_and_func_grad():
    _, _, nets = pair(dtype=torch.float32)
    images, labels = batch(dtype=torch.float32)

    def loss(params, change):
        stages = nets.stages | {"t": change(nets.stages["t"])}
        return losses.fcfd(stages, params, nets.buffers, images, labels, paths=nets.crossings)[0]

    def cast(column):
        return fcfd.cast(column, torch.float64)

    def gradient(change):
        params = {
            column: {name: tensor.detach().clone().requires_grad_() for name, tensor in own.items()}
            for column, own in nets.params.items()
        }
        loss(params, change).backward()
        return params["s"]["0.0.weight"].grad

    nets = nets._replace(stages=nets.stages | {"t>s": fcfd.cast(nets.stages["t>s"], torch.float32)})
    expected = gradient(cast)
    for change in (
        lambda column: fcfd.checkpointed(cast(column)),
        lambda column: cast(fcfd.checkpointed(column)),
        lambda column: cast(fcfd.compiled(column, backend="aot_eager")),
        lambda column: fcfd.compiled(cast(column), backend="aot_eager"),
    ):
        torch.testing.assert_close(gradient(change), expected)
    by_func = torch.func.grad(lambda own: loss(nets.params | {"s": own}, cast))(nets.params["s"])
    torch.testing.assert_close(by_func["0.0.weight"], expected)


# Devices


def test_placed_moves_the_input_and_what_the_batch_names():
    y, _ = _read(fcfd.placed((lambda *dicts: (_seen(*dicts)[0], {}),), "meta"))
    assert {leaf.device.type for leaf in (y["w"], y["n"], y["mask"], *y["x"].values())} == {"meta"}


WHERE = {"s": "cuda:0", "t>s": "cuda:0", "t": "cuda:1", "s>t": "cuda:1"}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@torch.no_grad()  # autograd wants a real device
def test_a_step_over_two_devices():
    networks = {
        "t": fcfd.split([nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)]),
        "s": fcfd.split([nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 3)]),
    }
    bridges = {"s>t": nn.Linear(4, 5), "ss>t": nn.Linear(3, 4), "t>s": nn.Linear(5, 4)}
    nets = fcfd.link(networks, example=torch.randn(4, 6), bridges=bridges)
    columns = fcfd.Columns(
        {column: fcfd.placed(own, WHERE[column]) for column, own in nets.stages.items()},
        *(
            {
                column: {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()}
                for column, own in dicts.items()
            }
            for dicts in (nets.params, nets.buffers)
        ),
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        params, buffers = (
            {
                column: {
                    name: torch.empty(size, dtype=dtype, device=WHERE[column])
                    for name, (size, dtype) in own.items()
                }
                for column, own in dicts.items()
            }
            for dicts in (columns.params, columns.buffers)
        )
        images = torch.empty(4, 6, device="cuda:0")
        labels = torch.empty(4, dtype=torch.int64, device="cuda:0")
        loss, aux = losses.fcfd(columns.stages, params, buffers, images, labels, paths=nets.crossings)
        assert str(loss.device) == "cuda:0"
        for path, value in aux.values.items():
            if path.islower():
                assert str(value.device) == WHERE[fcfd.step(path).column], path
        with pytest.raises(ValueError, match="walk: path '.*': .* device"):
            losses.fcfd(nets.stages, params, buffers, images, labels, paths=nets.crossings)


def test_a_linked_bridge_moves_what_it_reads_to_where_it_leads():
    def double(params, buffers, x):
        return 2 * x, {}

    here, there = torch.ones(2, 3), torch.ones(2, 4, device="meta")
    y, _ = _fitted(double, here, there)({}, {}, here)
    assert y.is_meta
    assert _fitted(double, here, here) is double


def test_a_converted_entry_is_read_alone_and_lives_no_longer_than_its_reader():
    made = []

    def convert(tensor):
        made.append(weakref.ref(tensor := tensor.clone()))
        return tensor

    read = Reading({"a": torch.ones(1), "b": torch.ones(1)}, convert)
    assert "a" in read
    assert "c" not in read
    assert [*read] == ["a", "b"]
    assert len(read) == 2
    assert not made
    assert read["a"] == 1
    gc.collect()
    assert [one() for one in made] == [None]


@pytest.mark.parametrize("transform", [lambda c: fcfd.cast(c, torch.float64), fcfd.gathered])
def test_nothing_given_is_changed(transform):
    teacher, student, nets = pair(dtype=torch.float32)
    images, labels = batch(dtype=torch.float32)
    before = snapshot(teacher, student, nets.bridges, nets.params, nets.buffers, images)
    stages = {column: transform(own) for column, own in nets.stages.items()}
    losses.fcfd(stages, nets.params, nets.buffers, images, labels, paths=nets.crossings)
    assert_unchanged(before, teacher, student, nets.bridges, nets.params, nets.buffers, images)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda c, n: fcfd.cast(n, torch.float16), "cast: stages is a Network; give one of its columns"),
        (lambda c, n: fcfd.cast(c, "half"), "cast: dtype is of type str; give a floating type of torch"),
        (lambda c, n: fcfd.cast(c, torch.int8), r"cast: dtype is torch.int8; give a floating type"),
        (lambda c, n: fcfd.placed(c, 0), "placed: device is of type int; give a device"),
        (lambda c, n: fcfd.gathered(n.params), "gathered: stages is of type dict; give a column"),
        (
            lambda c, n: fcfd.spread(n.params, None, Shard(0)),
            "spread: mesh is of type NoneType; give",
        ),
    ],
)
def test_errors(call, text):
    network = fcfd.split([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises((TypeError, ValueError), match=text):
        call(network.stages, network)


def test_an_entry_that_is_read_twice_is_converted_once():
    read = Reading({"a": torch.ones(1, requires_grad=True)}, torch.clone)
    first = read["a"]
    assert read["a"] is first
    with torch.no_grad():
        assert not read["a"].requires_grad
    assert read["a"] is first


def _deferred(transform, place=dict):
    """A loss of hidden states and a head, and its gradient, of a network that is converted around."""
    *_, nets = pair(dtype=torch.float32)
    images, labels = batch(dtype=torch.float32)
    params = {"s": place(nets.params["s"])}
    stages = {"s": transform(fcfd.deferred(nets.stages["s"], "3.2.weight"))}
    values = fcfd.walk(fcfd.plan(("ssss",)), stages, params, nets.buffers, {"": images})[0]
    assert isinstance(values["ssss"], losses.Logits)
    loss = losses.chunked(losses.cross_entropy)(values["ssss"], labels).mean()
    found = torch.autograd.grad(loss, [*params["s"].values()])
    return loss, [one.full_tensor() if isinstance(one, DTensor) else one for one in found]


GATHERED = {
    "around": lambda column: fcfd.checkpointed(fcfd.gathered(column)),
    "inside": lambda column: fcfd.gathered(fcfd.checkpointed(column)),
}


@pytest.mark.parametrize("transform", [fcfd.gathered, *GATHERED.values()], ids=["gathered", *GATHERED])
def test_a_deferred_column_is_gathered_from_around(transform, tmp_path):
    expected = _deferred(lambda column: column)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        found = _deferred(transform, lambda own: fcfd.spread(own, mesh, Shard(0)))
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close(found, expected)


def test_a_deferred_column_is_cast_from_around():
    expected = _deferred(lambda column: column)
    found = _deferred(lambda column: fcfd.cast(column, torch.float64))
    torch.testing.assert_close(found, expected, check_dtype=False)


def test_a_deferred_column_is_not_converted_from_within():
    *_, nets = pair(dtype=torch.float32)
    stages = {"s": fcfd.deferred(fcfd.cast(nets.stages["s"], torch.bfloat16), "3.2.weight")}
    images, _ = batch(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"no `linear` of '3.2.weight'. What changes parameters goes around"):
        fcfd.walk(fcfd.plan(("ssss",)), stages, nets.params, nets.buffers, {"": images})


# What is gathered, and lives


def _alive(transform):
    """Of a step of 64 processes: the parameters that were whole at any time, and after the forward pass."""
    with processes(64):
        *_, nets = pair(dtype=torch.float32)
        mesh = init_device_mesh("cpu", (64,))
        names = {}
        params = {column: fcfd.spread(own, mesh, Shard(0)) for column, own in nets.params.items()}
        for column, own in params.items():
            for name, tensor in own.items():
                names[id(tensor)] = column, name.split(".")[0]
        whole, together = [], []

        def noted(tensor):
            full = _full(tensor)
            whole.append((names[id(tensor)], weakref.ref(full)))
            together.append({stage for stage, one in whole if one() is not None})
            return full

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(placement, "_full", noted)
            stages = {column: transform(own) for column, own in nets.stages.items()}
            images, labels = batch(dtype=torch.float32)
            loss, aux = losses.fcfd(stages, params, nets.buffers, images, labels, paths=("sstt", "ttss"))
            gc.collect()
            after = [stage for stage, one in whole if one() is not None]
            loss.backward()
    assert len({stage for stage, _ in whole}) > 10
    assert aux.parts
    return together, after


@pytest.mark.parametrize("name", GATHERED)
def test_one_stage_is_whole_at_a_time_and_none_between_the_passes(name):
    together, after = _alive(GATHERED[name])
    assert max(map(len, together)) == 1
    assert not after


def test_without_a_checkpoint_gathered_parameters_live_until_the_backward_pass():
    together, after = _alive(fcfd.gathered)
    assert max(map(len, together)) > 5
    assert after
