"""ImageNet, the two published pairs: `python -m benchmarks.imagenet --pair resnet18-resnet34 ...`.

Networks, optimizer, schedule and weights are those of the published code. Nothing here was run on ImageNet
itself: the tests run both pairs on small files of its layout.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import trainer
from .methods import Pair
from .trainer import Data, Schedule, normalised

PUBLISHED = Schedule(epochs=100, batch=256, milestones=(30, 60, 90), warmup=5, weight_decay=1e-4)

PAIRS = {
    "resnet18-resnet34": Pair(
        "resnet18IN",
        "resnet34IN",
        (73.31, 69.76, None),
        rate=0.1,
        temperature=1.0,
        feature_weight=0.02,
        dkd=(1.0, 0.5),
        dist=(1.0, 1.0),
    ),
    "MobileNetV1-resnet50": Pair(
        "MBIN",
        "resnet50IN",
        (76.13, None, None),
        rate=0.1,
        temperature=1.0,
        dkd=(1.0, 2.0),
        dist=(1.0, 1.0),
    ),
}

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = 224
PICTURES = (".jpeg", ".jpg", ".png")


# The files


def read(folder: Path) -> tuple[list[str], tuple[list[Path], list[int]], tuple[list[Path], list[int]]]:
    """The classes, and the pictures of `train/<class>/` and `val/<class>/` with their labels.

    Raises:
        ValueError: A folder is missing or empty, or the two differ in their classes.
    """
    classes = {part: _classes(folder / part) for part in ("train", "val")}
    if classes["train"] != classes["val"]:
        lacking = sorted({*classes["train"]} ^ {*classes["val"]})
        raise ValueError(
            f"imagenet: {folder / 'train'} and {folder / 'val'} differ in {len(lacking)} classes, "
            f"{lacking[0]!r} among them."
        )
    train, val = (_pictures(folder / part, classes["train"]) for part in ("train", "val"))
    return classes["train"], train, val


def _classes(folder: Path) -> list[str]:
    found = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    if not found:
        flat = folder.is_dir() and any(each.suffix.lower() in PICTURES for each in folder.iterdir())
        raise ValueError(
            f"imagenet: {folder} has no folder for each class. "
            + ("Sort its pictures into one each. " if flat else "")
            + "Name with --data the folder that holds train/<class>/ and val/<class>/."
        )
    return found


def _pictures(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = sorted(each for each in (folder / name).iterdir() if each.suffix.lower() in PICTURES)
        if not own:
            raise ValueError(f"imagenet: {folder / name} has no picture ({', '.join(PICTURES)}).")
        files += own
        labels += [label] * len(own)
    return files, labels


# The views


def random_view(image: Image.Image, key: str, pixels: int) -> Image.Image:
    """A window of random size and ratio, resized, half of the time mirrored; a function of its arguments.

    ```
    area   8 % to 100 % of the picture, uniform
    ratio  3/4 to 4/3 of width to height, uniform in its logarithm
    ```
    """
    source = random.Random(key)
    box = next(filter(None, (_window(image.size, source) for _ in range(10))), _middle(image.size))
    view = image.resize((pixels, pixels), Image.Resampling.BILINEAR, box=box)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if source.random() < 0.5 else view


def _window(size: tuple[int, int], source: random.Random) -> tuple[int, int, int, int] | None:
    area = size[0] * size[1] * source.uniform(0.08, 1.0)
    ratio = math.exp(source.uniform(math.log(3 / 4), math.log(4 / 3)))
    width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if not (0 < width <= size[0] and 0 < height <= size[1]):
        return None
    left, top = source.randint(0, size[0] - width), source.randint(0, size[1] - height)
    return left, top, left + width, top + height


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest window in the middle of a ratio from 3/4 to 4/3."""
    width, height = min(size[0], round(size[1] * 4 / 3)), min(size[1], round(size[0] * 4 / 3))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def central_view(image: Image.Image, key: str, pixels: int) -> Image.Image:
    """The middle of the picture, its shorter side resized to 8/7 of the view's."""
    short = pixels * 256 // 224
    width, height = (short * side // min(image.size) for side in image.size)
    left, top = round((width - pixels) / 2), round((height - pixels) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + pixels, top + pixels))


class Pictures(Dataset[tuple[Tensor, int]]):
    """Views of pictures. A view is a function of the picture and of a key alone, in whatever process."""

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int],
        view: Callable[[Image.Image, str, int], Image.Image],
        key: str,
        pixels: int,
    ) -> None:
        self.files, self.labels, self.view, self.key, self.pixels = files, labels, view, key, pixels

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = Image.open(self.files[index]).convert("RGB")
        except OSError as error:
            raise ValueError(f"imagenet: {self.files[index]} cannot be read: {error}.") from error
        view = self.view(image, f"{self.key}:{index}", self.pixels)
        channels = torch.from_numpy(np.array(view)).permute(2, 0, 1)
        return normalised(channels, MEAN, DEVIATION), self.labels[index]


def data(folder: Path, *, pixels: int, workers: int) -> Data:
    """What the trainer reads."""
    classes, train, test = read(folder)

    def loader(pictures: Pictures, batches: Iterable[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
        return DataLoader(
            pictures,
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or else each loader would draw from torch's own
        )

    def trained(batches: Iterable[Tensor], *, seed: int, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return loader(Pictures(*train, random_view, f"{seed}:{epoch}", pixels), batches)

    tested = partial(loader, Pictures(*test, central_view, "", pixels))
    counts = len(train[0]), len(test[0])
    views = f"random windows at {pixels} pixels, flipped"
    return Data(len(classes), *counts, counts == (1_281_167, 50_000), views, trained, tested)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = trainer.parser("python -m benchmarks.imagenet", str(__doc__), PAIRS, PUBLISHED)
    parser.add_argument("--pixels", type=int, default=PIXELS, help="side of a view (default %(default)s)")
    parser.add_argument("--workers", type=int, default=8, help="processes that read pictures (default 8)")
    options = parser.parse_args(arguments)
    read = partial(data, options.data, pixels=options.pixels, workers=options.workers)
    trainer.main(parser, options, PAIRS, PUBLISHED, read)


if __name__ == "__main__":
    main()
