"""The published recipes end to end on small files of the official formats."""

import csv
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.multiprocessing.spawn import spawn

import fcfd
from benchmarks import cifar100, imagenet, runs, trainer
from benchmarks.methods import METHODS, Now, Pair, hints
from fcfd import losses, recipes, schedules
from reference import torchvision_cpu
from reference.zoo import NETWORKS

from . import files

ROOT = Path(__file__).parents[2]
TINY = Pair("resnet8", "resnet14", (1.0, 2.0, 3.0), 0.05, path_weight=0.5)
LIGHT = ("resnet20-resnet56", "vgg8-vgg13")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of small files, and the arguments of a run of the smallest pair on them."""
    monkeypatch.setitem(cifar100.PAIRS, "tiny", TINY)
    files.cifar100(tmp_path)
    teacher = files.checkpoint(tmp_path / "teacher.pth", "resnet14")
    return ["--pair", "tiny", "--data", str(tmp_path), "--teacher", str(teacher), "--batch", "4"]


def run(folder: Path, arguments, main=cifar100.main):
    """What a run wrote: its result, its rows, its student."""
    main([*arguments, "--out", str(folder)])
    rows = list(csv.DictReader((folder / "epochs.csv").read_text().splitlines()))
    student = torch.load(folder / "student.pth", weights_only=True)
    return json.loads((folder / "result.json").read_text()), rows, student


def contents(folder: Path):
    """A checkpoint but for the seconds that it took."""
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    del content["state"]["seconds"]
    return content


def assert_same(one, other, at=""):
    """Equal to the last bit, all the way down."""
    assert type(one) is type(other), at
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    elif isinstance(one, dict):
        assert list(one) == list(other), at
        for name in one:
            assert_same(one[name], other[name], f"{at}/{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), at
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{at}/{place}")
    else:
        assert one == other, at


# Pairs


def test_the_pairs_are_those_of_the_paper():
    """Rate, temperature, feature weight, path weight of the authors' files."""
    table = """
        resnet8x4-resnet32x4 0.05 4 5 1
        resnet20-resnet56 0.05 4 0.02 1
        wrn_16_2-wrn_40_2 0.05 4 5 0.2
        wrn_40_1-wrn_40_2 0.05 4 5 1
        vgg8-vgg13 0.05 4 5 1
        ShuffleV1-resnet32x4 0.01 8 5 1
        ShuffleV1-wrn_40_2 0.01 4 5 1
        MobileNetV2-vgg13 0.01 4 5 1
        MobileNetV2-ResNet50 0.01 8 5 1
        ShuffleV2-resnet32x4 0.01 8 5 1
    """
    expected = {
        name: tuple(map(float, numbers)) for name, *numbers in map(str.split, table.split("\n")[1:-1])
    }
    found = {
        name: (pair.rate, pair.temperature, pair.feature_weight, pair.path_weight)
        for name, pair in cifar100.PAIRS.items()
    }
    assert found == expected
    assert cifar100.PUBLISHED == (240, 64, (150, 180, 210), 20, 5e-4)


def test_the_pairs_of_imagenet_are_those_of_the_paper():
    first, second = imagenet.PAIRS.values()
    assert first[:2] == ("resnet18IN", "resnet34IN")
    assert second[:2] == ("MBIN", "resnet50IN")
    assert (first.rate, first.temperature, first.feature_weight, first.path_weight) == (0.1, 1.0, 0.02, 1.0)
    assert (second.rate, second.temperature, second.feature_weight, second.path_weight) == (0.1, 1.0, 5, 1)
    assert imagenet.PUBLISHED == (100, 256, (30, 60, 90), 5, 1e-4)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name not in LIGHT else []) for name in cifar100.PAIRS],
)
def test_every_pair_of_cifar_100_runs(name, tmp_path):
    pair = cifar100.PAIRS[name]
    files.cifar100(tmp_path, images=4, test_images=3)
    teacher = files.checkpoint(tmp_path / "teacher.pth", pair.teacher)
    arguments = ["--pair", name, "--data", str(tmp_path), "--teacher", str(teacher), "--batch", "2"]
    result, rows, student = run(tmp_path / "out", [*arguments, "--epochs", "1"])
    assert [row["epoch"] for row in rows] == ["1"]
    assert float(rows[0]["rate"]) == pair.rate
    assert 0 < float(rows[0]["loss"]) < 1e6
    assert result["best"] == result["last"] == result["epochs"][0]
    assert result["published, unverified here, %"]["fcfd"] == pair.published[2]
    torch.manual_seed(0)
    fresh = NETWORKS[pair.student].build(num_classes=100)
    moved = [key for key, tensor in fresh.state_dict().items() if not torch.equal(tensor, student[key])]
    assert moved == list(student), "every weight has learned, every statistic was written"
    fresh.load_state_dict(student)


@pytest.mark.parametrize(
    "name", ["resnet18-resnet34", pytest.param("MobileNetV1-resnet50", marks=pytest.mark.slow)]
)
def test_every_pair_of_imagenet_runs(name, tmp_path):
    files.imagenet(tmp_path, train=2, val=1)
    pair = imagenet.PAIRS[name]
    teacher = files.checkpoint(tmp_path / "teacher.pth", pair.teacher, classes=2, under=None)
    arguments = ["--pair", name, "--data", str(tmp_path), "--teacher", str(teacher), "--batch", "2"]
    small = ["--epochs", "1", "--pixels", "32", "--workers", "0"]
    result, rows, student = run(tmp_path / "out", arguments + small, imagenet.main)
    assert result["settings"]["classes"] == 2
    assert result["settings"]["views"] == "random windows at 32 pixels, flipped"
    assert 0 < float(rows[0]["loss"]) < 1e6
    NETWORKS[pair.student].build(num_classes=2).load_state_dict(student)


# Methods


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method, small, tmp_path):
    result, rows, _ = run(tmp_path / "out", [*small, "--method", method, "--epochs", "1", "--batch", "8"])
    assert result["settings"]["method"] == method
    assert 0 < float(rows[0]["loss"]) < 1e6


def test_weights_and_warm_ups_of_the_methods():
    pair = Pair("a", "b", (None, None, None), 0.1, 4.0, feature_weight=5.0, path_weight=0.2, dkd=(4.0, 6.0))
    now = Now(5, ("ssttt", "ttsss"), warm=0.1, crossed=0.3)

    def weights(method):
        return {name: round(term.weight, 9) for name, term in METHODS[method](pair, now).items()}

    kd = {"label": 1, "kl/student": 1}
    appearance = dict.fromkeys(("feature/ss>t", "feature/sss>t", "feature/ssss>t", "pooled/ssss>t"), 0.5)
    features, divergences = ("feature/sst", "feature/sstt", "pooled/sstt"), ("kl/ssttt", "kl/ttsss")
    assert weights("label") == {"label": 1}
    assert weights("kd") == kd
    assert weights("hint") == {"label": 1, "hint/sss>t": 100}
    assert weights("hints") == kd | appearance
    assert weights("dkd") == {"label": 1, "dkd": 0.1}
    assert weights("dist") == {"label": 1, "dist": 2}
    published = dict.fromkeys(features, 0.5) | dict.fromkeys(divergences, 0.2)
    assert weights("fcfd") == kd | appearance | published
    warmed = dict.fromkeys(features, 0.15) | dict.fromkeys(divergences, 0.06)
    assert weights("fcfd-warmed") == kd | appearance | warmed
    assert weights("fcfd-warmed+dkd") == {**kd, "kl/student": 0} | appearance | warmed | {"dkd": 0.1}
    assert weights("fcfd-warmed+dist") == kd | appearance | warmed | {"dist": 2}
    only_into_the_student = METHODS["fcfd"](pair, now._replace(paths=("ttsss",)))
    assert only_into_the_student.keys() == (hints(pair, now) | {"kl/ttsss": 0}).keys()


@pytest.mark.parametrize("method, crossed", [("fcfd", 1.0), ("fcfd-warmed", 0.3)])
def test_fcfd_is_the_library_s(method, crossed):
    """The terms are those of `losses.fcfd`, all that crossed paths compare by a factor."""
    pair = TINY._replace(feature_weight=3.0, temperature=2.0)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(100, (4,))
    cut = {}
    for letter, name in (("s", pair.student), ("t", pair.teacher)):
        build, at = NETWORKS[name]
        cut[letter] = fcfd.split(build(), at=at, example=images[:2])
    nets = fcfd.link(cut, example=images[:2], first=2)
    paths = ("ssttt", "ttsss")
    terms = METHODS[method](pair, Now(5, paths, warm=0.1, crossed=crossed))
    found, _ = fcfd.objective(terms, *nets.columns, {"": images, "Labels": labels})
    factors = dict.fromkeys(recipes.function(5, paths), crossed)
    weights = {"feature_weight": 0.3, "path_weight": 0.5, "temperature": 2.0}
    expected, _ = losses.fcfd(
        *nets.columns,
        images,
        labels,
        paths=paths,
        change=lambda terms: fcfd.scaled(terms, factors),
        **weights,
    )
    torch.testing.assert_close(found, expected)


def test_an_interruption_says_how_to_go_on(small, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "updated", interrupted)
    with pytest.raises(SystemExit) as exit:
        run(tmp_path / "out", small)
    assert exit.value.code == 130
    assert f"goes on from the last checkpoint in {tmp_path / 'out'}" in capsys.readouterr().err


def test_schedules_keep_their_proportions():
    assert cifar100.PUBLISHED.of_length(24) == (24, 64, (15, 18, 21), 2, 5e-4)
    pair, short = cifar100.PAIRS["vgg8-vgg13"], cifar100.PUBLISHED.of_length(24)
    assert [trainer.rate(pair, short, epoch) for epoch in (0, 14, 15, 18, 23)] == pytest.approx(
        [0.05, 0.05, 5e-3, 5e-4, 5e-5]
    )


def test_the_label_needs_no_teacher_and_the_others_say_so(small, tmp_path, capsys):
    without = [argument for argument in small if argument not in ("--teacher", small[5])]
    result, _, _ = run(tmp_path / "label", [*without, "--method", "label", "--epochs", "1"])
    assert result["teacher_top1"] is None
    with pytest.raises(SystemExit):
        run(tmp_path / "kd", [*without, "--method", "kd"])
    assert "the method kd learns from a teacher; name its file: --teacher" in capsys.readouterr().err


# Going on


def test_a_killed_run_goes_on_to_the_last_bit(small, tmp_path):
    arguments = [*small, "--epochs", "4", "--save-steps", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected, rows, _ = run(whole, arguments)
    program = (
        "import sys; from benchmarks import cifar100; from tests.benchmarks.test_published import TINY; "
        "cifar100.PAIRS['tiny'] = TINY; cifar100.main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--out", str(killed)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 120:
        if (killed / "epochs.csv").exists() and contents(killed)["state"]["step"] > 0:
            break  # in the middle of the second epoch, or later
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    stopped = contents(killed)["state"]
    assert 1 <= stopped["epoch"] < 4
    result, again, _ = run(killed, arguments)
    assert again == rows
    assert result["epochs"] == expected["epochs"]
    assert_same(contents(killed), contents(whole))


def test_a_finished_run_is_not_run_again(small, tmp_path, monkeypatch):
    before = run(tmp_path / "out", [*small, "--epochs", "1"])
    monkeypatch.setattr(trainer, "updated", None)
    after = run(tmp_path / "out", [*small, "--epochs", "1"])
    assert_same(after[2], before[2])
    assert after[1] == before[1]


def test_a_folder_of_another_run_is_refused(small, tmp_path, capsys):
    arguments = [*small, "--epochs", "1"]
    run(tmp_path / "out", arguments)
    kept = (tmp_path / "out" / "checkpoint.pt").read_bytes()
    changes = {
        ("--seed", "1"): "seed = 0, not 1",
        ("--method", "kd"): "method = 'fcfd', not 'kd'",
        ("--teacher-mode", "eval"): "teacher_mode = 'train', not 'eval'",
        ("--precision", "bf16"): "precision = 'fp32', not 'bf16'",
        ("--batch", "8"): "schedule = ",
        ("--teacher", str(files.checkpoint(tmp_path / "another", "resnet14", seed=2))): "teacher_sha256 = ",
    }
    for changed, name in changes.items():
        with pytest.raises(SystemExit):
            run(tmp_path / "out", [*arguments, *changed])
        said = capsys.readouterr().err
        assert f"holds a run with {name}" in said
        assert "give another folder with --out" in said
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == kept


def test_an_interrupted_write_leaves_the_file_before(tmp_path, monkeypatch):
    parts = {"step": torch.nn.Linear(1, 1)}
    runs.save(tmp_path, {"seed": 0}, {"epoch": 1}, parts)

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.save(tmp_path, {"seed": 0}, {"epoch": 2}, parts)
    assert runs.resume_(tmp_path, {"seed": 0}, parts) == {"epoch": 1}


# Several processes


def _one_of_two(rank, port, arguments, out):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cifar100.PAIRS["tiny"] = TINY
    cifar100.main([*arguments, "--out", out])


def _by_hand(arguments, steps):
    """One process that takes both halves of each batch by turns, and averages: no trainer, no DDP."""
    options = trainer.parser("", "test", cifar100.PAIRS, cifar100.PUBLISHED).parse_args(arguments)
    data, device = cifar100.data(options.data), torch.device("cpu")
    student, teacher = trainer.models(TINY, data, options, device)
    nets = trainer.linked(TINY, student, teacher, data, options, device)
    learned = [*student.parameters(), *nets.bridges.parameters()]
    optimizer = torch.optim.SGD(learned, 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    student.train(), teacher.train()
    halves = [trainer.order(16, 4, 0, 0, trainer.Place(device, rank, 2)) for rank in (0, 1)]
    views = [list(data.train(half, seed=0, epoch=0)) for half in halves]
    warm = schedules.linear_warmup(0, steps=20 / 240)
    for step in range(steps):
        paths = fcfd.draw(nets.crossings, 2, seed=0, step=step)
        weights = {"feature_weight": 5.0 * warm, "path_weight": 0.5}
        found = [losses.fcfd(*nets.columns, *half[step], paths=paths, **weights) for half in views]
        optimizer.zero_grad()
        (sum(loss for loss, _ in found) / 2).backward()
        optimizer.step()
        one, other = (aux.buffers["s"] for _, aux in found)
        fcfd.write_buffers_(
            student,
            {
                name: (one[name] + other[name]) / 2 if one[name].is_floating_point() else one[name]
                for name in one
            },
        )
    return student.state_dict()


@pytest.mark.slow
def test_two_processes_are_one_that_averages_their_halves(small, tmp_path):
    arguments = [*small, "--epochs", "1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_one_of_two, (port, arguments, str(tmp_path / "two")), nprocs=2)
    student = torch.load(tmp_path / "two" / "student.pth", weights_only=True)
    assert json.loads((tmp_path / "two" / "result.json").read_text())["processes"] == 2
    for name, expected in _by_hand(arguments, steps=4).items():
        torch.testing.assert_close(student[name], expected, rtol=2e-5, atol=2e-6, msg=name)


def test_shares_are_a_partition_of_every_batch():
    places = [trainer.Place(torch.device("cpu"), rank, 2) for rank in (0, 1)]
    alone = trainer.order(11, 4, 0, 3, trainer.Place(torch.device("cpu")))
    assert sorted(torch.cat(alone).tolist()) == list(range(11))
    assert [len(batch) for batch in alone] == [4, 4, 3]
    shares = [trainer.order(11, 4, 0, 3, place) for place in places]
    assert [len(batch) for batch in shares[0]] == [2, 2, 1] == [len(batch) for batch in shares[1]]
    for whole, *parts in zip(alone, *shares, strict=True):
        together = torch.cat(parts).tolist()
        assert len({*together}) == len(together)
        assert {*together} <= {*whole.tolist()}
    assert not torch.equal(alone[0], trainer.order(11, 4, 0, 4, trainer.Place(torch.device("cpu")))[0])
    with pytest.raises(ValueError, match="a batch of 5 cannot be divided among 2 processes"):
        trainer.order(11, 5, 0, 0, places[0])


# Half precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs(precision, small, tmp_path):
    result, rows, _ = run(
        tmp_path / "out", [*small, "--method", "kd", "--precision", precision, "--epochs", "1"]
    )
    assert result["settings"]["precision"] == precision
    assert 0 < float(rows[0]["loss"]) < 1e6


def test_a_skipped_step_writes_no_statistics(small, tmp_path, monkeypatch):
    """The first step overflows; the other three count."""
    taken = []
    scaler = torch.amp.GradScaler

    def overflowing(device, enabled):
        return scaler(device, enabled=enabled, init_scale=2.0**40, backoff_factor=2.0**-34)

    def recorded(loss, optimizer, scaler, updated=trainer.updated):
        taken.append(updated(loss, optimizer, scaler))
        return taken[-1]

    monkeypatch.setattr(torch.amp, "GradScaler", overflowing)
    monkeypatch.setattr(trainer, "updated", recorded)
    arguments = [*small, "--method", "label", "--precision", "fp16", "--epochs", "1"]
    _, rows, student = run(tmp_path / "out", arguments)
    assert taken == [False, True, True, True]
    assert rows[0]["skipped"] == "1"
    assert student["bn1.num_batches_tracked"] == 3


def test_a_run_that_diverges_stops(small, tmp_path, monkeypatch):
    monkeypatch.setitem(cifar100.PAIRS, "tiny", TINY._replace(rate=1e30))
    with pytest.raises(
        FloatingPointError, match=r"the loss of epoch 1 is (nan|inf); 0 of 4 steps were skipped"
    ):
        run(tmp_path / "out", [*small, "--epochs", "1"])


# Files


def test_the_official_format_is_read(tmp_path):
    files.cifar100(tmp_path, images=5, test_images=2, seed=3)
    own = tmp_path / "cifar-100-python"
    content = pickle.loads((own / "train").read_bytes(), encoding="bytes")
    assert sorted(content) == [b"batch_label", b"coarse_labels", b"data", b"filenames", b"fine_labels"]
    for folder in (tmp_path, own):
        (images, labels), (test_images, test_labels) = cifar100.read(folder)
        assert labels.tolist() == content[b"fine_labels"]
        assert np.array_equal(images.numpy(), content[b"data"].reshape(5, 3, 32, 32))
        assert test_images.shape == (2, 3, 32, 32)
        assert test_labels.shape == (2,)
    assert not cifar100.data(tmp_path).whole


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "no file of CIFAR-100"),
        (b"<html>", "no file of CIFAR-100"),
        (pickle.dumps([1], 2), "a list in place of a dict"),
        (pickle.dumps({"fine_labels": [1]}, 2), "'data'"),
        (pickle.dumps(_Evil(), 2), "mkdir, which no file of CIFAR-100 does"),
        (
            files.as_python2({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1]}),
            r"\[2, 3072\] and 1",
        ),
        (files.as_python2({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [100]}), "from 0 to 99"),
        (files.as_python2({b"data": np.zeros((1, 3072)), b"fine_labels": [1]}), "float64"),
        (files.as_python2({b"data": np.zeros((1, 784), np.uint8), b"fine_labels": [1]}), r"\[1, 784\]"),
    ],
)
def test_a_file_of_another_kind_is_refused(content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        cifar100.read(tmp_path)
    assert not (tmp_path / "made by a pickle").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"train and test are not in .*Get cifar-100-python.tar.gz"):
        cifar100.read(tmp_path / "nowhere")
    (tmp_path / "cifar-100-python.tar.gz").touch()
    with pytest.raises(ValueError, match=r"Unpack .*cifar-100-python.tar.gz, and name that folder"):
        cifar100.read(tmp_path)
    files.cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "test").unlink()
    with pytest.raises(ValueError, match="train and test are not in"):
        cifar100.read(tmp_path)


def test_missing_pictures_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"train has no folder for each class. Name with --data the folder"):
        imagenet.read(tmp_path)
    files.imagenet(tmp_path)
    classes, (pictures, labels), (_, val_labels) = imagenet.read(tmp_path)
    assert classes == ["n01440764", "n02119789"]
    assert labels == [0] * 4 + [1] * 4
    assert val_labels == [0, 0, 1, 1]
    assert pictures[4].parent.name == "n02119789"
    for picture in pictures[:4]:
        picture.unlink()
    with pytest.raises(ValueError, match="n01440764 has no picture"):
        imagenet.read(tmp_path)
    pictures[0].parent.rmdir()
    with pytest.raises(ValueError, match="differ in 1 classes, 'n01440764' among them"):
        imagenet.read(tmp_path)
    for each in (tmp_path / "val").rglob("*.JPEG"):
        each.rename(tmp_path / "val" / each.name)
    for each in list((tmp_path / "val").iterdir()):
        if each.is_dir():
            each.rmdir()
    with pytest.raises(ValueError, match="val has no folder for each class. Sort its pictures"):
        imagenet.read(tmp_path)


def test_a_broken_picture_is_named(tmp_path):
    files.imagenet(tmp_path)
    data = imagenet.data(tmp_path, pixels=32, workers=0)
    broken = next((tmp_path / "train").rglob("*.JPEG"))
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=f"{broken.name} cannot be read"):
        list(data.train([torch.arange(8)], seed=0, epoch=0))


@pytest.mark.parametrize("under", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_public_checkpoints_load(under, prefix, tmp_path):
    model = NETWORKS["resnet8"].build()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(
        state if under is None else {"epoch": 240, under: state, "best_acc": torch.tensor(1.0)},
        tmp_path / "t",
    )
    other = NETWORKS["resnet8"].build()
    runs.load_strictly_(other, tmp_path / "t")
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    "content, said",
    [
        ({"model": NETWORKS["resnet14"].build().state_dict()}, "does not fit.*Unexpected key"),
        (NETWORKS["resnet8"].build(num_classes=10).state_dict(), "does not fit.*size mismatch for fc.weight"),
        ({"epoch": 3}, "does not fit.*Missing key"),
        ([1], "a list in place of a state dict"),
        (NETWORKS["resnet8"].build(), "more than tensors and plain data"),
    ],
)
def test_another_checkpoint_is_refused(content, said, tmp_path):
    torch.save(content, tmp_path / "t.pth")
    model = NETWORKS["resnet8"].build()
    with pytest.raises(ValueError, match=f"(?s){said}"):
        runs.load_strictly_(model, tmp_path / "t.pth")


def test_a_missing_or_damaged_checkpoint_is_refused(tmp_path):
    model = NETWORKS["resnet8"].build()
    with pytest.raises(ValueError, match=r"no file .*ckpt_epoch_240.pth.*resnet34-b627a593.pth"):
        runs.load_strictly_(model, tmp_path / "t.pth")
    (tmp_path / "t.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="or is damaged"):
        runs.load_strictly_(model, tmp_path / "t.pth")


# Views


def test_crops_are_windows_of_the_padded_image():
    source = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=source)
    corners = torch.tensor([[0, 0], [8, 8], [4, 4], [4, 4], [1, 7], [8, 0]])
    flips = torch.tensor([False, False, False, True, True, False])
    for image, (top, left), flip, found in zip(
        images, corners, flips, cifar100.cropped(images, corners, flips), strict=True
    ):
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
        window = padded[:, top : top + 32, left : left + 32]
        assert np.array_equal(found.numpy(), window[:, :, ::-1] if flip else window)
    assert torch.equal(cifar100.cropped(images, corners, flips)[2], images[2])


def test_images_are_normalised_by_channel():
    images = torch.tensor([[0, 51, 255]], dtype=torch.uint8).view(1, 3, 1, 1)
    found = trainer.normalised(images, (0.5, 0.4, 0.2), (0.5, 0.1, 0.4))
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, -2.0, 2.0]))


def test_a_view_depends_on_seed_epoch_and_image_alone(tmp_path):
    files.cifar100(tmp_path)
    files.imagenet(tmp_path)
    for data in (cifar100.data(tmp_path), imagenet.data(tmp_path, pixels=32, workers=0)):
        [(all_at_once, _)] = data.train([torch.arange(8)], seed=0, epoch=2)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            [_, (one, _)] = data.train([torch.arange(2), torch.tensor([5])], seed=0, epoch=2)
        assert torch.equal(one[0], all_at_once[5])
        [(other, _)] = data.train([torch.arange(8)], seed=0, epoch=3)
        assert not torch.equal(other, all_at_once)


def test_reading_pictures_in_processes_changes_nothing(tmp_path):
    files.imagenet(tmp_path)
    here, there = (imagenet.data(tmp_path, pixels=32, workers=workers) for workers in (0, 2))
    before = torch.get_rng_state()
    batches = [torch.tensor([3, 1]), torch.tensor([6, 2])]
    for one, other in zip(
        here.train(batches, seed=0, epoch=0), there.train(batches, seed=0, epoch=0), strict=True
    ):
        assert_same([*one], [*other])
    assert torch.equal(torch.get_rng_state(), before), "no draw from torch's own generator"


@pytest.mark.parametrize("size", [(300, 257), (257, 300), (500, 90), (64, 64), (31, 200)])
def test_the_central_view_is_torchvisions(size):
    torchvision_cpu.prepare()
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)
    assert np.array_equal(np.asarray(imagenet.central_view(image, "", 224)), np.asarray(theirs))


def test_random_views_are_windows_of_the_picture():
    """Of a picture whose pixels name their place, a view's corners name the window."""
    across, down = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.stack([across, down, 0 * down], 2).astype(np.uint8))
    flipped, areas = 0, []
    for key in range(300):
        view = np.asarray(imagenet.random_view(image, str(key), 32)).astype(int)
        width, height = view[0, -1, 0] - view[0, 0, 0], view[-1, 0, 1] - view[0, 0, 1]
        flipped += width < 0
        areas.append(abs(width) * height * (32 / 31) ** 2 / 20_000)
        assert 3 / 4 * 0.85 < abs(width) / height < 4 / 3 * 1.15
    assert 110 < flipped < 190
    assert 0.06 < min(areas) < 0.2
    assert max(areas) < 0.72, "the largest window of a ratio of at most 4/3 in 2:1 is two thirds"
    wide = Image.fromarray(np.zeros((10, 400, 3), np.uint8))
    assert imagenet._middle(wide.size) == (193, 0, 206, 10)
    assert imagenet.random_view(wide, "0", 32).size == (32, 32)
