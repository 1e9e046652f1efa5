"""The training steps whose values the authors' code gave, as this library takes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

import fcfd
from fcfd import losses
from fcfd.stages import Column

from .parity import DATA, fill, ints, t
from .zoo import NETWORKS

KEPT = tuple(sorted((DATA / "steps").glob("*.json")))
"""The files of the steps that the repository has copies of."""


class Step(NamedTuple):
    """One step before its backward pass."""

    case: dict[str, Any]
    """What the file says; `expected` holds the authors' values."""
    networks: dict[str, nn.Module]
    """The teacher `t` and the student `s`."""
    nets: fcfd.Linked
    loss: Tensor
    aux: fcfd.Aux


def taken(
    path: Path, device: str = "cpu", change: Callable[[Column], Column] = lambda stages: stages
) -> Step:
    """Build the networks of a file in float64, fill them with its values, and compute the loss.

    Args:
        path: The file.
        device: Where.
        change: A transform of the teacher's column.
    """
    case = json.loads(path.read_text())
    pixels = case.get("pixels", 32)
    images = t(f"{case['id']}/images", [case["batch"], 3, pixels, pixels]).to(device)
    labels = ints(f"{case['id']}/labels", [case["batch"]], case["num_classes"]).to(device)
    networks, cut = {}, {}
    for letter, role in (("t", "teacher"), ("s", "student")):
        build, at = NETWORKS[case[role]]
        model = build(num_classes=case["num_classes"]).double()
        model.load_state_dict(fill(model.state_dict(), role))
        networks[letter] = model.to(device).train(role == "student" or case["teacher_mode"] == "train")
        cut[letter] = fcfd.split(networks[letter], at=list(at), example=images)
    nets = fcfd.link(cut, example=images, first=2)
    for column, modules in nets.bridges.items():
        assert isinstance(modules, nn.ModuleDict)
        for depth, module in modules.items():
            module.load_state_dict(fill(module.state_dict(), f"{column}/{depth}"))
    loss, aux = losses.fcfd(
        {**nets.stages, "t": change(nets.stages["t"])},
        nets.params,
        nets.buffers,
        images,
        labels,
        paths=[path + path[-1] for path in case["paths"]],
        temperature=case["temperature"],
        feature_weight=case["feature_weight"] * case["warmup"],
        path_weight=case["path_weight"],
    )
    return Step(case, dict(networks), nets, loss, aux)
