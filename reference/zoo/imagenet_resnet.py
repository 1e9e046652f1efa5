"""ImageNet ResNets.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, with the
stride in the bottleneck's 3×3 convolution. Features are taken after the stem's max pooling and after the ReLU
that ends every stage.

State dicts are torchvision's, whose checkpoints load strictly with `num_classes=1000`. Figures are top-1 on
ImageNet of torchvision's first weights (`IMAGENET1K_V1`) as torchvision publishes them, not measured here.
"""

from torch import nn

from .layers import Block, Pool, conv, he_, network, stacks
from .resnet import BasicBlock, Bottleneck

AT = ("maxpool", "layer1", "layer2", "layer3", "layer4")


def _resnet(block: Block, channels: tuple[int, ...], depths: tuple[int, ...], classes: int) -> nn.Sequential:
    return he_(
        network(
            conv1=conv(3, 64, 7, stride=2),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            **stacks(block, (64, *channels), depths, strides=(1, 2, 2, 2)),
            pool=Pool(),
            fc=nn.Linear(channels[-1], classes),
        )
    )


def resnet18IN(num_classes: int = 100) -> nn.Sequential:
    """Two basic blocks a stage; published 69.76 %."""
    return _resnet(BasicBlock, (64, 128, 256, 512), (2, 2, 2, 2), num_classes)


def resnet34IN(num_classes: int = 100) -> nn.Sequential:
    """Three, four, six and three basic blocks; published 73.31 %."""
    return _resnet(BasicBlock, (64, 128, 256, 512), (3, 4, 6, 3), num_classes)


def resnet50IN(num_classes: int = 100) -> nn.Sequential:
    """Three, four, six and three bottlenecks; published 76.13 %."""
    return _resnet(Bottleneck, (256, 512, 1024, 2048), (3, 4, 6, 3), num_classes)
