"""CIFAR VGG networks with BatchNorm: five stages and one linear layer.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, arXiv
1409.1556, for 32×32 images: no pooling before the last stage, one linear layer. Features are taken before the
ReLU; a stage begins with the ReLU and the pooling of the one before.

State dicts are those of the RepDistiller checkpoints (`vgg13`), which load strictly. Figures are top-1 on
CIFAR-100 as that repository publishes them, not measured here.
"""

from torch import nn

from .layers import Pool, conv, he_, network

AT = ("block0", "block1", "block2", "block3", "block4")


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Convolutions with BatchNorm, and a ReLU between two of them."""
    layers = [conv(inputs, outputs, 3, bias=True), nn.BatchNorm2d(outputs)]
    for _ in range(depth - 1):
        layers += [nn.ReLU(), conv(outputs, outputs, 3, bias=True), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)


def _between() -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))


def _vgg(depth: int, num_classes: int) -> nn.Sequential:
    return he_(
        network(
            block0=_block(3, 64, depth),
            pool0=_between(),
            block1=_block(64, 128, depth),
            pool1=_between(),
            block2=_block(128, 256, depth),
            pool2=_between(),
            block3=_block(256, 512, depth),
            relu3=nn.ReLU(),
            block4=_block(512, 512, depth),
            pool4=Pool(),
            classifier=nn.Linear(512, num_classes),
        ),
        linear=0.01,
    )


def vgg8(num_classes: int = 100) -> nn.Sequential:
    """One convolution a stage; published 70.36 %."""
    return _vgg(1, num_classes)


def vgg13(num_classes: int = 100) -> nn.Sequential:
    """Two convolutions a stage; published 74.64 %."""
    return _vgg(2, num_classes)
