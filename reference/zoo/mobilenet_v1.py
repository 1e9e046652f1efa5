"""ImageNet MobileNet: depthwise and 1×1 convolutions in turn.

Howard et al.: MobileNets, 2017, arXiv 1704.04861, width 1. Features are taken after the ReLU.

State dicts are those of the implementation that the FCFD authors use (`model.0`, ..., `model.13`, `fc`).
The paper publishes 70.6 % top-1 on ImageNet, not measured here.
"""

from itertools import pairwise

from torch import nn

from .layers import Pool, conv, depthwise, network

AT = ("model.0", "model.3", "model.5", "model.11", "model.13")
CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """Depthwise, then 1×1; at half resolution where the channels double, but for the first one."""
    stride = 2 if outputs > inputs > 32 else 1
    return nn.Sequential(
        depthwise(inputs, stride),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        conv(inputs, outputs, 1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def MBIN(num_classes: int = 100) -> nn.Sequential:
    """A convolution and thirteen separable ones."""
    stem = nn.Sequential(conv(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU())
    rest = (_separable(*pair) for pair in pairwise(CHANNELS))
    return network(model=nn.Sequential(stem, *rest), pool=Pool(), fc=nn.Linear(1024, num_classes))
