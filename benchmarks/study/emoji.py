"""Pictures in colour: which of 99 groups an emoji belongs to, drawn by vendors that were not learned from.

The drawings come by npm, under open licences: Noto by Google (Apache 2.0), Fluent by Microsoft (MIT), Twemoji
by Twitter (CC-BY 4.0). Run in the folder `runs/data`: `npm pack emoji-datasource-google
emoji-datasource-twitter @lobehub/fluent-emoji-3d`; the archives are read as they are.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fcfd
from reference.zoo import resnet

from ..data import Data

FOLDER = Path("runs") / "data"
LEARNED = {"emoji-datasource-google": "img/google/64/", "lobehub-fluent-emoji-3d": "assets/"}
TESTED = {"emoji-datasource-twitter": "img/twitter/64/"}
SIZE = 32


def drawings(folder: Path, package: str, inside: str) -> Iterator[tuple[str, Tensor]]:
    """Code point and picture `[3, 32, 32]` of every drawing of a package, on grey."""
    from PIL import Image

    with tarfile.open(_archive(folder, package)) as archive:
        for member in archive:
            path = Path(member.name)
            if not (path.suffix in (".png", ".webp") and f"/{inside}" in f"/{member.name}"):
                continue
            found = archive.extractfile(member)
            assert found is not None
            drawing = Image.open(io.BytesIO(found.read())).convert("RGBA")
            grey = Image.new("RGBA", drawing.size, (128, 128, 128, 255))
            picture = Image.alpha_composite(grey, drawing).convert("RGB").resize((SIZE, SIZE))
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            yield path.stem.lower(), pixels.float() / 255 - 0.5


def groups(folder: Path) -> dict[str, str]:
    """The group of every emoji by its code point, such as `"face-smiling"`."""
    with tarfile.open(_archive(folder, next(iter(LEARNED)))) as archive:
        found = archive.extractfile("package/emoji.json")
        assert found is not None
        return {Path(row["image"]).stem.lower(): row["subcategory"] for row in json.load(found)}


def _archive(folder: Path, package: str) -> Path:
    for path in sorted(folder.glob(f"{package}-*.tgz")):
        return path
    raise ValueError(
        f"emoji: there is no {package}-*.tgz in {folder}; run there: "
        "npm pack emoji-datasource-google emoji-datasource-twitter @lobehub/fluent-emoji-3d"
    )


def emoji(folder: Path = FOLDER) -> Data:
    """About 3,800 drawings of two vendors to learn from, in an order shuffled once, and 1,900 of a third.

    All drawings of one emoji by all vendors are of one class, its group.
    """
    group_of = groups(folder)
    names = sorted(set(group_of.values()))
    parts = []
    for packages in (LEARNED, TESTED):
        found = [each for package, inside in packages.items() for each in drawings(folder, package, inside)]
        known = [(picture, names.index(group_of[code])) for code, picture in found if code in group_of]
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        parts += [torch.stack([known[at][0] for at in order]), torch.tensor([known[at][1] for at in order])]
    return Data(*parts)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to four pixels, one draw for each."""
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    corners = torch.randint(0, 9, (len(images), 2), generator=generator).tolist()
    return torch.stack([padded[at, :, y : y + SIZE, x : x + SIZE] for at, (y, x) in enumerate(corners)])


def by_groups(model: nn.Module, example: Tensor) -> fcfd.Network:
    """Five stages: the stem, three groups of blocks, the classifier."""
    return fcfd.split(model, resnet.AT, example=example, proof=False)
