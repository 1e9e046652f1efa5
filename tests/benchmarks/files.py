"""Small files in the formats of CIFAR-100 and ImageNet, as Python 2 and cameras wrote the official ones."""

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from reference.zoo import NETWORKS

# Of Python's own pickler: the fast one lets nobody say how a byte string is written.
_Pickler: Any = pickle._Pickler


class _Python2(_Pickler):
    """Writes byte strings as Python 2 did, when it had no others."""

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch: ClassVar = {**_Pickler.dispatch, bytes: save_bytes}


def as_python2(content) -> bytes:
    stream = io.BytesIO()
    _Python2(stream, 2).dump(content)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar100(folder: Path, images: int = 16, test_images: int = 6, seed: int = 0) -> Path:
    """`cifar-100-python` under a folder."""
    own = folder / "cifar-100-python"
    own.mkdir(parents=True)
    source = np.random.default_rng(seed)
    for name, count in (("train", images), ("test", test_images)):
        content = {
            b"filenames": [b"picture_%d.png" % at for at in range(count)],
            b"batch_label": name.encode(),
            b"fine_labels": source.integers(0, 100, count).tolist(),
            b"coarse_labels": source.integers(0, 20, count).tolist(),
            b"data": source.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        (own / name).write_bytes(as_python2(content))
    return folder


def imagenet(folder: Path, classes=("n01440764", "n02119789"), train=4, val=2, seed: int = 0) -> Path:
    """`train/<class>/` and `val/<class>/` with JPEGs of several sizes."""
    source = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for at in range(count):
                size = (int(source.integers(40, 90)), int(source.integers(40, 90)), 3)
                picture = Image.fromarray(source.integers(0, 256, size, dtype=np.uint8))
                picture.save(folder / part / name / f"{name}_{at}.JPEG")
    return folder


def checkpoint(file: Path, name: str, classes: int = 100, under: str | None = "model", seed: int = 1) -> Path:
    """A network as RepDistiller saves it (under `model`), or plain as torchvision does."""
    torch.manual_seed(seed)
    state = NETWORKS[name].build(num_classes=classes).state_dict()
    torch.save(state if under is None else {"epoch": 240, under: state, "best_acc": torch.tensor(79.0)}, file)
    return file
