"""CIFAR ShuffleNetV2: half of the channels pass untouched, then all are shuffled.

Ma, Zhang, Zheng, Sun: ShuffleNet V2, ECCV 2018, arXiv 1807.11164, width 1, a 1×1 stem for 32×32 images.
Features are taken after the ReLU (and shuffle); the last stage includes the final 1×1 convolution.

State dicts are those of RepDistiller's `ShuffleV2`. The figure is top-1 on CIFAR-100 as that repository
publishes it, not measured here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Pool, conv, depthwise, network, shuffled, stacks

AT = ("relu1", "layer1", "layer2", "relu2")


class DownBlock(nn.Module):
    """Two branches at half resolution: depthwise, 1×1; and 1×1, depthwise, 1×1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        width = outputs // 2
        self.conv1 = depthwise(inputs, stride=2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv(inputs, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(inputs, width, 1)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv4 = depthwise(width, stride=2)
        self.bn4 = nn.BatchNorm2d(width)
        self.conv5 = conv(width, width, 1)
        self.bn5 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffled(torch.cat([left, right], 1), groups=2)


class SplitBlock(nn.Module):
    """1×1, depthwise, 1×1 on the second half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 2
        self.conv1 = conv(width, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = depthwise(width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width, 1)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        right = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(right)))))
        right = F.relu(self.bn3(self.conv3(right)))
        return shuffled(torch.cat([left, right], 1), groups=2)


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    return DownBlock(inputs, outputs) if stride == 2 else SplitBlock(outputs)


def ShuffleV2(num_classes: int = 100) -> nn.Sequential:
    """Four, eight and four blocks; published 71.82 %."""
    return network(
        conv1=conv(3, 24, 1),
        bn1=nn.BatchNorm2d(24),
        relu1=nn.ReLU(),
        **stacks(_block, (24, 116, 232, 464), depths=(4, 8, 4), strides=(2, 2, 2)),
        conv2=conv(464, 1024, 1),
        bn2=nn.BatchNorm2d(1024),
        relu2=nn.ReLU(),
        pool=Pool(),
        linear=nn.Linear(1024, num_classes),
    )
