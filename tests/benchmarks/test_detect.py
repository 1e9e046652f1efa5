"""The detection run: scenes and folders in COCO's format, resume, several processes, and its commands."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

NEEDED = ("torchvision", "torchmetrics", "faster_coco_eval", "skimage", "sklearn")
if missing := [name for name in NEEDED if find_spec(name) is None]:
    pytest.skip(f"{', '.join(missing)} not installed", allow_module_level=True)

from benchmarks import crowns, detect, detect_report, scenes  # noqa: E402

TINY = detect.Setting(
    scenes=8, test_scenes=4, side=64, teacher_steps=3, steps=4, batch=2, evaluations=2, rate=0.01
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The package's layout with drawings of our own."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "img" / "google" / "64").mkdir(parents=True)
    listing = []
    for label, category in enumerate(scenes.CLASSES):
        for at in range(10):
            name = f"{label}{at}.png"
            image = Image.new("RGBA", (64, 64))
            ImageDraw.Draw(image).ellipse((8, 8, 55, 40 + at), fill=(40 * label, 250 - 20 * at, 90, 255))
            image.save(folder / "img" / "google" / "64" / name)
            listing.append({"unified": f"{label}-{at}", "image": name, "category": category})
    listing.append({"unified": "flag", "image": "none.png", "category": "Flags"})
    (folder / "emoji.json").write_text(json.dumps(listing))
    return folder


def test_scenes_are_functions_of_their_key_and_their_boxes_hold_drawings(emoji):
    art = scenes.art(emoji, "train")
    assert [len(own) for own in art.drawings] == [8] * 6, "every fifth drawing is for the test"
    image, target = scenes.scene(art, "train 3", 96)
    again, same = scenes.scene(art, "train 3", 96)
    assert torch.equal(image, again)
    assert torch.equal(target["boxes"], same["boxes"])
    assert image.shape == (3, 96, 96)
    counts = set()
    for at in range(12):
        image, target = scenes.scene(art, f"train {at}", 96)
        counts.add(len(target["boxes"]))
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 96)).all()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        for (x1, y1, x2, y2), label in zip(target["boxes"].int().tolist(), target["labels"], strict=True):
            middle = image[:, (y1 + y2) // 2, (x1 + x2) // 2] * 255
            assert abs(float(middle[0]) - 40 * (int(label) - 1)) < 25, "the drawing's own colour"
    assert counts > {1, 2}


def test_test_scenes_share_no_drawing_and_no_photograph(emoji):
    parts = [scenes.art(emoji, part) for part in ("train", "test")]
    colours = [{one.getpixel((32, 20)) for own in part.drawings for one in own} for part in parts]
    assert not colours[0] & colours[1]
    assert not {*scenes.PHOTOGRAPHS["train"]} & {*scenes.PHOTOGRAPHS["test"]}


VOC = """<annotation><object><name>Tree</name><bndbox>
<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"""


@pytest.fixture
def aerial(tmp_path, monkeypatch):
    """The package's layout with photographs of our own: one white tree on black in each."""
    (tmp_path / "deepforest" / "data").mkdir(parents=True)
    (tmp_path / "deepforest" / "__init__.py").touch()
    box = (30, 20, 49, 59)
    for name in (*crowns.PHOTOGRAPHS["train"], *crowns.PHOTOGRAPHS["test"]):
        image = Image.new("RGB", (150, 140))
        ImageDraw.Draw(image).rectangle(box, fill="white")
        image.save(tmp_path / "deepforest" / "data" / f"{name}.png")
        corners = (box[0], box[1], box[2] + 1, box[3] + 1)
        (tmp_path / "deepforest" / "data" / f"{name}.xml").write_text(VOC.format(*corners))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deepforest", raising=False)


def test_a_tile_has_the_boxes_of_which_half_is_seen(aerial):
    (one, _) = crowns.photographs("train")
    image, target = crowns.tile(one, 20, 30, 64)
    assert image.shape == (3, 64, 64)
    assert target["boxes"].tolist() == [[10, 0, 30, 30]]
    assert target["labels"].tolist() == [1]
    assert (image.mean(0)[:30, 10:30] == 1).all()
    assert image.sum() == 3 * 30 * 20, "the box is all that is white"
    assert crowns.tile(one, 20, 41, 64)[1]["boxes"].shape == (0, 4), "less than half is seen"


def test_training_tiles_are_functions_of_their_key_and_mirror_their_boxes(aerial):
    train = crowns.photographs("train")
    found = [crowns.training_tile(train, str(at), 64) for at in range(12)]
    for at, (image, target) in enumerate(found):
        assert torch.equal(image, crowns.training_tile(train, str(at), 64)[0])
        for x1, y1, x2, y2 in target["boxes"].int().tolist():
            assert (image[:, y1:y2, x1:x2] == 1).all()
    assert {len(target["boxes"]) for _, target in found} == {0, 1}


def test_held_out_tiles_lie_side_by_side(aerial):
    tiles = crowns.held_out_tiles(crowns.photographs("test"), 64)
    assert len(tiles) == 2 * 4
    assert sum(float(image.sum()) for image, _ in tiles) == 2 * 3 * 20 * 40


def test_what_is_missing_is_said(tmp_path):
    if find_spec("deepforest") is None:
        with pytest.raises(ValueError, match="run `pip install --no-deps deepforest==2.1.0`"):
            crowns.photographs("train")
    with pytest.raises(ValueError, match="has no emoji.json. Run `npm pack emoji-datasource-google`"):
        scenes.art(tmp_path, "train")
    with pytest.raises(ValueError, match="there is no .*instances_train2017.json. Name with --data"):
        scenes.Coco(tmp_path, "train2017")


def coco_folder(emoji, folder):
    art = scenes.art(emoji, "train")
    for part, count in (("train2017", 6), ("val2017", 2)):
        samples = [scenes.scene(art, f"{part} {at}", 64) for at in range(count)]
        samples[0][1].update(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        scenes.write_coco(folder, part, samples, scenes.CLASSES)
    return folder


def test_a_folder_in_cocos_format_reads_back(emoji, tmp_path):
    art = scenes.art(emoji, "train")
    samples = [scenes.scene(art, f"{at}", 64) for at in range(3)]
    scenes.write_coco(tmp_path, "val2017", samples, scenes.CLASSES)
    read = scenes.Coco(tmp_path, "val2017")
    assert len(read) == 3
    assert read.classes == list(scenes.CLASSES)
    for at, (image, target) in enumerate(samples):
        torch.testing.assert_close(read[at][0], image, atol=1e-6, rtol=0)
        torch.testing.assert_close(read[at][1]["boxes"], target["boxes"])
        assert torch.equal(read[at][1]["labels"], target["labels"])
    listing = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(listing.read_text())
    content["annotations"][0]["category_id"] = 99
    listing.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="names no image or category"):
        scenes.Coco(tmp_path, "val2017")
    content["annotations"][0] |= {"category_id": 1, "iscrowd": 1}
    listing.write_text(json.dumps(content))
    assert len(scenes.Coco(tmp_path, "val2017")[0][1]["boxes"]) == len(samples[0][1]["boxes"]) - 1


def test_every_method_reads_what_its_name_says():
    kinds = {name: {one.split("/")[0] for one in terms} for name, terms in detect.METHODS.items()}
    assert kinds["labels"] == {"label"}
    assert kinds["hints"] == {"label", "feature"}
    assert kinds["FCFD"] == {"label", "feature", "kl", "delta"}
    assert not [name for name in detect.METHODS["FCFD without crossings"] if name.endswith(("st", "ts"))]
    assert {"kl/st", "delta/st"} < {*detect.METHODS["crossed heads"]}


def run(emoji, folder, setting=TINY, method="FCFD", world=1):
    art = scenes.art(emoji, "train")
    data = [scenes.scene(art, f"{at}", 64) for at in range(8)]
    torch.manual_seed(0)
    teacher, student = detect.small_teacher(64, 6), detect.small_student(64, 6)
    result = detect.learn(
        folder, student, teacher, method, data, data[:2], seed=0, setting=setting, here=detect.Here(0, world)
    )
    return student, result


@pytest.mark.slow
def test_a_run_that_was_cut_short_goes_on_to_the_same_weights(emoji, tmp_path, monkeypatch):
    whole, result = run(emoji, tmp_path / "whole")
    assert {"AP50", "AP"} < {*result}
    steps = detect.distil_step
    calls = []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return steps(*arguments)

    monkeypatch.setattr(detect, "distil_step", stops)
    monkeypatch.setattr(detect, "KEEP", 2)
    with pytest.raises(KeyboardInterrupt):
        run(emoji, tmp_path / "cut")
    again, _ = run(emoji, tmp_path / "cut")
    assert len(calls) == 5, "two steps were kept"
    for own, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other)
    with pytest.raises(ValueError, match="holds a run with method = 'FCFD', not 'PKD'"):
        run(emoji, tmp_path / "cut", method="PKD")


@pytest.mark.slow
def test_the_quick_command_compares_all_methods(emoji, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detect, "QUICK", TINY)
    detect.main(["--emoji", str(emoji), "--quick", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "quick-scenes" / "detect.json").read_text())
    assert [one["method"] for one in results["runs"]] == list(detect.METHODS)
    assert all(0 <= one["AP"] <= one["AP50"] <= 1 for one in results["runs"])
    assert (tmp_path / "quick-scenes" / "detections.png").is_file()
    assert "beside labels" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_coco_is_one_command(emoji, tmp_path, processes):
    folder = coco_folder(emoji, tmp_path / "coco")
    launch = (
        ["-m"]
        if processes == 1
        else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    )
    size = ["--steps", "2", "--batch", "4", "--side", "64"]
    where = ["--data", str(folder), "--out", str(tmp_path / "runs")]
    command = [sys.executable, *launch, "benchmarks.detect", "--pair", "resnet50-mobilenet_v2", *size, *where]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)
    results = json.loads((tmp_path / "runs" / "coco" / "detect.json").read_text())
    assert results["pair"] == "resnet50-mobilenet_v2"
    assert 0 <= results["runs"][0]["AP50"] <= 1


def test_the_table_pairs_methods_by_their_seeds():
    runs = [
        {"method": method, "seed": seed, "AP50": (base + gain) / 100, "AP": 0.1, "cpu_seconds": 60.0}
        for method, gain in (("labels", 0.0), (detect_report.LONGER, 3.0), ("FCFD", 2.0))
        for seed, base in enumerate((20.0, 24.0, 28.0))
    ]
    results = {"runs": runs[::-1], "teacher": {"AP50": 0.4, "AP": 0.2}}
    longer = "+3.0 (+3.0 to +3.0), 3 of 3"
    fcfd = "+2.0 (+2.0 to +2.0), 3 of 3", "-1.0 (-1.0 to -1.0), 0 of 3"
    assert detect_report.summary(results) == [
        ("FCFD", "26.0 ± 4.0", "10.0 ± 0.0", *fcfd, "60"),
        (detect_report.LONGER, "27.0 ± 4.0", "10.0 ± 0.0", longer, "", "60"),
        ("labels", "24.0 ± 4.0", "10.0 ± 0.0", "", "", "60"),
        ("the teacher itself", "40.0", "20.0", "", "", ""),
    ]


def test_a_batch_that_cannot_be_filled_or_shared_is_refused(emoji, tmp_path):
    with pytest.raises(ValueError, match="8 images are less than a batch of 16; give --batch"):
        run(emoji, tmp_path, setting=TINY._replace(batch=16))
    with pytest.raises(ValueError, match="3 processes cannot share a batch of 2 evenly"):
        run(emoji, tmp_path, world=3)


def test_a_command_without_data_is_refused(capsys):
    with pytest.raises(SystemExit):
        detect.main([])
    assert (
        "give one of --emoji, the folder of emoji-datasource-google, --crowns, and --data"
        in capsys.readouterr().err
    )
