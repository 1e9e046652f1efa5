"""The demo end to end on a handful of steps; the readers of its data."""

import gzip
import json
import re

import numpy as np
import pytest
import torch

from benchmarks import data, demo

TINY = demo.SETTINGS["digits"]._replace(
    images_per_class=2, teacher_steps=2, steps=2, bridge_steps=2, batch=10, teacher_width=4
)
FEW = data.Data(*(part[:80] for part in data.digits()))
METHODS = ["untrained", *demo.METHODS]


@pytest.fixture(autouse=True)
def one_thread():
    """The command uses one; give the others back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command with settings that take seconds, in a folder of its own."""
    monkeypatch.setattr(demo, "ROOT", tmp_path / "root")
    monkeypatch.setattr(demo, "digits", lambda: FEW)
    for name in demo.SETTINGS:
        monkeypatch.setitem(demo.SETTINGS, name, TINY._replace(data=name))
    return lambda *arguments: demo.main([*arguments, "--runs", str(tmp_path / "runs")])


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def test_the_demo_writes_numbers_figure_and_table_and_resumes(run, tmp_path, capsys, monkeypatch):
    run("--seeds", "2")
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "runs" / "demo-digits.json").read_text())
    assert [(each["method"], each["seed"]) for each in results["runs"]] == [
        (method, seed) for seed in (0, 1) for method in METHODS
    ]
    for each in results["runs"]:
        assert 0 <= each["accuracy"] <= 1
        assert list(each["distance"]) == list(demo.READ)
        assert min(each["distance"].values()) > -1e-6
    rows = [row for row in printed.splitlines() if "±" in row and "│" in row]
    assert [re.split("  +", row.strip("│ "))[0].split(" │")[0] for row in rows] == METHODS
    assert (tmp_path / "runs" / "demo-digits.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.delattr(demo, "distil")
    monkeypatch.delattr(demo, "train")
    run("--seeds", "2", "--publish")
    again = json.loads((tmp_path / "root" / "benchmarks" / "results" / "demo-digits.json").read_text())
    assert again == results
    assert (tmp_path / "root" / "docs" / "figures" / "demo-digits.png").exists()


def test_an_interrupted_demo_keeps_what_is_finished(run, tmp_path, capsys, monkeypatch):
    trained = []

    def distil(method, *arguments, **keywords):
        trained.append(method)
        if len(trained) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "distil", distil)
    with pytest.raises(SystemExit) as stopped:
        run("--seeds", "1")
    assert stopped.value.code == 130
    assert "goes on from there" in capsys.readouterr().err
    (file,) = (tmp_path / "runs").glob("*.jsonl")
    with file.open("a") as lines:
        lines.write('\n{"method": "hint", "se')
    run("--seeds", "1")
    assert trained == METHODS[1:4] + METHODS[3:]


def test_a_seed_fixes_a_run(tmp_path):
    first, second = (
        demo.experiment(TINY, FEW, seeds=[7], folder=tmp_path / name)["runs"] for name in ("a", "b")
    )
    for one, two in zip(first, second, strict=True):
        assert {**one, "cpu_seconds": 0} == {**two, "cpu_seconds": 0}


def test_another_setting_is_another_file(tmp_path):
    for setting in (TINY, TINY._replace(rate=0.2)):
        demo.experiment(setting, FEW, seeds=[], folder=tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_batches_use_every_image_before_one_comes_again():
    drawn = list(data.batches(10, 4, 4, seed=0))
    assert [len(batch) for batch in drawn] == [4] * 4
    assert len(set(torch.cat(drawn[:2]).tolist())) == 8
    assert len(set(torch.cat(drawn[2:]).tolist())) == 8


def test_few_draws_so_many_of_each_class_by_the_seed():
    labels = data.digits().labels
    drawn = [data.few(labels, 5, seed=seed) for seed in (0, 0, 1)]
    assert labels[drawn[0]].bincount().tolist() == [5] * 10
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_learning_and_testing_images_are_all_of_the_digits():
    digits = data.digits()
    assert (len(digits.images), len(digits.test_images)) == (1000, 797)
    assert digits.images.shape[1:] == digits.test_images.shape[1:] == (1, 8, 8)


@pytest.fixture(params=["", ".gz"])
def clothes(request, tmp_path):
    """A folder of IDX files, plain or gzipped, and what they hold."""
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 2)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        for part in ("train", "t10k"):
            content = idx(array)
            path = tmp_path / f"{part}-{name}-ubyte{request.param}"
            path.write_bytes(gzip.compress(content) if request.param else content)
    return tmp_path, images, labels


def test_fashion_mnist_is_read_from_idx_files(clothes):
    folder, images, labels = clothes
    read = data.fashion_mnist(folder)
    for part in (read.images, read.test_images):
        assert torch.equal(((part + 0.5) * 255).round()[:, 0], torch.tensor(images).float())
    for part in (read.labels, read.test_labels):
        assert torch.equal(part, torch.tensor(labels).long())


@pytest.mark.parametrize("clothes", [".gz"], indirect=True)
def test_the_demo_runs_on_fashion_mnist(run, clothes, tmp_path):
    run("--data", "fashion-mnist", "--folder", str(clothes[0]), "--seeds", "1")
    assert json.loads((tmp_path / "runs" / "demo-fashion-mnist.json").read_text())["test_images"] == 20


def test_a_missing_folder_says_what_to_do(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("--data", "fashion-mnist", "--folder", str(tmp_path / "nowhere"))
    said = capsys.readouterr().err
    for words in (
        "train-images-idx3-ubyte.gz",
        str(tmp_path / "nowhere"),
        "dataset-fashion-mnist",
        "--folder",
    ):
        assert words in said


@pytest.mark.parametrize(
    "content, words",
    [
        (b"GIF89a", "begins with [71, 73, 70, 56]"),
        (b"", "begins with []"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "17 bytes and announces [2, 3], which takes 18"),
        (b"\0\0\x08\x02\0\0", "cut short"),
    ],
)
def test_a_file_that_is_not_idx_is_refused(tmp_path, content, words):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)):
        data.read_idx(path)


def test_images_and_labels_that_do_not_fit_are_refused(tmp_path):
    for name, shape in (("images-idx3", (3, 2, 2)), ("labels-idx1", (4,))):
        (tmp_path / f"train-{name}-ubyte").write_bytes(idx(np.zeros(shape, np.uint8)))
    with pytest.raises(ValueError, match=r"train images \[3, 2, 2\] and labels \[4\] do not fit"):
        data.fashion_mnist(tmp_path)


def test_no_seed_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--seeds", "0")
    assert "at least 1" in capsys.readouterr().err
