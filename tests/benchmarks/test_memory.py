"""What is kept is counted right, the largest batch is measured, and every way computes the same."""

import json

import pytest
import torch

from benchmarks import common, memory, memory_pairs
from fcfd import losses

TINY = memory_pairs._language(50, 2)


@pytest.fixture(scope="module")
def on():
    return memory.step(TINY, 2, "cpu")


def test_what_is_held_is_what_a_result_keeps():
    x = torch.ones(2**18, requires_grad=True)  # a mebibyte
    held = lambda call: common.held_memory(call) / 2**20  # noqa: E731
    assert held(lambda: x.detach() + 1) == pytest.approx(1, abs=1e-3)
    assert held(lambda: (x.detach() + 1).sum()) == pytest.approx(0, abs=1e-3), "released again"
    assert held(lambda: x.exp().sum()) == pytest.approx(1, abs=1e-3), "the output of exp, for its gradient"
    assert held(lambda: x.exp().exp().sum()) == pytest.approx(2, abs=1e-3)
    assert held(lambda: (2 * x).sum()) == pytest.approx(0, abs=1e-3), "a factor's gradient reads nothing"


@pytest.mark.parametrize(
    ("peak", "budget"),
    [
        (lambda batch: 100 + 7 * batch, 1000),
        (lambda batch: 100 + 7 * batch, 107),
        (lambda batch: 3 * batch * batch, 5000),
        (lambda batch: 1000 + int(40 * batch**0.7), 30000),
        (lambda batch: 500 if batch < 40 else 90 * batch, 4000),
    ],
)
def test_the_largest_batch_is_measured_to_fit_and_one_an_eighth_larger_not_to(on, peak, budget, monkeypatch):
    measured = []

    def measure(whole, **_):
        measured.append(len(whole))
        return peak(len(whole))

    monkeypatch.setattr(memory, "_whole", lambda other, run: other.batch)
    monkeypatch.setattr(memory, "peak_memory", measure)
    batch, size = memory.largest(on, memory_pairs.Way(), budget)
    assert size == peak(batch) <= budget
    assert any(peak(other) > budget and other <= batch + max(1, batch // 8) for other in measured)
    assert len(measured) == len(set(measured)) <= 9, "none twice, and few"


def test_where_one_example_does_not_fit_the_largest_batch_is_none(on, monkeypatch):
    monkeypatch.setattr(memory, "peak_memory", lambda *_, **__: 10)
    assert memory.largest(on, memory_pairs.Way(), 9) == (0, 0)


def test_every_way_of_a_language_model_has_the_plain_loss_and_gradients(on):
    wanted = memory.gradients(on, memory.call(on, TINY.ways["plain"]))
    assert len(wanted) > 20
    for name, way in TINY.ways.items():
        found = memory.gradients(on, memory.call(on, way))
        torch.testing.assert_close(
            found, wanted, rtol=1e-4, atol=1e-6, msg=lambda text, at=name: f"{at}: {text}"
        )


def test_the_program_keeps_what_it_measured_and_adds_to_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "PAIRS", {"tiny": TINY})
    options = ["--quick", "--pairs", "tiny", "--out", str(tmp_path), "--measure"]
    monkeypatch.setitem(memory.MEASURES, "compiled", lambda on, options: 1 / 0)
    with pytest.raises(SystemExit, match="FAILED: compiled of tiny: ZeroDivisionError"):
        memory.main([*options, "compiled", "memory"])
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(TINY.ways), "the next measure ran"
    assert all(0 < row["kept"] <= row["peak"] for row in rows)
    assert rows[4]["variant"] == "fused, checkpointed"
    assert rows[4]["kept"] < rows[0]["kept"]

    memory.main([*options, "time", "--add"])
    more = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [row["kept"] for row in more] == [row["kept"] for row in rows]
    assert more[0]["time to plain"] == 1.0
    assert "1.00×" in capsys.readouterr().out

    monkeypatch.setattr(memory, "environment", lambda device: {"torch": "another"})
    with pytest.raises(ValueError, match="was measured on"):
        memory.main([*options, "time", "--add"])


def test_a_pair_whose_package_is_missing_is_left_out_by_name(tmp_path, monkeypatch, capsys):
    def missing():
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr(memory, "PAIRS", {"absent": TINY._replace(teacher=missing)})
    memory.main(["--quick", "--pairs", "absent", "--out", str(tmp_path)])
    assert "left out: absent, No module named 'torchvision'" in capsys.readouterr().out


def test_a_way_that_fails_or_differs_is_a_row_that_says_why(on, tmp_path, monkeypatch):
    """Where the plain step needs too much memory, the others are measured all the same."""

    def full(stages):
        raise torch.OutOfMemoryError("not enough")

    def doubled(loss, memory):
        return lambda *args: 2 * losses.fused(loss, memory=memory)(*args)

    ways = {
        "plain": memory_pairs.Way(full),
        "chunked": TINY.ways["chunked"],
        "wrong": memory_pairs.Way(heads=doubled),
    }
    monkeypatch.setattr(memory, "PAIRS", {"tiny": TINY._replace(ways=ways)})
    with pytest.raises(SystemExit, match="FAILED: plain of tiny: OutOfMemoryError: not enough") as exit:
        memory.main(["--quick", "--pairs", "tiny", "--out", str(tmp_path), "--measure", "memory", "time"])
    assert "wrong of tiny: ValueError: gradients differ by" in str(exit.value)
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert ["failed" in row for row in rows] == [True, False, True]
    assert rows[1]["kept"] > 0
    assert "time to plain" not in rows[1]
