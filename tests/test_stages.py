"""Stages: a module as a pure function, and the one function that writes."""

import pytest
import torch
from torch import nn

import fcfd

from .purity import assert_unchanged, snapshot


def _dicts(module: nn.Module, prefix: str = ""):
    params = {prefix + name: tensor for name, tensor in module.named_parameters()}
    buffers = {prefix + name: tensor for name, tensor in module.named_buffers()}
    return params, buffers


def test_statistics_come_back_and_the_module_keeps_its_own():
    norm = nn.BatchNorm1d(3)
    twin = nn.BatchNorm1d(3)
    params, buffers = _dicts(norm, "norm.")
    x = torch.randn(5, 3)
    before = snapshot(norm, params, buffers, x)
    y, new = fcfd.stage(norm, "norm.")(params, buffers, x)
    assert_unchanged(before, norm, params, buffers, x)
    torch.testing.assert_close(y, twin(x))
    for name, tensor in twin.named_buffers():
        torch.testing.assert_close(new["norm." + name], tensor)


def test_a_stage_follows_its_modules_mode():
    norm = nn.BatchNorm1d(3)
    run = fcfd.stage(norm)
    params, buffers = _dicts(norm)
    x = torch.randn(5, 3) + 1
    trained = run(params, buffers, x)[0]
    norm.eval()
    evaluated, new = run(params, buffers, x)
    torch.testing.assert_close(evaluated, norm(x))
    assert not torch.allclose(trained, evaluated)
    for name, tensor in buffers.items():
        assert torch.equal(new[name], tensor)


def test_an_in_place_module_does_not_touch_its_input():
    relu = nn.ReLU(inplace=True)
    x = torch.randn(4)
    before = snapshot(x)
    y, _ = fcfd.stage(relu)({}, {}, x)
    assert_unchanged(before, x)
    assert torch.equal(y, x.clamp(min=0))


def test_a_stage_reads_its_entries_and_ignores_the_rest():
    layer = nn.Linear(2, 2)
    params, _ = _dicts(layer, "a.")
    y, _ = fcfd.stage(layer, "a.")(params | {"b.weight": torch.zeros(1)}, {}, torch.ones(1, 2))
    assert torch.equal(y, layer(torch.ones(1, 2)))


def test_a_missing_entry_is_named():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"stage: params lacks 'a\.weight' and 1 more\. Pass the network's"):
        fcfd.stage(layer, "a.")({}, {}, torch.ones(1, 2))
    params, buffers = _dicts(nn.BatchNorm1d(2))
    del buffers["running_var"]
    with pytest.raises(ValueError, match=r"stage: buffers lacks 'running_var'\."):
        fcfd.stage(nn.BatchNorm1d(2))(params, buffers, torch.ones(3, 2))


def test_tied_weights_are_read_under_their_first_name():
    tied = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))
    tied[1].weight = tied[2].weight = tied[0].weight
    assert [name for name, _ in tied.named_parameters()] == ["0.weight"]
    x = torch.randn(2, 3)
    assert torch.equal(fcfd.stage(tied)({"0.weight": 2 * torch.eye(3)}, {}, x)[0], 8 * x)


def test_frozen_detaches_and_shares_memory():
    layer = nn.Linear(2, 2)
    params = dict(layer.named_parameters())
    frozen = fcfd.frozen(params)
    assert all(not tensor.requires_grad for tensor in frozen.values())
    assert all(tensor.requires_grad for tensor in params.values())
    assert frozen["weight"].data_ptr() == params["weight"].data_ptr()


def test_write_buffers_writes_in_place():
    norm = nn.BatchNorm1d(2)
    mean = norm.running_mean
    fcfd.write_buffers_(norm, {"running_mean": torch.ones(2)})
    assert norm.running_mean is mean
    assert mean.tolist() == [1.0, 1.0]


def test_write_buffers_refuses_before_it_writes():
    norm = nn.BatchNorm1d(2)
    new = {"running_mean": torch.ones(2), "running_var": torch.ones(3)}
    with pytest.raises(
        ValueError, match=r"write_buffers_: buffer 'running_var' is \[2\], the new value \[3\]"
    ):
        fcfd.write_buffers_(norm, new)
    with pytest.raises(ValueError, match="write_buffers_: BatchNorm1d has no buffer 'mean'"):
        fcfd.write_buffers_(norm, {"running_mean": torch.ones(2), "mean": torch.ones(2)})
    assert norm.running_mean.tolist() == [0.0, 0.0]


# Averages


def test_an_average_moves_towards_the_new_and_changes_nothing():
    old = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    new = {"w": torch.tensor([1.0, 1.0], requires_grad=True), "n": torch.tensor(7)}
    before = {name: tensor.clone() for name, tensor in old.items()}
    found = fcfd.ema(old, new, decay=0.9)
    torch.testing.assert_close(found["w"], torch.tensor([0.1, 1.9]))
    assert found["n"] == 7
    assert found["n"] is not new["n"]
    assert all(torch.equal(old[name], before[name]) for name in old)
    assert not found["w"].requires_grad
    torch.testing.assert_close(fcfd.ema(old, new, decay=1.0)["w"], old["w"])
    torch.testing.assert_close(fcfd.ema(old, new, decay=0.0)["w"], new["w"].detach())


def test_an_average_keeps_its_own_precision():
    found = fcfd.ema({"w": torch.zeros(1)}, {"w": torch.ones(1, dtype=torch.bfloat16)}, decay=0.999)
    torch.testing.assert_close(found["w"], torch.tensor([0.001]))


def test_many_steps_are_the_average_of_torch():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    multi = torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)
    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=multi)
    ours = fcfd.frozen({name: tensor.clone() for name, tensor in model.named_parameters()})
    theirs.update_parameters(model)
    for _ in range(3):
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
        theirs.update_parameters(model)
        ours = fcfd.ema(ours, dict(model.named_parameters()), decay=0.7)
    for name, tensor in theirs.module.named_parameters():
        torch.testing.assert_close(ours[name], tensor.detach())


@pytest.mark.parametrize(
    "average, new, decay, text",
    [
        ({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, 0.9, "only one of average and new has a, b"),
        (
            {"a": torch.zeros(1)},
            {"a": torch.zeros(2)},
            0.9,
            r"average\['a'\] \[1\] and new\['a'\] \[2\] must",
        ),
        ({"a": torch.zeros(1)}, {"a": torch.zeros(1)}, 1.1, "decay 1.1 must be at least 0 and at most 1"),
        ({"a": torch.zeros(1)}, {"a": 1.0}, 0.9, r"new\['a'\] is of type float"),
        ([torch.zeros(1)], {"a": torch.zeros(1)}, 0.9, "average is of type list"),
    ],
)
def test_averages_of_unlike_networks_are_refused(average, new, decay, text):
    with pytest.raises((TypeError, ValueError), match=f"^ema: {text}"):
        fcfd.ema(average, new, decay=decay)
