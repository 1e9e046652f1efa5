"""The reference networks, by the names of the published experiments, and where each is cut into stages.

```
name = "resnet8x4"
build, at = NETWORKS[name]
model = build(num_classes=100)
stages = fcfd.split(model, at=at)
```
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from . import (
    imagenet_resnet,
    mobilenet_v1,
    mobilenet_v2,
    resnet,
    shufflenet_v1,
    shufflenet_v2,
    vgg,
    wide_resnet,
)


class Network(NamedTuple):
    """How to build a network, and the submodules whose outputs are its stages 0 (the stem) to S.

    What follows the last of them is the classifier, one stage more.
    """

    build: Callable[..., nn.Sequential]
    at: tuple[str, ...]


NETWORKS: dict[str, Network] = {
    "resnet8": Network(resnet.resnet8, resnet.AT),
    "resnet14": Network(resnet.resnet14, resnet.AT),
    "resnet20": Network(resnet.resnet20, resnet.AT),
    "resnet32": Network(resnet.resnet32, resnet.AT),
    "resnet56": Network(resnet.resnet56, resnet.AT),
    "resnet110": Network(resnet.resnet110, resnet.AT),
    "resnet8x4": Network(resnet.resnet8x4, resnet.AT),
    "resnet32x4": Network(resnet.resnet32x4, resnet.AT),
    "ResNet50": Network(resnet.ResNet50, (*resnet.AT, "layer4")),
    "wrn_16_1": Network(wide_resnet.wrn_16_1, wide_resnet.AT),
    "wrn_16_2": Network(wide_resnet.wrn_16_2, wide_resnet.AT),
    "wrn_40_1": Network(wide_resnet.wrn_40_1, wide_resnet.AT),
    "wrn_40_2": Network(wide_resnet.wrn_40_2, wide_resnet.AT),
    "vgg8": Network(vgg.vgg8, vgg.AT),
    "vgg13": Network(vgg.vgg13, vgg.AT),
    "ShuffleV1": Network(shufflenet_v1.ShuffleV1, shufflenet_v1.AT),
    "ShuffleV2": Network(shufflenet_v2.ShuffleV2, shufflenet_v2.AT),
    "MobileNetV2": Network(mobilenet_v2.MobileNetV2, mobilenet_v2.AT),
    "resnet18IN": Network(imagenet_resnet.resnet18IN, imagenet_resnet.AT),
    "resnet34IN": Network(imagenet_resnet.resnet34IN, imagenet_resnet.AT),
    "resnet50IN": Network(imagenet_resnet.resnet50IN, imagenet_resnet.AT),
    "MBIN": Network(mobilenet_v1.MBIN, mobilenet_v1.AT),
}
