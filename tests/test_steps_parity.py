"""One training step of FCFD against the values of the authors' code: total, parts, gradients, statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fcfd
from reference.parity import NO_PARITY, assert_fingerprint, parity_folder
from reference.steps import KEPT, Step, taken


def _cases() -> list[Any]:
    folder = parity_folder()
    found = sorted(folder.glob("steps/*.json")) if folder else []
    outside = [pytest.param(path, id=path.stem) for path in found] or [
        pytest.param(None, id="steps", marks=pytest.mark.skip(reason=NO_PARITY))
    ]
    kept = [pytest.param(path, id=f"kept-{path.stem}") for path in KEPT]
    return outside + kept


def _close(found: float, wanted: float, name: str) -> None:
    assert abs(found - wanted) <= 1e-8 * abs(wanted) + 1e-10, f"{name}: {found!r}, not {wanted!r}"


def _keyed(column: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A column's tensors by the reference's keys: `student/conv1.weight`, `s>t/1/conv.weight`."""
    if column in ("s", "t"):
        role = {"s": "student", "t": "teacher"}[column]
        return {f"{role}/{name}": tensor for name, tensor in tensors.items()}
    return {f"{column}/{name.replace('.', '/', 1)}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("path", _cases())
def test_step(path: Path) -> None:
    _check(taken(path))


@pytest.mark.parametrize("path", _cases())
def test_step_with_a_lean_teacher(path: Path) -> None:
    _check(taken(path, change=fcfd.lean))


def _check(step: Step) -> None:
    case, networks, nets, loss, aux = step
    expected = case["expected"]
    loss.backward()

    _close(loss.item(), expected["total"], "total")
    # The reference leaves out the classifier's letter, which is the path's last.
    renamed = {f"kl/{path + path[-1]}": f"kl/{path}" for path in case["paths"]}
    parts = {renamed.get(name, name): part.item() for name, part in aux.parts.items()}
    assert parts.keys() == expected["parts"].keys()
    for name, wanted in expected["parts"].items():
        _close(parts[name], wanted, name)

    stages = len(nets.stages["s"])
    assert_fingerprint(aux.values["s" * stages], "logits/student", expected["student_logits"])
    assert_fingerprint(aux.values["t" * stages], "logits/teacher", expected["teacher_logits"])

    params = {
        key: tensor
        for column in nets.params
        if column != "t"
        for key, tensor in _keyed(column, nets.params[column]).items()
    }
    for key, wanted in expected["grads"].items():
        if wanted is None:
            # A bridge that no path can use is not built at all, which is as good as no gradient.
            assert key not in params or params[key].grad is None, key
        else:
            assert_fingerprint(params[key].grad, key, wanted)
    assert params.keys() <= expected["grads"].keys()

    after = {
        key: tensor for column in nets.buffers for key, tensor in _keyed(column, aux.buffers[column]).items()
    }
    for key, wanted in expected["statistics_after"].items():
        column, _, rest = key.partition("/")
        if column not in nets.bridges or rest.partition("/")[0] in nets.bridges[column]:
            assert_fingerprint(after[key], key, wanted)
    if case["teacher_mode"] == "eval":
        for name, tensor in networks["t"].named_buffers():
            assert torch.equal(aux.buffers["t"][name], tensor), name
