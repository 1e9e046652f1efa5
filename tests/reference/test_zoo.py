"""The reference networks: state dicts, stage outputs and logits, against recorded values."""

import json
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from fcfd.splitting import split
from reference import torchvision_cpu
from reference.parity import DATA, NO_PARITY, assert_fingerprint, fill, parity_folder, t
from reference.zoo import NETWORKS


def _entries():
    """Every recorded network: the copies kept here, and the folder's where there is one."""
    kept = {f"kept-{entry['name']}": entry for entry in json.loads((DATA / "zoo.json").read_text())}
    yield from (pytest.param(entry, id=name) for name, entry in kept.items())
    folder = parity_folder()
    if folder is None or not (folder / "zoo.json").is_file():
        yield pytest.param(None, id="zoo", marks=pytest.mark.skip(reason=NO_PARITY))
    else:
        recorded = json.loads((folder / "zoo.json").read_text())
        yield from (pytest.param(entry, id=entry["name"]) for entry in recorded)


ENTRIES = tuple(_entries())


def _filled(entry) -> nn.Module:
    model = NETWORKS[entry["name"]].build(num_classes=entry["num_classes"]).double().eval()
    model.load_state_dict(fill(model.state_dict(), f"zoo/{entry['name']}"))
    return model


@pytest.mark.parametrize("entry", ENTRIES)
def test_state_dict_is_the_published_one(entry):
    model = NETWORKS[entry["name"]].build(num_classes=entry["num_classes"])
    state = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(state.items()) == list(entry["state_dict"].items())
    assert sum(parameter.numel() for parameter in model.parameters()) == entry["parameters"]


@pytest.mark.parametrize("entry", ENTRIES)
@torch.no_grad()
def test_stage_outputs_and_logits(entry):
    name = entry["name"]
    value = t("zoo/images", entry["input"])
    network = split(_filled(entry), at=NETWORKS[name].at, example=value)
    *stages, head = network.stages
    assert len(stages) == len(entry["stages"])
    for index, (stage, expected) in enumerate(zip(stages, entry["stages"], strict=True)):
        value, _ = stage(network.params, network.buffers, value)
        assert_fingerprint(value, f"zoo/{name}/stage{index}", expected)
    logits, _ = head(network.params, network.buffers, value)
    assert_fingerprint(logits, f"zoo/{name}/logits", entry["logits"])


@pytest.mark.parametrize("name", NETWORKS)
def test_factories_carry_the_names(name):
    assert NETWORKS[name].build.__name__ == name


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_nothing_but_the_boundary_flows_on(name):
    """With a boundary's output blanked, two different images give the same logits."""
    build, at = NETWORKS[name]
    model = build(num_classes=10)
    images = torch.randn(2, 3, 64, 64) if name.endswith("IN") else torch.randn(2, 3, 32, 32)
    for boundary in at:
        hook = model.get_submodule(boundary).register_forward_hook(lambda _m, _x, y: torch.zeros_like(y))
        blank, again = model(images)
        hook.remove()
        assert torch.equal(blank, again), boundary
    one, other = model(images)
    assert not torch.equal(one, other)


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_imagenet_resnets_are_torchvisions(name):
    torchvision_cpu.prepare()
    from torchvision import models

    theirs = getattr(models, name)(num_classes=7).eval()
    ours = NETWORKS[f"{name}IN"].build(num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))
