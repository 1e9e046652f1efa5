"""CIFAR-100, the ten published pairs: `python -m benchmarks.cifar100 --pair resnet8x4-resnet32x4 ...`.

Networks, optimizer, schedule and weights are those of the published code. Nothing here was run on CIFAR-100
itself: the tests run every pair on small files of its format.
"""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import trainer
from .methods import Pair
from .trainer import Data, Schedule, normalised

PUBLISHED = Schedule(epochs=240, batch=64, milestones=(150, 180, 210), warmup=20, weight_decay=5e-4)

PAIRS = {
    f"{pair.student}-{pair.teacher}": pair
    for pair in (
        Pair("resnet8x4", "resnet32x4", (79.42, 72.50, 76.62), 0.05),
        Pair("resnet20", "resnet56", (72.34, 69.06, 71.96), 0.05, feature_weight=0.02, dkd=(4.0, 2.0)),
        Pair("wrn_16_2", "wrn_40_2", (75.61, 73.26, 76.43), 0.05, path_weight=0.2, dkd=(4.0, 6.0)),
        Pair("wrn_40_1", "wrn_40_2", (75.61, 71.98, 75.46), 0.05, dkd=(4.0, 6.0)),
        Pair("vgg8", "vgg13", (74.64, 70.36, 75.22), 0.05, dkd=(4.0, 6.0)),
        Pair("ShuffleV1", "resnet32x4", (79.42, 70.50, 78.12), 0.01, temperature=8.0),
        Pair("ShuffleV1", "wrn_40_2", (75.61, 70.50, 77.99), 0.01),
        Pair("MobileNetV2", "vgg13", (74.64, 64.60, 70.65), 0.01, dkd=(4.0, 6.0)),
        Pair("MobileNetV2", "ResNet50", (79.34, 64.60, 71.00), 0.01, temperature=8.0),
        Pair("ShuffleV2", "resnet32x4", (79.42, 71.82, 78.18), 0.01, temperature=8.0),
    )
}

MEAN, DEVIATION = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
PADDING = 4
FOLDER, FILES = "cifar-100-python", ("train", "test")


# The files


class _Plain(pickle.Unpickler):
    """Reads what the archive holds, arrays in plain containers, and can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "_reconstruct": np.empty(0).__reduce__()[0],
            "ndarray": np.ndarray,
            "dtype": np.dtype,
        }
        if module.partition(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no file of CIFAR-100 does")


def read(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The official Python files as bytes `[images, 3, 32, 32]` and fine labels, of training and test.

    Args:
        folder: The unpacked `cifar-100-python`, or the folder that holds it.

    Raises:
        ValueError: A file is missing or is not of the format.
    """
    found = next((each for each in (folder, folder / FOLDER) if (each / FILES[0]).is_file()), None)
    if found is None or not (found / FILES[1]).is_file():
        archive = next((each for each in folder.glob(f"{FOLDER}*.tar*")), None) if folder.is_dir() else None
        way_out = (
            f"Unpack {archive}" if archive else f"Get {FOLDER}.tar.gz, CIFAR-100's Python version, unpack"
        )
        raise ValueError(
            f"cifar100: the files {' and '.join(FILES)} are not in {folder}, nor in {folder / FOLDER}. "
            f"{way_out}, and name that folder with --data."
        )
    train, test = (_part(found / name) for name in FILES)
    return train, test


def _part(file: Path) -> tuple[Tensor, Tensor]:
    try:
        with file.open("rb") as stream:
            content = _loaded(stream)
        pixels, labels = content["data"], content["fine_labels"]
    except (pickle.UnpicklingError, EOFError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"cifar100: {file} is no file of CIFAR-100 in Python's format: {error}.") from error
    whole = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (3072,)
    if not whole or len(labels) != len(pixels) or not {*labels} <= {*range(100)}:
        raise ValueError(
            f"cifar100: {file} must hold bytes [images, 3072] and as many fine labels from 0 to 99; it holds "
            f"{getattr(pixels, 'dtype', type(pixels).__name__)} {list(np.shape(pixels))} and {len(labels)}."
        )
    return torch.tensor(pixels).view(-1, 3, 32, 32), torch.tensor(labels)


def _loaded(stream: BinaryIO) -> dict[str, Any]:
    content = _Plain(stream, encoding="bytes").load()
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"it holds a {type(content).__name__} in place of a dict")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}


# The views


def cropped(images: Tensor, corners: Tensor, flips: Tensor) -> Tensor:
    """A window of each image, padded with black, some of them mirrored.

    Args:
        images: Bytes `[batch, 3, height, width]`.
        corners: The window's top and left `[batch, 2]`, from 0 to twice the padding.
        flips: Whether to mirror `[batch]`.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (PADDING,) * 4)
    rows = corners[:, :1] + torch.arange(height)
    columns = corners[:, 1:] + torch.arange(width)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    batch, channels = torch.arange(len(images))[:, None, None, None], torch.arange(3)[None, :, None, None]
    return padded[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]


def _train(
    images: Tensor, labels: Tensor, batches: Iterable[Tensor], *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of an epoch. An image's view is a function of seed, epoch and image alone."""
    generator = trainer.generator(seed, epoch, "views")
    corners = torch.randint(2 * PADDING + 1, (len(images), 2), generator=generator)
    flips = torch.rand(len(images), generator=generator) < 0.5
    for batch in batches:
        views = cropped(images[batch], corners[batch], flips[batch])
        yield normalised(views, MEAN, DEVIATION), labels[batch]


def _test(images: Tensor, labels: Tensor, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        yield normalised(images[batch], MEAN, DEVIATION), labels[batch]


def data(folder: Path) -> Data:
    """What the trainer reads."""
    train, test = read(folder)
    counts = len(train[0]), len(test[0])
    views = f"crops of images padded by {PADDING}, flipped"
    return Data(
        100, *counts, counts == (50_000, 10_000), views, partial(_train, *train), partial(_test, *test)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = trainer.parser("python -m benchmarks.cifar100", str(__doc__), PAIRS, PUBLISHED)
    options = parser.parse_args(arguments)
    trainer.main(parser, options, PAIRS, PUBLISHED, lambda: data(options.data))


if __name__ == "__main__":
    main()
