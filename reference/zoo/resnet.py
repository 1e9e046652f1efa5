"""CIFAR ResNets: three stages of basic blocks, or four of bottlenecks.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, for 32×32
images. Features are taken after the ReLU that ends the stem and every stage.

State dicts are those of the RepDistiller checkpoints (`resnet20`, ..., `resnet32x4`, `ResNet50`), which load
strictly: `load_state_dict(torch.load("ckpt_epoch_240.pth")["model"])`. Figures are top-1 on CIFAR-100 as
that repository publishes them, not measured here.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Pool, conv, he_, network, stacks

AT = ("relu", "layer1", "layer2", "layer3")
NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The skip connection: the identity, or a 1×1 convolution where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, a quarter as wide inside; `skip` is the skip connection's name."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, skip: str = "downsample") -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.add_module(skip, projection(inputs, outputs, stride))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + getattr(self, self.skip)(x))


def _basic(depth: int, channels: tuple[int, ...], num_classes: int) -> nn.Sequential:
    blocks = (depth - 2) // 6
    return he_(
        network(
            conv1=conv(3, channels[0], 3),
            bn1=nn.BatchNorm2d(channels[0]),
            relu=nn.ReLU(),
            **stacks(BasicBlock, channels, depths=(blocks,) * 3, strides=(1, 2, 2)),
            pool=Pool(),
            fc=nn.Linear(channels[-1], num_classes),
        )
    )


def resnet8(num_classes: int = 100) -> nn.Sequential:
    """One block a stage. A helper: no published figure."""
    return _basic(8, NARROW, num_classes)


def resnet14(num_classes: int = 100) -> nn.Sequential:
    """Two blocks a stage. A helper: no published figure."""
    return _basic(14, NARROW, num_classes)


def resnet20(num_classes: int = 100) -> nn.Sequential:
    """Three blocks a stage; published 69.06 %."""
    return _basic(20, NARROW, num_classes)


def resnet32(num_classes: int = 100) -> nn.Sequential:
    """Five blocks a stage; published 71.14 %."""
    return _basic(32, NARROW, num_classes)


def resnet56(num_classes: int = 100) -> nn.Sequential:
    """Nine blocks a stage; published 72.34 %."""
    return _basic(56, NARROW, num_classes)


def resnet110(num_classes: int = 100) -> nn.Sequential:
    """Eighteen blocks a stage; published 74.31 %."""
    return _basic(110, NARROW, num_classes)


def resnet8x4(num_classes: int = 100) -> nn.Sequential:
    """One block a stage, four times as wide (the stem twice); published 72.50 %."""
    return _basic(8, WIDE, num_classes)


def resnet32x4(num_classes: int = 100) -> nn.Sequential:
    """Five blocks a stage, four times as wide (the stem twice); published 79.42 %."""
    return _basic(32, WIDE, num_classes)


def ResNet50(num_classes: int = 100) -> nn.Sequential:
    """The ImageNet network's four stages behind a 3×3 stem without pooling; published 79.34 %."""
    channels = (64, 256, 512, 1024, 2048)
    block = partial(Bottleneck, skip="shortcut")
    return he_(
        network(
            conv1=conv(3, 64, 3),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(),
            **stacks(block, channels, depths=(3, 4, 6, 3), strides=(1, 2, 2, 2)),
            pool=Pool(),
            linear=nn.Linear(2048, num_classes),
        )
    )
