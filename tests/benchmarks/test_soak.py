"""The soak runs every precision and transform, resumes, and sees what is not finite."""

import json
from functools import partial

import pytest
import torch

from benchmarks import soak


def test_legs_are_drawn_by_number_and_reach_everything():
    assert soak.draw(3) == soak.draw(3)
    drawn = [soak.draw(leg) for leg in range(60)]
    for at, field in enumerate(soak.Draw._fields):
        wanted = {"student": soak.STUDENTS, "precision": soak.PRECISIONS, "transform": soak.TRANSFORMS}
        if field in wanted:
            assert {one[at] for one in drawn} == {*wanted[field]}


@pytest.mark.parametrize("precision", soak.PRECISIONS)
def test_a_leg_stays_finite(precision, monkeypatch):
    monkeypatch.setattr(soak, "draw", lambda leg: soak.Draw("narrow", precision, "eval", "plain", "sgd", 2))
    with torch.random.fork_rng():
        seen = soak.run(0, 2)
    assert seen.finite


@pytest.mark.slow
@pytest.mark.parametrize("leg, optimizer, teacher", [(0, "sgd", "eval"), (2, "adamw", "train")])
def test_a_thousand_steps_in_float16_stay_finite(leg, optimizer, teacher, monkeypatch):
    drawn = soak.Draw("narrow", "autocast float16, scaled", teacher, "plain", optimizer, 2)
    monkeypatch.setattr(soak, "draw", lambda leg: drawn)
    with torch.random.fork_rng():
        seen = soak.run(leg, 1000)
    assert seen.finite
    assert seen.skipped < 10


def test_steps_that_a_scaler_skips_leave_nothing_behind(monkeypatch):
    student = soak.STUDENTS["narrow"]()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    drawn = soak.Draw("narrow", "autocast float16, scaled", "eval", "plain", "adamw", 2)
    monkeypatch.setattr(soak, "draw", lambda leg: drawn)
    monkeypatch.setattr(soak, "STUDENTS", {"narrow": lambda: student})
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**60))
    with torch.random.fork_rng():
        seen = soak.run(0, 2)
    assert seen.skipped == 2
    assert seen.finite
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_it_goes_on_after_the_last_line_and_reports_what_is_not_finite(tmp_path, monkeypatch, capsys):
    file = tmp_path / "legs.jsonl"
    seen = soak.Seen(loss=1.0, finite=True, skipped=0, resident=0.0, tensors=0)
    ran = []

    def run(leg, steps):
        ran.append(leg)
        return seen._replace(finite=leg != 2)

    monkeypatch.setattr(soak, "run", run)
    threads = torch.get_num_threads()
    try:
        assert soak.main(["--steps", "200", "--out", str(file)]) == 0
        assert soak.main(["--steps", "300", "--out", str(file)]) == 1
    finally:
        torch.set_num_threads(threads)
    assert ran == [0, 1, 2]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["process"] for row in rows] == [0, 0, 1]
    assert "not finite in legs [2]" in capsys.readouterr().out


def test_what_is_added_counts_for_the_transform_of_the_leg():
    kinds = ["plain", "plain", "compiled", "plain", "checkpointed", "plain"]
    rows = [
        {"transform": kind, "resident": resident}
        for kind, resident in zip(kinds, (5.0, 5.0, 7.0, 8.0, 8.5, 8.5), strict=True)
    ]
    assert soak.added(rows) == {"plain": 0.0, "checkpointed": 0.5, "compiled": 1.0}
