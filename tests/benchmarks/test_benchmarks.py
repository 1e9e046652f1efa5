"""The benchmarks run, keep their contract, and say what is true."""

import json
import math
from collections import Counter

import pytest
import torch

import fcfd
from benchmarks import batched, common, compile, heads, losses, peers, profiler, step
from reference.catalogue import ROWS, Size

TINY = step.CIFAR._replace(teacher="resnet8", student="resnet8", batch=2, pixels=8)


# Common


def test_median_and_quartiles():
    assert common.summary([3.0, 1.0, 2.0, 5.0, 4.0]) == (3.0, 2.0, 4.0, 5)
    assert common.summary([7.0]) == (7.0, 7.0, 7.0, 1)


def test_a_ratio_is_of_samples_taken_in_the_same_round():
    """A machine that slows down by ten between the rounds changes no ratio."""
    assert common.ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == 2.0


def test_geometric_mean():
    assert math.isclose(common.geometric_mean([2.0, 0.5]), 1.0)
    assert math.isclose(common.geometric_mean([1.0, 10.0, 100.0]), 10.0)


def test_calls_run_in_turns_after_their_warm_up(monkeypatch):
    monkeypatch.setattr(common, "_cpu_seconds", lambda call, repeats: [1.0, call()][0])
    ran = []
    calls = {name: lambda name=name: ran.append(name) for name in "abc"}
    samples = common.interleaved(calls, seconds=0.0, least=3, warm_up=1)
    assert "".join(ran) == "abc" + "abc" + "abc" + "bca" + "cab", "warm-up, a first look, three rounds"
    assert samples == {"a": [1.0] * 3, "b": [1.0] * 3, "c": [1.0] * 3}


def test_peak_memory_counts_what_is_held_at_once():
    x, mebibytes = torch.ones(2**18), lambda call: common.peak_memory(call) / 2**20
    assert mebibytes(lambda: x + 1) == pytest.approx(1, abs=1e-3)
    assert mebibytes(lambda: (x + 1, x + 2)) == pytest.approx(2, abs=1e-3)
    assert mebibytes(lambda: [float((x + at).sum()) for at in range(3)]) == pytest.approx(1, abs=1e-3)


def test_operations_leave_views_and_allocations_out():
    x = torch.ones(2, 3)
    counts = common.operations(lambda: torch.empty(2).copy_(x.T.flatten()[:2] + 1).sum().item())
    assert counts == {"clone": 1, "add": 1, "copy_": 1, "sum": 1, common.READ_BACK: 1}


def test_the_environment_names_no_machine_and_no_folder():
    import getpass
    import platform

    text = json.dumps(common.environment())
    assert torch.__version__ in text
    assert "/" not in text.replace("//", "")
    for private in (platform.node(), getpass.getuser()):
        assert not private or private not in text.split('"')


def test_results_are_json_and_csv_of_the_same_rows(tmp_path):
    common.publish(tmp_path / "new", "cpu", [{"a": 1}, {"a": 2, "b": 3}], about="x")
    record = json.loads((tmp_path / "new" / "cpu.json").read_text())
    assert record == {"about": "x", "rows": [{"a": 1}, {"a": 2, "b": 3}]}
    assert (tmp_path / "new" / "cpu.csv").read_text().split() == ["a,b", "1,", "2,3"]


@pytest.mark.parametrize("rich", [True, False])
def test_a_table_prints_with_and_without_rich(rich, capsys, monkeypatch):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    common.show("Title", ("name", "value"), [("one", "1"), ("two", "◀ slower")])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("Title", "name", "one", "◀ slower"))


# Losses


def test_every_contender_computes_the_row_s_loss():
    found, status = peers.contenders()
    assert status["torch"] == torch.__version__
    assert all(source in status for source in peers.SOURCES)
    names = {row.loss.__name__ for row in ROWS}
    assert {contender.row for contender in found} <= names
    for case in losses.cases(found, "cpu", quick=True, only=None):
        if case.others:
            tiny = case._replace(size=Size(5, 12, 4))
            args, learned = losses.inputs(tiny, "cpu", torch.float64)
            for other in case.others:
                losses.check_same(tiny, other, args, learned)


def test_a_contender_that_computes_something_else_is_left_out_and_named(capsys):
    wrong = peers.Contender("kl", "wrong", lambda prediction, target: (prediction - target).square().mean())
    (case,) = losses.cases([wrong], "cpu", quick=True, only=["kl"])
    records = list(losses.measure(case, "cpu", compiled=False, seconds=0.0))
    assert [record["source"] for record in records] == ["fcfd"]
    assert "kl: wrong computes something else" in capsys.readouterr().out


def test_the_losses_run_and_mark_what_is_lost(tmp_path, capsys):
    losses.main(["--quick", "--only", "kl", "--compile", "none", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "cpu.json").read_text())
    sources = {row["source"] for row in record["rows"]}
    assert {"fcfd", "naive", "torch"} <= sources
    assert record["environment"]["torch"] == torch.__version__
    lost = [r for r in record["rows"] if r["source"] != "fcfd" and round(r["time to fcfd"], 2) < 1]
    assert capsys.readouterr().out.count("slower") == len(lost)
    assert (tmp_path / "cpu.csv").is_file()


def test_what_is_measured_anew_replaces_its_records_and_no_other(tmp_path, capsys):
    def measured(*names):
        options = ["--quick", "--compile", "none", "--out", str(tmp_path), "--only", *names]
        losses.main(options if names == ("kl",) else [*options, "--add"])
        return json.loads((tmp_path / "cpu.json").read_text())

    before = measured("kl")
    rows = measured("reverse_kl")["rows"]
    assert rows[: len(before["rows"])] == before["rows"]
    assert {row["loss"] for row in rows} == {*(row["loss"] for row in before["rows"]), "reverse_kl"}
    after = measured("reverse_kl")
    assert len(after["rows"]) == len(rows)
    assert sum(total["rows"] for total in after["overall"]) == sum(row["source"] != "fcfd" for row in rows)
    capsys.readouterr()


def test_a_loss_between_heads_runs(tmp_path):
    heads.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    forms = [f"{form}, {memory} MiB" for memory in heads.MEMORY for form in ("chunked", "fused")]
    assert [row["way"] for row in rows] == ["whole logits", *forms, heads.PRODUCTS]
    assert rows[0]["time to whole"] == rows[0]["peak to whole"] == 1.0


def test_a_way_between_heads_with_other_gradients_is_no_record(monkeypatch):
    ways = heads.ways

    def wrong(student, teacher, memory):
        found = ways(student, teacher, memory)
        return {**found, "double": lambda: 2 * found["whole logits"]()}

    monkeypatch.setattr(heads, "ways", wrong)
    with pytest.raises(ValueError, match="double has other gradients than whole logits"):
        list(heads.measure(heads.QUICK, "cpu", memory=(64,), seconds=0.0))


# Step


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_stand_in_computes_what_fcfd_computes(mode):
    on = step.pair(TINY._replace(teacher_mode=mode))
    calls = step.variants(on, ["stand-in", "fcfd"])
    wanted, found = (step.gradients(on, calls[name]) for name in ("fcfd", "stand-in"))
    assert step.difference(found, wanted) < 1e-5
    statistics = [buffer.clone() for buffer in on.student.buffers()]
    calls["fcfd"]()
    after_ours = [buffer.clone() for buffer in on.student.buffers()]
    for buffer, before in zip(on.student.buffers(), statistics, strict=True):
        buffer.copy_(before)
    calls["stand-in"]()
    torch.testing.assert_close(list(on.student.buffers()), after_ours)


def test_a_step_moves_no_weight_so_that_all_variants_do_the_same_work():
    on = step.pair(TINY)
    before = [parameter.clone() for parameter in on.student.parameters()]
    for call in step.variants(on, ["KD", "stand-in", "fcfd"]).values():
        call()
    assert all(torch.equal(a, b) for a, b in zip(on.student.parameters(), before, strict=True))


def test_only_the_stand_in_reads_numbers_back():
    on = step.pair(TINY)
    counts = {name: common.operations(call) for name, call in step.variants(on, ["stand-in", "fcfd"]).items()}
    assert counts["fcfd"][common.READ_BACK] == 0
    assert counts["stand-in"][common.READ_BACK] >= 5


def test_the_floor_runs_the_same_products_and_nothing_else():
    on = step.pair(TINY)
    call = step.variants(on, ["fcfd"])["fcfd"]
    wanted, found = common.operations(call), common.operations(step.floor(call))
    assert found == {name: wanted[name] for name in step.PRODUCTS if wanted[name]}
    assert found["convolution"] > found["convolution_backward"] > 0, "the teacher's own pass has no backward"


def test_paths_of_one_batch_compute_what_they_compute_apart():
    """In float64, with every crossing: value, gradients, features, and the statistics that are written."""
    on = step.pair(TINY._replace(dtype="float64", paths=6))
    assert step.runs_together(on)
    calls = step.variants(on, ["fcfd", "fcfd batched"])
    wanted, found = (step.gradients(on, calls[name]) for name in ("fcfd", "fcfd batched"))
    assert step.difference(found, wanted) < 1e-12
    known = {"": on.images, "Labels": on.labels}
    plan = fcfd.plan((*on.paths, "ttttt", "sssss"))
    apart, written = fcfd.walk(plan, *on.nets.columns, known)
    together, also = batched.walk(plan, *on.nets.columns, known, network="t")
    assert apart.keys() == together.keys()
    for path in apart:
        torch.testing.assert_close(together[path], apart[path], rtol=1e-10, atol=1e-12)
    merged = (fcfd.merge_buffers(on.nets.buffers, each) for each in (written, also))
    torch.testing.assert_close(*merged, rtol=0, atol=0)


def test_paths_of_one_batch_run_a_stage_of_the_teacher_once_a_depth():
    plan = fcfd.plan(("sttt", "sstt", "ssst", "tttt", "ttts"))
    rounds = list(batched.rounds(plan, "t"))
    assert sorted(sum(rounds, ())) == sorted(plan)
    assert {("stt", "sst"), ("sttt", "sstt", "ssst")} <= set(rounds), "and no bridge, no pure path"
    on = step.pair(TINY._replace(paths=6))
    convolutions = [
        common.operations(call)["convolution"]
        for call in step.variants(on, ["fcfd", "fcfd batched"]).values()
    ]
    assert convolutions[1] < convolutions[0]


def test_paths_are_no_batch_where_they_would_share_statistics():
    on = step.pair(TINY._replace(teacher_mode="train", paths=6))
    assert "fcfd batched" not in step.variants(on, ["fcfd", "fcfd batched"])
    with pytest.raises(ValueError, match="the teacher is in train mode"):
        step.of_batched(on)


def test_a_form_of_fcfd_that_differs_is_a_record_of_a_failure(monkeypatch):
    monkeypatch.setitem(step.HYPER, "temperature", 4.0)
    makers = step.variants

    def wrong(on, names=None):
        calls = makers(on, ["fcfd"])
        return {**calls, "fcfd whole": lambda: calls["fcfd"]() * 2}

    monkeypatch.setattr(step, "variants", wrong)
    records = list(step.compare(TINY, seconds=0.0, least=1))
    assert [record["variant"] for record in records if "failed" in record] == ["fcfd whole"]
    assert "differ by" in records[-1]["failed"]


def test_the_step_runs(tmp_path):
    options = ["--quick", "--dtype", "float32", "--teacher", "eval", "--variants", "KD", "stand-in", "fcfd"]
    step.main([*options, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["KD", "stand-in", "fcfd", "floor"]
    floor = rows[-1]
    assert floor["time to floor"] == 1.0
    assert floor["peak"] < rows[0]["peak"] < rows[2]["peak"]


def test_a_step_that_is_stopped_leaves_what_it_has_measured(tmp_path, monkeypatch):
    """What compiles comes last, and every record is in the file before the next variant begins."""
    makers, seen = step.variants, []

    def last(on, names=None):
        def stopped():
            seen.append([row["variant"] for row in json.loads((tmp_path / "cpu.json").read_text())["rows"]])
            raise KeyboardInterrupt

        return {"fcfd whole": stopped, **makers(on, ["fcfd"])}

    monkeypatch.setattr(step, "variants", last)
    with pytest.raises(KeyboardInterrupt):
        step.main(["--quick", "--dtype", "float32", "--teacher", "eval", "--out", str(tmp_path)])
    assert seen == [["fcfd", "floor"]]
    assert (tmp_path / "cpu.csv").read_text().count("\n") == 3
    assert {each.name for each in tmp_path.iterdir()} == {"cpu.json", "cpu.csv"}


def test_what_begins_after_the_deadline_is_left_out(tmp_path, capsys):
    step.main(["--quick", "--minutes", "0", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("left out") == 4


@pytest.mark.slow
def test_the_compiled_forms_run(tmp_path):
    step.main(["--quick", "--dtype", "float32", "--teacher", "eval", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert {"fcfd whole", "fcfd stages"} <= {row["variant"] for row in rows}


# Profiler


def test_busy_time_counts_overlap_once():
    kernels = [profiler.Kernel("a", 0, 10), profiler.Kernel("b", 5, 10), profiler.Kernel("c", 20, 5)]
    assert profiler.busy(kernels) == 20
    assert profiler.totals(profiler.Timeline(kernels, Counter()))["span"] == pytest.approx(25e-9)


def test_all_plans_share_the_graphs_of_stages():
    found = compile.measure(compile.Way("stages", 3), "cpu", quick=True, backend="eager")
    assert found["graphs"] > 0
    assert found["added later"] == 0


def test_a_timeline_of_the_cpu_holds_outermost_operations():
    x = torch.ones(4, 4)
    found = profiler.timeline(lambda: torch.nn.functional.linear(x, x).relu())
    assert [kernel.name for kernel in found.kernels] == ["aten::linear", "aten::relu"]
