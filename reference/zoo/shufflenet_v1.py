"""CIFAR ShuffleNet: grouped 1×1 convolutions that shuffle their channels.

Zhang, Zhou, Lin, Sun: ShuffleNet, CVPR 2018, arXiv 1707.01083, three groups, a 1×1 stem for 32×32 images.
Features are taken before the ReLU; every block begins with it.

State dicts are those of RepDistiller's `ShuffleV1`. The figure is top-1 on CIFAR-100 as that repository
publishes it, not measured here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Pool, conv, depthwise, network, shuffled, stacks

AT = ("bn1", "layer1", "layer2", "layer3")
STEM, GROUPS = 24, 3


class ShuffleBlock(nn.Module):
    """ReLU, 1×1, shuffle, depthwise, 1×1; at stride 2 the pooled input keeps its own channels.

    The ReLU comes first and not last, as in the paper, so that a stage ends before it; the network is the
    same.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        added = outputs - inputs if stride == 2 else outputs
        width = added // 4
        self.groups = 1 if inputs == STEM else GROUPS
        self.conv1 = conv(inputs, width, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = depthwise(width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, added, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(added)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        y = shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return y + x if self.pool is None else torch.cat([y, self.pool(x)], 1)


def ShuffleV1(num_classes: int = 100) -> nn.Sequential:
    """Four, eight and four blocks; published 70.50 %."""
    return network(
        conv1=conv(3, STEM, 1),
        bn1=nn.BatchNorm2d(STEM),
        **stacks(ShuffleBlock, (STEM, 240, 480, 960), depths=(4, 8, 4), strides=(2, 2, 2)),
        pool=Pool(),
        linear=nn.Linear(960, num_classes),
    )
