"""Real images for the demo: scikit-learn's digits, and Fashion-MNIST from a folder of IDX files."""

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it


class Data(NamedTuple):
    """Images `[images, 1, height, width]` and labels `[images]`: to learn from, and to test on."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits() -> Data:
    """The 1,797 handwritten digits of 8×8 pixels that scikit-learn brings; the last 797 are the test.

    They are in the order in which people handed them in, so nearly all of the test is by other hands.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16 - 0.5
    labels = torch.tensor(raw.target)
    return Data(images[:1000], labels[:1000], images[1000:], labels[1000:])


def fashion_mnist(folder: Path = FASHION_MNIST) -> Data:
    """The 60,000 + 10,000 photographs of clothes of 28×28 pixels.

    Raises:
        ValueError: A file is missing, is not of the IDX format, or images and labels do not fit.
    """
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(_find(folder, f"{part}-images-idx3-ubyte"))
        labels = read_idx(_find(folder, f"{part}-labels-idx1-ubyte"))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"fashion_mnist: {part} images {list(images.shape)} and labels {list(labels.shape)} do not "
                "fit; expected [images, height, width] and [images]."
            )
        parts += [torch.tensor(images, dtype=torch.float32).unsqueeze(1) / 255 - 0.5]
        parts += [torch.tensor(labels, dtype=torch.long)]
    return Data(*parts)


def fashion_mnist_14(folder: Path = FASHION_MNIST) -> Data:
    """Fashion-MNIST at 14×14 pixels, each the mean of four: four times as fast to learn from."""
    full = fashion_mnist(folder)
    images, test_images = (F.avg_pool2d(part, 2) for part in (full.images, full.test_images))
    return Data(images, full.labels, test_images, full.test_labels)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise ValueError(
        f"fashion_mnist: there is no {name}.gz (or {name}) in {folder}. Install Debian's package with "
        f"`apt-get install dataset-fashion-mnist`, which puts it in {FASHION_MNIST}, or name the folder that "
        "holds the four IDX files with --folder."
    )


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format, plain or gzipped.

    ```
    0, 0, 8 (unsigned byte), axes | the size of each axis, big-endian 32 bits | the values
    ```

    Raises:
        ValueError: The file is not that.
    """
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"read_idx: {path} begins with {list(content[:4])}; an IDX file of bytes begins with 0, 0, 8."
        )
    start = 4 + 4 * content[3]
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(sizes):
        raise ValueError(
            f"read_idx: {path} has {len(content)} bytes and announces {sizes}, which takes "
            f"{start + math.prod(sizes)}; it is cut short or damaged."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(sizes)


def few(labels: Tensor, per_class: int, *, seed: int) -> Tensor:
    """The indices of so many images of each class, drawn by the seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == label][:per_class] for label in labels.unique()])


def batches(count: int, size: int, steps: int, *, seed: int) -> Iterator[Tensor]:
    """Indices for each step: all images in a new order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        yield order[:size]
        order = order[size:]
