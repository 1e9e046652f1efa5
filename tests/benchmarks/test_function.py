"""The experiments of `benchmarks.function` end to end, on little of everything."""

import json

import pytest
import torch

from benchmarks import data, function, function_figures, photographs

TINY = function.Size(
    pixels=32,
    pictures=2,
    directions=1,
    iterations=1,
    digits=6,
    teacher_steps=2,
    steps=2,
    stitch_steps=1,
    seeds=1,
)
FEW = data.Data(*(part[:60] for part in data.digits()))


@pytest.fixture(autouse=True)
def one_thread():
    """The command uses one; give the others back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command with settings that take seconds, without the pretrained network; the rows of a part."""

    def absent(*_):
        raise ValueError("photographs: skimage is not installed.")

    monkeypatch.setattr(function, "QUICK", TINY)
    monkeypatch.setattr(function, "digits", lambda: FEW)
    monkeypatch.setattr(function, "photographs", absent)

    def rows(part):
        function.main([part, "--quick", "--out", str(tmp_path)])
        assert ((tmp_path / f"{part}.svg").exists()) == (part in function_figures.FIGURES)
        return json.loads((tmp_path / f"{part}.json").read_text())["rows"]

    return rows


def test_anisotropy_leaves_out_what_is_not_installed_and_says_so(run, capsys):
    rows = run("anisotropy")
    assert "MobileNetV2 is left out: photographs: skimage is not installed." in capsys.readouterr().out
    assert [(row["network"], row["depth"]) for row in rows] == [
        ("the demo's teacher", at) for at in range(1, 5)
    ]
    for row in rows:
        assert len(row["gains"]) == len(row["random gain"]) == TINY.digits
        assert all(len(moved) == TINY.digits for way in row["moved"].values() for moved in way)


def test_first_order_is_close_at_a_small_share_of_the_step(run):
    rows = run("first-order")
    assert [row["path"] for row in rows[:4]] == ["stttt", "ssttt", "ssstt", "sssst"]
    for row in rows:
        assert -1 <= row["rank correlation, first order"] <= 1
        assert row["median ratio at a share of the step"]["0.01"] == pytest.approx(1, abs=0.1)
        assert row["path"] != "sssst" or row["median ratio"] == pytest.approx(1, abs=1e-3), "a linear tail"


def test_crossed_accuracy_of_every_path_and_method(run, monkeypatch):
    monkeypatch.setattr(function, "LEARNED", ("untrained", "FCFD"))
    rows = run("crossed")
    assert [row["method"] for row in rows] == ["untrained", "FCFD"]
    teacher = {row["accuracy"]["ttttt"] for row in rows}
    assert len(teacher) == 1
    assert all(len(row["accuracy"]) == 10 for row in rows)


def test_stitching_has_a_row_for_each_pair_depths_and_fit(run, monkeypatch):
    monkeypatch.setattr(function, "TARGETS", ("closed form", "every later stage"))
    rows = run("stitching")
    assert len(rows) == 2 * 4 * 4 * len(function.TARGETS)
    assert len({(row["pair"], row["from"], row["to"], row["fitted to"]) for row in rows}) == len(rows)


def test_cost_counts_a_first_order_step(run):
    rows = {row["loss"]: row for row in run("cost")}
    assert rows["function"]["time to function"] == 1
    assert rows["feature"]["convolutions"] == 0 < rows["function"]["convolutions"]


@pytest.mark.parametrize("depths", [2, 3, 5])
def test_weights_of_what_a_stitch_is_fitted_to(depths):
    assert function.weights_of("every later stage", depths) == [1 / depths] * depths
    for fitted, at in (("stitch point", 0), ("penultimate", depths - 2), ("logits", depths - 1)):
        weights = function.weights_of(fitted, depths)
        assert weights[at] == 1 == sum(weights)


def test_rank_correlation_is_spearman_s():
    a, b = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    places = [[sorted(values.tolist()).index(value) for value in values.tolist()] for values in (a, b)]
    apart = sum((one - other) ** 2 for one, other in zip(*places, strict=True))
    assert function.rank_correlation(a, b) == pytest.approx(1 - 6 * apart / (30 * (30**2 - 1)))


def test_an_unknown_part_is_an_error(capsys):
    with pytest.raises(SystemExit):
        function.main(["nothing"])
    assert "there is no part 'nothing', only anisotropy, first-order" in capsys.readouterr().err


def test_what_is_not_installed_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="sklearn is not installed. Get it by `pip install scikit-learn`"):
        photographs.photographs()


@pytest.mark.slow
def test_the_photographs_are_what_the_pretrained_network_says():
    try:
        names, batch = photographs.photographs()
        model, classes = photographs.mobilenet()
    except (ValueError, ModuleNotFoundError) as missing:
        pytest.skip(str(missing))
    with torch.no_grad():
        found = model(batch).argmax(1)
    said = {name: classes[at] for name, at in zip(names, found, strict=True)}
    assert batch.shape == (10, 3, 224, 224)
    assert (said["camera"], said["chelsea"], said["coffee"]) == ("tripod", "Egyptian cat", "espresso")
