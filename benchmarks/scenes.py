"""Images with boxes: emoji on photographs, and folders in COCO's format.

Scenes are made, not stored: emoji art (`npm pack emoji-datasource-google`, Apache-2.0) on photographs that
scikit-image and scikit-learn bring along. Drawings and photographs of the test scenes are in no training
scene. A scene is a function of a seed and its number.
"""

import json
import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLASSES = (
    "Smileys & Emotion",
    "Animals & Nature",
    "Food & Drink",
    "Activities",
    "Travel & Places",
    "Objects",
)
PHOTOGRAPHS = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/retina.jpg"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
    "test": (
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/rocket.jpg"),
        ("sklearn", "datasets/images/china.jpg"),
    ),
}
SIDES = (18, 56)  # of drawings, in a scene of 128 pixels
SHARED = 0.1  # of two boxes, at most

Sample = tuple[Tensor, dict[str, Tensor]]
"""An image `[3, height, width]` from 0 to 1, and its boxes and labels."""


class Art(NamedTuple):
    """What scenes are made of.

    Args:
        drawings: Emoji with transparency, by class.
        photographs: Backgrounds.
    """

    drawings: list[list[Image.Image]]
    photographs: list[Image.Image]


# Scenes


def art(folder: Path, part: str) -> Art:
    """Every fifth drawing of a class is for the test scenes, the others for training.

    Args:
        folder: Where the package lies unpacked: it holds `emoji.json` and `img/google/64`.
        part: `"train"` or `"test"`.

    Raises:
        ValueError: A file is missing; the text says how to get it.
    """
    listing = folder / "emoji.json"
    if not listing.is_file():
        raise ValueError(
            f"scenes: {folder} has no emoji.json. Run `npm pack emoji-datasource-google`, unpack it, and "
            "name its folder `package` with --emoji."
        )
    drawings: list[list[Image.Image]] = [[] for _ in CLASSES]
    for entry in sorted(json.loads(listing.read_text(encoding="utf-8")), key=lambda one: one["unified"]):
        file = folder / "img" / "google" / "64" / entry["image"]
        if entry["category"] in CLASSES and file.is_file():
            drawings[CLASSES.index(entry["category"])].append(Image.open(file).convert("RGBA"))
    for label, own in enumerate(drawings):
        drawings[label] = [one for at, one in enumerate(own) if (at % 5 == 0) == (part == "test")]
        if not drawings[label]:
            raise ValueError(f"scenes: {folder}/img/google/64 has too few drawings of {CLASSES[label]!r}.")
    return Art(drawings, [_photograph(*where) for where in PHOTOGRAPHS[part]])


def _photograph(package: str, name: str) -> Image.Image:
    spec = find_spec(package)
    file = Path(spec.origin or "").parent / name if spec is not None else Path(name)
    if not file.is_file():
        raise ValueError(
            f"scenes: there is no photograph {name} of {package}; install scikit-image and -learn."
        )
    return Image.open(file).convert("RGB")


def scene(made_of: Art, key: str, side: int = 128) -> Sample:
    """One to four drawings on a piece of a photograph; a function of its arguments."""
    source = random.Random(key)
    photograph = source.choice(made_of.photographs)
    window = source.randint(side, min(photograph.size))
    left, top = (source.randint(0, whole - window) for whole in photograph.size)
    canvas = photograph.crop((left, top, left + window, top + window)).resize((side, side))
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(source.randint(1, 4)):
        label = source.randrange(len(CLASSES))
        drawing = source.choice(made_of.drawings[label])
        size = round(source.uniform(*SIDES) * side / 128)
        drawing = drawing.resize((size, size)).rotate(source.uniform(-20, 20))
        if source.random() < 0.5:
            drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x, y = source.randint(0, side - size), source.randint(0, side - size)
        seen = drawing.getchannel("A").point([255 * (value > 64) for value in range(256)]).getbbox()
        if seen is None:
            continue
        box = (x + seen[0], y + seen[1], x + seen[2], y + seen[3])
        if all(_shared(box, other) <= SHARED for other in boxes):
            canvas.paste(drawing, (x, y), drawing)
            boxes.append(box)
            labels.append(label + 1)
    target = {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": torch.tensor(labels)}
    return tensor(canvas), {
        name: value.long() if name == "labels" else value for name, value in target.items()
    }


def _shared(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(width, 0) * max(height, 0) / min(areas)


def tensor(image: Image.Image) -> Tensor:
    """The pixels of a picture in colour, `[3, height, width]` from 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# COCO


class Coco:
    """A folder in COCO's format, as `samples[number]`: an image, its boxes and its labels.

    Args:
        folder: Holds `annotations/instances_<part>.json` and the images in `<part>`.
        part: `"train2017"` or `"val2017"`.

    Raises:
        ValueError: A file is missing, or a box names no category.
    """

    def __init__(self, folder: Path, part: str) -> None:
        listing = folder / "annotations" / f"instances_{part}.json"
        if not listing.is_file():
            raise ValueError(
                f"coco: there is no {listing}. Name with --data the folder that holds annotations/ and the "
                "images in train2017/ and val2017/."
            )
        content = json.loads(listing.read_text(encoding="utf-8"))
        labels = {one["id"]: at for at, one in enumerate(content["categories"], start=1)}
        self.classes = [one["name"] for one in content["categories"]]
        self.folder = folder / part
        self.files = {one["id"]: one["file_name"] for one in content["images"]}
        self.objects: dict[int, list[tuple[list[float], int]]] = {number: [] for number in self.files}
        for one in content["annotations"]:
            if one["category_id"] not in labels or one["image_id"] not in self.files:
                raise ValueError(f"coco: annotation {one.get('id')} of {listing} names no image or category.")
            x, y, width, height = one["bbox"]
            if not one.get("iscrowd") and min(width, height) > 0:
                box = [x, y, x + width, y + height]
                self.objects[one["image_id"]].append((box, labels[one["category_id"]]))
        self.numbers = sorted(self.files)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at: int) -> Sample:
        number = self.numbers[at]
        file = self.folder / self.files[number]
        if not file.is_file():
            raise ValueError(f"coco: there is no image {file}, which the annotations name.")
        found = self.objects[number]
        boxes = torch.tensor([box for box, _ in found], dtype=torch.float32).view(-1, 4)
        labels = torch.tensor([label for _, label in found], dtype=torch.int64)
        return tensor(Image.open(file).convert("RGB")), {"boxes": boxes, "labels": labels}


def write_coco(folder: Path, part: str, samples: Sequence[Sample], classes: Sequence[str]) -> None:
    """Write samples as a folder in COCO's format: how tests, and users with other data, make one."""
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": at, "name": name} for at, name in enumerate(classes, start=1)]
    (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number, (image, target) in enumerate(samples):
        name = f"{number:06}.png"
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / part / name)
        content["images"].append(
            {"id": number, "file_name": name, "height": image.shape[1], "width": image.shape[2]}
        )
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            identity = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": label}
            content["annotations"].append({**identity, **box})
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content), encoding="utf-8")
