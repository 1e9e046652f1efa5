"""Students of few bits: rounding by torch's operator, and the command on a handful of steps."""

import json

import pytest
import torch

from benchmarks import data, quantised

FEW = data.Data(*(part[:60] for part in data.digits()))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weights_have_few_values_and_pass_their_gradient(bits):
    torch.manual_seed(0)
    params = {"weight": torch.randn(4, 3, 3, 3, requires_grad=True), "bias": torch.randn(4)}
    found = quantised.quantised(params, bits)
    assert found["bias"] is params["bias"]
    for row, own in zip(found["weight"], params["weight"], strict=True):
        assert len(row.unique()) <= 2**bits - 1
        step = own.abs().max() / (2 ** (bits - 1) - 1)
        assert (row - own).abs().max() <= step / 2 + 1e-6
    found["weight"].sum().backward()
    torch.testing.assert_close(params["weight"].grad, torch.ones_like(params["weight"]))


def test_the_command_publishes_a_row_a_method(monkeypatch, tmp_path):
    monkeypatch.setattr(quantised, "ROOT", tmp_path)
    monkeypatch.setattr(quantised, "digits", lambda: FEW)
    for name, value in {"IMAGES": 20, "BATCH": 10, "STEPS": 2, "TEACHER_STEPS": 2}.items():
        monkeypatch.setattr(quantised, name, value)
    quantised.main(["--seeds", "2", "--bits", "2", "--publish"])
    record = json.loads((tmp_path / "benchmarks" / "results" / "quantised-digits.json").read_text())
    assert len(record["rows"]) == 2 * (1 + len(quantised.METHODS))
    table = quantised.summary(record["rows"])
    assert [line[1] for line in table] == ["rounded only", *quantised.METHODS]
