"""Modules whose tensors or classes change after the split: refused, where dicts were read in silence."""

import copy
import pickle

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

import fcfd

X = torch.randn(4, 5)


def _by_list():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    return model, fcfd.split(list(model))


def _by_name():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    return model, fcfd.split(model, ["1"], example=X)


def _by_hand():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    return model, fcfd.split(list(model))._replace(stages=(fcfd.stage(model),))


every_way = pytest.mark.parametrize("make", [_by_list, _by_name, _by_hand])


def _run(network, params=None):
    path = "s" * len(network.stages)
    given = {"s": network.params if params is None else params}, {"s": network.buffers}
    return fcfd.walk(fcfd.plan((path,)), {"s": network.stages}, *given, {"": X})[0][path]


@every_way
def test_load_state_dict_with_assign_is_refused(make):
    model, network = make()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(
        ValueError, match=r"stage: '.*' is not the module's any more, .* load_state_dict\(assign"
    ):
        _run(network)


@every_way
def test_a_buffer_that_moved_is_refused(make):
    model, network = make()
    model[1].double()
    with pytest.raises(
        ValueError, match=r"is not the module's any more, .* as after \.to or load_state_dict"
    ):
        _run(network)


@every_way
def test_a_parameter_that_was_replaced_is_refused(make):
    model, network = make()
    model[2].bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="bias' is not the module's any more"):
        _run(network)


@every_way
def test_what_stays_is_read(make):
    model, network = make()
    expected = _run(network)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    model.to("cpu")
    model.requires_grad_(False)
    assert torch.equal(_run(network), expected)
    twice = copy.deepcopy(network)
    assert torch.equal(_run(twice), expected)
    assert torch.equal(_run(pickle.loads(pickle.dumps(network))), expected)


@every_way
def test_other_tensors_than_the_modules_may_be_given(make):
    model, network = make()
    other = {name: tensor.detach() + 1 for name, tensor in network.params.items()}
    expected = _run(network, other)
    model[2].bias = nn.Parameter(torch.zeros(3))
    assert torch.equal(_run(network, other), expected)


@every_way
def test_a_module_may_release_its_memory(make):
    model, network = make()
    model.eval()
    expected = _run(network)
    model.to("meta")
    assert torch.equal(_run(network), expected)


@every_way
def test_a_parametrisation_after_the_split_is_refused(make):
    model, network = make()
    nn.utils.parametrizations.weight_norm(model[2])
    with pytest.raises(ValueError, match=r"became a ParametrizedLinear after|2.weight' is not the module's"):
        _run(network)


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_fully_shard_is_refused_before_the_split_and_after(mesh):
    from torch.distributed.fsdp import fully_shard

    model, network = _by_name()
    fully_shard(model, mesh=mesh)
    with pytest.raises(
        ValueError, match=r"split: FSDPSequential is sharded by fully_shard, .* fcfd.spread and"
    ):
        fcfd.split(model, ["1"], example=X)
    with pytest.raises(ValueError, match=r"not the module's any more|became a FSDP"):
        _run(network)
