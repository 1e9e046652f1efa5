"""The models that `benchmarks.coverage` cuts: how each is built, and what it is run on.

Weights are random: whether stages compose to a model does not depend on them. Those of transformers are
built from configurations of a few layers.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reference import torchvision_cpu


class Model(NamedTuple):
    """How to build a model, the batch that it is run on, and where to cut it."""

    family: str
    build: Callable[[], nn.Module]
    batch: Any
    at: Sequence[Any] | None = None
    example: bool = True  # whether `split` is given the batch; without it, it finds an example itself


@cache
def models(library: str) -> dict[str, Model]:
    """Every model of torchvision, timm or transformers, by names such as `torchvision/resnet18`."""
    torchvision_cpu.prepare()
    found = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library]()
    return {f"{library}/{name}": model for name, model in found.items()}


def _noise(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def _torchvision() -> dict[str, Model]:
    import torchvision
    from torchvision import models

    plain = {"weights": None}
    slow = ("googlenet", "inception_v3")  # to initialise: their truncated normals take minutes
    found = {
        name: Model(
            models.get_model_builder(name).__module__.rpartition(".")[2],
            partial(models.get_model, name, **plain, **({"init_weights": False} if name in slow else {})),
            _noise(2, 3, *(2 * [299 if name == "inception_v3" else 224])),
            example=False,
        )
        for name in models.list_models(module=torchvision.models)
    }
    plain["weights_backbone"] = None
    for name in models.list_models(module=models.segmentation):
        build = partial(models.get_model, name, **plain)
        found[name] = Model("segmentation", build, _noise(2, 3, 96, 96), ["backbone", "classifier"])
    boxes = {"boxes": torch.tensor([[10.0, 10.0, 50.0, 60.0]]), "labels": torch.tensor([1])}
    batch = {"images": [*_noise(2, 3, 96, 128)], "targets": [boxes, boxes]}
    for name in ("fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn", "retinanet_resnet50_fpn"):
        build = partial(models.get_model, name, **plain, num_classes=5, min_size=96, max_size=128)
        found[name] = Model("detection", build, batch, ["backbone.body", "backbone"])
    return found


def _timm() -> dict[str, Model]:
    import timm

    found = {}
    for line in (Path(__file__).parent / "timm_models.txt").read_text().splitlines():
        if not line.startswith("#"):
            family, name, size, *options = line.split()
            build = partial(timm.create_model, name, **json.loads(options[0] if options else "{}"))
            found[name] = Model(family, build, _noise(2, 3, int(size), int(size)))
    return found


def _transformers() -> dict[str, Model]:
    import transformers

    def build(family: str, kind: str, config: dict[str, Any]) -> nn.Module:
        arguments = getattr(transformers, f"{family}Config")(**config)
        model: nn.Module = getattr(transformers, family + kind)(arguments)
        return model

    words = torch.arange(24).view(2, 12) % 90 + 3
    entries = {
        "input_ids": words,
        "attention_mask": torch.tensor([[1] * 12, [1] * 8 + [0] * 4]),
        "token_type_ids": 0 * words,
        "decoder_input_ids": words[:, :6],
        "pixel_values": _noise(2, 3, 64, 64),
        "input_values": _noise(2, 4000),
        "input_features": _noise(2, 16, 60),
    }
    table = json.loads((Path(__file__).parent / "transformers_models.json").read_text())
    return {
        family: Model(
            row["class"],
            partial(build, family, row["class"], row["config"]),
            {name: entries[name] for name in row["batch"]},
        )
        for family, row in table.items()
    }
