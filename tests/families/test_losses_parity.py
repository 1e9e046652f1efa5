"""Values and gradients of the losses against those of the published implementations, at relative 1e-8.

The cases are data: every `losses*.json` in the folder of reference values, and a small copy beside this file.
Any further case of a known name is read the same way, whatever its shapes, scales and hyper-parameters.
A name that nobody taught this library is skipped, and listed in one failure.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.parity import DATA, NO_PARITY, assert_fingerprint, ints, parity_folder, t

from .adapters import ADAPTERS, PAPER, Adapters

RTOL, ATOL = 1e-8, 1e-14


def cases(folder: Path | None) -> list[dict[str, Any]]:
    files = sorted(folder.glob("losses*.json")) if folder else []
    return [case for file in files for case in json.loads(file.read_text())]


def runs(case: dict[str, Any], key: str) -> Any:
    """A case as a test, or as a skipped one where its loss is unknown here."""
    unknown = f"{case['loss']} has no adapter in tests/families/adapters"
    marks = () if case["loss"] in ADAPTERS else pytest.mark.skip(reason=unknown)
    return pytest.param(case, id=key, marks=marks)


REFERENCE, COPY = cases(parity_folder()), cases(DATA)
EVERY = [
    *(runs(case, case["id"]) for case in REFERENCE),
    *(runs(case, "copy:" + case["id"]) for case in COPY),
]


def tensor(recipe: dict[str, Any]) -> Tensor:
    """The deterministic input that a recipe describes."""
    key, shape = recipe["key"], recipe["shape"]
    if recipe.get("kind") == "mask":
        uniform = np.random.RandomState(zlib.crc32(key.encode())).random_sample(shape)
        return torch.from_numpy(np.asarray(uniform < recipe["keep"], dtype=np.float64))
    if "classes" in recipe:
        return ints(key, shape, recipe["classes"])
    drawn = t(key, shape) * recipe["scale"] + recipe["shift"]
    if "round" in recipe:
        drawn = torch.from_numpy(np.round(drawn.numpy(), recipe["round"]))
    for index, value in recipe.get("set", ()):
        drawn[tuple(index)] = float(value)
    return drawn


def check(case: dict[str, Any], adapters: Adapters, expected: dict[str, Any]) -> None:
    """Compare the value, the tensor results and every gradient of one case."""
    inputs = {name: tensor(recipe) for name, recipe in case["inputs"].items()}
    for name in expected["grad"]:
        inputs[name].requires_grad_()
    result = adapters[case["loss"]](inputs, case["hyper"])
    outputs = dict(result) if isinstance(result, dict) else {"value": result}
    value = outputs.pop("value")
    if "value_is" in case:
        outputs["out"], value = value, (value * t(f"probe/{case['id']}/out", value.shape)).sum()

    assert value.shape == (), f"the value of {case['id']} has shape {list(value.shape)}"
    scale = max(abs(expected["value"]), *(o["l2"] for o in expected.get("outputs", {}).values()), 0.0)
    assert abs(value.item() - expected["value"]) <= RTOL * scale + ATOL
    for name, wanted in expected.get("outputs", {}).items():
        assert_fingerprint(outputs[name], f"{case['id']}/{name}", wanted, rtol=RTOL, atol=ATOL)
    check_gradients(case, inputs, value, expected["grad"])


def check_gradients(
    case: dict[str, Any], inputs: dict[str, Tensor], value: Tensor, expected: dict[str, dict[str, float]]
) -> None:
    """Compare the gradients; one that is zero in theory is measured by the size of the other ones."""
    names = list(expected)
    gradients = torch.autograd.grad(value, [inputs[name] for name in names]) if names else ()
    largest = max((expected[name]["l2"] for name in names), default=0.0)
    for name, gradient in zip(names, gradients, strict=True):
        vanishes = expected[name]["l2"] <= RTOL * largest
        atol = RTOL * largest + ATOL if vanishes else ATOL
        assert_fingerprint(gradient, case["inputs"][name]["key"], expected[name], rtol=RTOL, atol=atol)


@pytest.mark.parametrize("case", EVERY)
def test_the_published_value_and_gradient(case: dict[str, Any]) -> None:
    check(case, ADAPTERS, case["expected"])


@pytest.mark.parametrize("case", [case for case in EVERY if "expected_paper" in case.values[0]])
def test_the_papers_value_and_gradient(case: dict[str, Any]) -> None:
    check(case, {**ADAPTERS, **PAPER}, case["expected_paper"])


def test_the_folder_of_reference_values_was_read() -> None:
    if not REFERENCE:
        pytest.skip(NO_PARITY)
    unknown = {case["loss"] for case in REFERENCE} - set(ADAPTERS)
    assert not unknown, f"no adapter for {sorted(unknown)}"
