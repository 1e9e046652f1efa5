"""The study on a handful of steps: resuming, pairing, tuning, statistics, what methods are made of."""

import io
import json
import math
import random
import tarfile

import pytest
import torch

import fcfd
from benchmarks import data, statistics
from benchmarks.study import (
    __main__ as command,
    cost,
    driver,
    emoji,
    methods,
    probes,
    report,
    settings,
    training,
)
from fcfd.paths import crosses
from reference.zoo import resnet

FEW = data.Data(*(part[:120] for part in data.digits()))
TINY = settings.DIGITS._replace(
    data=lambda: FEW,
    per_class=2,
    steps=3,
    teacher_steps=2,
    held_out=40,
    batch=10,
    seeds=2,
    methods=("KD", "KD + hints", "FCFD"),
    tuned_on="tiny",
)


@pytest.fixture(autouse=True)
def one_thread():
    """The command uses one; give the others back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The command with a setting that takes a second, in a folder of its own."""
    monkeypatch.setitem(settings.SETTINGS, "tiny", TINY)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    options = ("--out", str(tmp_path), "--runs", str(tmp_path / "runs"))
    return lambda *arguments: command.main(["tiny", *arguments, *options])


def runs(tmp_path, name="runs"):
    return driver.lines(tmp_path / f"{name}.jsonl")


def test_every_run_is_a_line_and_finished_ones_are_not_run_again(study, tmp_path, monkeypatch):
    assert study() == 0
    found = runs(tmp_path)
    assert [(run["method"], run["seed"]) for run in found] == [
        (method, settings.REPORTED + seed) for seed in (0, 1) for method in TINY.methods
    ]
    for run in found:
        assert run["part"] == "test"
        assert 0 <= run["accuracy"] <= 1
        assert run["loss"] > 0
        assert run["torch"] == torch.__version__
    (teacher,) = runs(tmp_path, "teachers")
    assert teacher["environment"]["versions"]["torch"]

    monkeypatch.setattr(training, "run", None)
    assert study() == 0
    assert runs(tmp_path) == found


def test_a_line_that_was_cut_short_is_run_again_and_gives_the_same(study, tmp_path):
    study()
    file = tmp_path / "runs.jsonl"
    before = runs(tmp_path)
    file.write_text("\n".join(file.read_text().splitlines()[:-2]) + '\n{"setting": "tiny", "meth')
    study()
    after = runs(tmp_path)
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert {**old, "seconds": 0, "cpu_seconds": 0} == {**new, "seconds": 0, "cpu_seconds": 0}


def test_an_interruption_keeps_what_is_finished(study, tmp_path, monkeypatch, capsys):
    true_run, count = training.run, []

    def interrupted(*arguments, **keywords):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return true_run(*arguments, **keywords)

    monkeypatch.setattr(training, "run", interrupted)
    assert study() == 130
    assert "goes on from there" in capsys.readouterr().err
    assert len(runs(tmp_path)) == 2
    study()
    assert len(runs(tmp_path)) == 6
    assert len(count) == 7


def test_two_processes_share_the_work_and_the_file(tmp_path):
    """As on a GPU: the command starts copies of itself, and each does its share."""
    options = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    arguments = ["digits", "--quick", "--seeds", "1", "--methods", "KD", "labels", *options]
    assert command.main([*arguments, "--processes", "2"]) == 0
    found = runs(tmp_path / "runs" / "quick")
    assert {run["method"] for run in found} == {"KD", "labels"}
    alone = tmp_path / "alone"
    assert command.main([*arguments[:-1], str(alone)]) == 0
    expected = {run["method"]: run["loss"] for run in runs(alone / "quick")}
    assert {run["method"]: run["loss"] for run in found} == expected


def test_methods_are_paired_by_seed():
    """Each sees the same images in the same order, from the same weights; another seed, others."""
    teacher = TINY.teacher()
    seen = {}
    for method in ("labels", "KD", "KD + hints", "FCFD", "FCFD, published"):
        for seed in (1, 2):
            first, order = [], []

            def watch(step, terms, aux, nets, first=first, order=order):
                if step == 0:
                    first.extend(p.detach().clone() for p in nets.params["s"].values())
                order.append(aux.values[""])

            pool = training.parts(TINY, "validation")
            training.run(
                TINY, methods.METHODS[method], teacher, pool, factor=1.0, seed=seed, device="cpu", watch=watch
            )
            seen[method, seed] = first, order
    for seed in (1, 2):
        weights, order = seen["KD", seed]
        for method in ("labels", "KD + hints", "FCFD", "FCFD, published"):
            others, batches = seen[method, seed]
            assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(order, batches, strict=True))
    assert not torch.equal(seen["KD", 1][1][0], seen["KD", 2][1][0])
    assert not torch.equal(seen["KD", 1][0][0], seen["KD", 2][0][0])


def test_tuning_sees_no_test_example_and_no_reported_seed(study, tmp_path):
    learned, scored = training.parts(TINY, "validation")[::2], training.parts(TINY, "validation")[2:]
    assert len(learned[0]) == 80
    assert torch.equal(scored[0], FEW.images[80:])
    assert torch.equal(training.parts(TINY, "test").test_images, FEW.test_images)
    assert torch.equal(training.parts(TINY, "test").images, FEW.images[:80])
    study("--tune", "--seeds", "1")
    found = runs(tmp_path, "tuning")
    assert {run["part"] for run in found} == {"validation"}
    assert {run["seed"] for run in found} == {settings.PILOT}
    assert [run["factor"] for run in found] == [round(factor, 4) for factor in settings.FACTORS] * 3


def test_the_best_factor_is_taken_and_variants_take_over_that_of_their_method(study, tmp_path):
    for factor, accuracy in ((0.3333, 0.2), (1.0, 0.6), (3.0, 0.7)):
        job = driver.Job("tiny", "", "FCFD", factor, 500, "validation")
        driver.append(tmp_path / "tuning.jsonl", {**job._asdict(), "accuracy": accuracy})
    for factor in (0.3333, 1.0):
        job = driver.Job("tiny", "", "KD", factor, 500, "validation")
        driver.append(tmp_path / "tuning.jsonl", {**job._asdict(), "accuracy": 0.5})
    assert driver.chosen(runs(tmp_path, "tuning"), "tiny") == {"FCFD": 3.0, "KD": 1.0}
    study("--seeds", "1", "--methods", "KD", "FCFD", "FCFD, half", "FCFD, published")
    factors = {run["method"]: run["factor"] for run in runs(tmp_path)}
    assert factors == {"KD": 1.0, "FCFD": 3.0, "FCFD, half": 3.0, "FCFD, published": 1.0}


def test_another_setting_has_another_fingerprint():
    marks = [settings.fingerprint(TINY._replace(**change)) for change in ({}, {"rate": 0.2}, {"steps": 4})]
    assert len(set(marks)) == 3
    assert settings.fingerprint(TINY._replace(seeds=9, methods=())) == marks[0]


def test_unknown_names_are_refused(study, capsys):
    with pytest.raises(SystemExit):
        study("--methods", "KDD")
    assert "there is no 'KDD'" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - {"KD + hidden states"}))
def test_every_method_takes_a_step_and_trains_the_student(name):
    torch.manual_seed(0)
    teacher, student = TINY.teacher(), TINY.student()
    before = [p.detach().clone() for p in student.parameters()]
    kept = [tensor.clone() for tensor in teacher.state_dict().values()]
    setting = TINY._replace(steps=1)
    training.distil(
        setting, methods.METHODS[name], student, teacher, FEW.images, FEW.labels, factor=1.0, seed=0
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, teacher.state_dict().values(), strict=True))
    changed = [not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)]
    assert all(changed)


@pytest.mark.parametrize("name", ["small-mixer", "small-depthwise", "small-room"])
def test_students_of_every_family_are_linked(name):
    setting = settings.SETTINGS[name]
    images, labels = torch.randn(10, 1, 14, 14), torch.arange(10)
    losses = []
    training.distil(
        setting._replace(steps=2, batch=10),
        methods.METHODS["FCFD, all paths"],
        setting.student(),
        setting.teacher(),
        images,
        labels,
        factor=1.0,
        seed=0,
        watch=lambda step, terms, aux, nets: losses.append([part.item() for part in aux.parts.values()]),
    )
    assert all(math.isfinite(loss) for step in losses for loss in step)


def moment(step, steps=30):
    return methods.Moment(5, ("ssttt", "ttsss"), fcfd.bridged(5, first=2), 1.0, 10.0, step, steps)


def crossed(terms):
    return {name: term.weight for name, term in terms.items() if crosses(term.prediction) and ">" not in name}


def test_the_warm_up_is_of_all_crossed_terms_and_of_them_alone():
    early, full = (methods.METHODS["FCFD"].terms(moment(step)) for step in (4, 29))
    published = methods.METHODS["FCFD, published"].terms(moment(29))
    assert {name: term.weight for name, term in full.items()} == {
        name: term.weight for name, term in published.items()
    }
    assert crossed(early) == pytest.approx({name: 0.5 * weight for name, weight in crossed(full).items()})
    assert {name for name in early if name not in crossed(early)} == set(
        methods.METHODS["KD + hints"].terms(moment(4))
    )
    assert not crossed(methods.METHODS["FCFD, late"].terms(moment(9)))
    assert crossed(methods.METHODS["FCFD, late"].terms(moment(10))) == crossed(full)


def test_the_parts_of_fcfd_can_be_left_out():
    def present(name):
        return set(fcfd.terms.present(methods.METHODS[name].terms(moment(29))))

    full = present("FCFD")
    assert full - present("FCFD, no crossed logits") == {"kl/ssttt", "kl/ttsss"}
    assert full - present("FCFD, no crossed features") == {"feature/sst", "feature/sstt", "pooled/sstt"}
    assert {name for name in full if ">" in name} == full - present("FCFD, no appearance")


def test_the_gate_is_the_share_of_the_teacher_s_information():
    teacher = torch.tensor([[4.0, 0.0, -4.0]])
    one = lambda value, target: torch.ones(())  # noqa: E731
    gates = [
        methods.gate(one, None, logits, None, teacher).item()
        for logits in (teacher, torch.zeros(1, 3), 0.5 * teacher, -teacher)
    ]
    assert gates[:2] == [1.0, 0.0]
    assert 0 < gates[2] < 1
    assert gates[3] == 0.0


@pytest.mark.parametrize(
    "freedom, quantile",
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (11, 2.20099), (30, 2.04227)],
)
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    assert statistics.student_quantile(0.975, freedom) == pytest.approx(quantile, rel=2e-5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 11])
def test_the_distribution_is_the_integral_of_its_density(freedom):
    def density(x):
        scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
        return scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)

    steps, end = 2000, 1.7
    inner = sum(density(end * (at + 0.5) / steps) for at in range(steps)) * end / steps
    assert statistics.student_probability(end, freedom) == pytest.approx(0.5 + inner, abs=1e-6)


def test_paired_differences_by_hand():
    found = statistics.paired([3.0, 5.0, 4.0], [2.0, 3.0, 4.0])  # differences 1, 2, 0
    half = 4.302653 * 1.0 / math.sqrt(3)
    assert found.mean == 1.0
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half), rel=1e-6)
    assert (found.effect, found.ahead, found.pairs) == (1.0, 2, 3)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draw = random.Random(0)
    covered = 0
    for _ in range(400):
        values = [draw.gauss(0.3, 1) for _ in range(6)]
        found = statistics.paired(values, [0.0] * 6)
        covered += found.low <= 0.3 <= found.high
    assert 0.92 <= covered / 400 <= 0.975


@pytest.mark.parametrize("one, other", [([1.0], [2.0]), ([1.0, 2.0], [1.0])])
def test_too_few_pairs_are_refused(one, other):
    with pytest.raises(ValueError, match="paired: "):
        statistics.paired(one, other)


def test_committed_lines_are_complete():
    """Every reported method of a setting has the same seeds as the others, or fewer, and no run twice."""
    found = driver.lines(driver.RESULTS / "runs.jsonl")
    jobs = [driver.job_of(run) for run in found]
    assert len(set(jobs)) == len(jobs)
    assert {job.setting for job in jobs} <= set(settings.SETTINGS)
    assert all(job.seed >= settings.REPORTED and job.part == "test" for job in jobs)
    assert all(isinstance(json.dumps(run), str) for run in found)


def test_tables_are_made_of_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for method, accuracies in {"KD": (0.5, 0.6), "KD + hints": (0.6, 0.6), "FCFD": (0.63, 0.65, 0.9)}.items():
        for seed, accuracy in enumerate(accuracies):
            line = {"setting": "tiny", "method": method, "seed": seed, "accuracy": accuracy}
            driver.append(tmp_path / "runs.jsonl", line | {"part": "test", "factor": 1.0})
    head, _, kd, hints, ours = report.study_rows("tiny")
    assert head[3] == "− KD + hints"
    assert kd == ("KD", "2", "55.0 ± 63.5", "−5.00", "−68.53 to +58.53", "−0.7", "0 of 2")
    assert hints[:4] == ("KD + hints", "2", "60.0 ± 0.0", "")
    assert ours[3:] == ("+4.00", "−8.71 to +16.71", "+2.8", "2 of 2"), "the seed without its pair is left out"
    (gain,) = report.summary_rows("KD")[2:]
    assert gain == ("`tiny`", "2", "−5.00 (−68.53 to +58.53)", "", "")
    assert [row[0] for row in report.main_rows("tiny")[2:]] == ["KD", "KD + hints", "FCFD"]
    report.differences_figure(tmp_path / "figure.svg", ["tiny"], ("KD", "FCFD", "DKD"))
    assert "2 seeds at most" in (tmp_path / "figure.svg").read_text()


def test_the_tuning_table_marks_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for method, factor, accuracy in (("KD", 1.0, 0.5), ("KD", 3.0, 0.7), ("FCFD", 1.0, 0.6)):
        job = driver.Job("tiny", "", method, factor, 500, "validation")
        driver.append(tmp_path / "tuning.jsonl", {**job._asdict(), "accuracy": accuracy})
    assert report.tuning_rows("tiny") == [
        ("method", "× 1", "× 3", "seeds"),
        ("---", "---:", "---:", "---:"),
        ("KD", "50.0", "**70.0**", "1"),
        ("FCFD", "**60.0**", "", "1"),
    ]


def test_gradients_are_compared_on_what_both_reach():
    one = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    other = {"b": torch.tensor([1.0]), "a": torch.tensor([0.0, 0.0]), "c": torch.tensor([9.0])}
    assert probes.compared(one, other) == pytest.approx((4 / 5, 5.0))
    assert probes.compared({"c": torch.tensor([-2.0])}, other) == pytest.approx((-1.0, 2 / 9))


def test_the_probe_sees_every_path_and_disturbs_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.SETTINGS, "tiny", TINY._replace(steps=2))
    monkeypatch.setattr(probes, "AT", (0, 1))
    options = ("--methods", "FCFD", "--seeds", "1", "--out", str(tmp_path), "--runs", str(tmp_path / "runs"))
    probes.main(["tiny", *options])
    found = runs(tmp_path, "gradients")
    paths = ("appearance", "ssttt", "ssstt", "ttsss", "tttss")
    assert [(line["step"], line["path"]) for line in found] == [
        (step, path) for step in (0, 1) for path in paths
    ]
    for line in found:
        assert -1 <= line["cosine_label"] <= 1
        assert 0 <= line.get("share", 0) <= 1
    probes.main(["tiny", *options])
    assert runs(tmp_path, "gradients") == found, "what is there is not run again"
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    head, _, *rows = report.gradient_rows("FCFD")
    assert head == ("terms of", "step 0", "step 1")
    assert [row[0] for row in rows] == ["appearance", *(f"`{path}`" for path in paths[1:])]
    assert rows[1][1] == report.signed(found[1]["cosine_logits"])
    assert len(report.gradient_rows("FCFD", "share")) == 2 + len(paths[1:]), "appearance reads no logits"

    setting, teacher = settings.SETTINGS["tiny"], TINY.teacher()
    results = []
    for watch in (None, lambda step, terms, aux, nets: probes.looked(nets, dict(aux.values), ("ss>t",), 1.0)):
        _, record = training.run(
            setting,
            methods.METHODS["FCFD"],
            teacher,
            training.parts(setting, "test"),
            factor=1.0,
            seed=1,
            device="cpu",
            watch=watch,
        )
        results.append(record["loss"])
    assert results[0] == results[1]


def test_costs_are_in_steps_of_kd(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(settings.SETTINGS, "tiny", TINY)
    monkeypatch.setattr(cost, "SHOWN", ("KD", "FCFD, all paths"))
    cost.main(["tiny", "--seconds", "0", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "cost-tiny-cpu.json").read_text())["rows"]
    assert rows[0] == {"method": "KD", "time": 1.0, "memory": 1.0, "samples": 5}
    assert rows[1]["memory"] > 1
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.cost_rows("tiny-cpu")[2] == ("KD", "1.00", "1.00")
    assert "FCFD, all paths" in capsys.readouterr().out


@pytest.fixture
def packages(tmp_path):
    """Three packages of drawings, three emoji of two groups each, and one of no group."""
    from PIL import Image

    rows = [{"image": f"1f60{at}.png", "subcategory": ("cat", "dog", "dog")[at]} for at in range(3)]
    for package, inside in (emoji.LEARNED | emoji.TESTED).items():
        form = "webp" if "fluent" in package else "png"
        with tarfile.open(tmp_path / f"{package}-1.0.0.tgz", "w:gz") as archive:

            def add(name, content, archive=archive):
                info = tarfile.TarInfo(f"package/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

            add("emoji.json", json.dumps(rows).encode())
            add("img/other/64/1f600.png", b"of another vendor")
            for at in range(4):
                content = io.BytesIO()
                Image.new("RGBA", (64, 64), (255, 0, 0, 255 * (at > 0))).save(content, form, lossless=True)
                add(f"{inside}1F60{at}.{form}", content.getvalue())
    return tmp_path


def test_emoji_are_read_from_the_packages(packages):
    read = emoji.emoji(packages)
    assert read.images.shape == (6, 3, 32, 32)
    assert read.test_images.shape == (3, 3, 32, 32)
    assert read.labels.bincount().tolist() == [2, 4]
    assert read.test_labels.bincount().tolist() == [1, 2]
    clear = read.test_images[read.test_labels == 0][0]
    torch.testing.assert_close(clear, torch.full((3, 32, 32), 128 / 255 - 0.5), msg="what is clear is grey")
    red = read.test_images[read.test_labels == 1][0]
    assert red[:, 0, 0].tolist() == [0.5, -0.5, -0.5]


def test_a_missing_package_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="there is no emoji-datasource-google.*npm pack"):
        emoji.emoji(tmp_path)


def test_pictures_are_moved_by_the_generator():
    images = torch.arange(2 * 3 * 32 * 32.0).reshape(2, 3, 32, 32)
    moved = [emoji.shifted(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert moved[0].shape == images.shape
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])


def test_the_published_pair_learns_emoji(packages, monkeypatch):
    setting = settings.EMOJI._replace(
        data=lambda: emoji.emoji(packages),
        teacher=lambda: resnet.resnet8(99),
        student=lambda: resnet.resnet8(99),
        steps=1,
        held_out=2,
        batch=4,
    )
    _, record = training.run(
        setting,
        methods.METHODS["FCFD"],
        setting.teacher(),
        training.parts(setting, "test"),
        factor=1.0,
        seed=0,
        device="cpu",
    )
    assert math.isfinite(record["loss"])
