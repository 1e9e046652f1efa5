"""CIFAR MobileNetV2: inverted residuals with linear bottlenecks.

Sandler et al.: MobileNetV2, CVPR 2018, arXiv 1801.04381, for 32×32 images: expansion 6, width 0.5, ReLU in
place of ReLU6, one stride less. Features are taken before the ReLU: the stem's ReLU belongs to the first
stage, that of the last convolution to the classifier.

State dicts are those of the FCFD authors' `MobileNetV2`; RepDistiller's differ in one name, `classifier.0`
instead of `classifier`. The figure is top-1 on CIFAR-100 as RepDistiller publishes it, not measured here.
"""

from functools import partial

from torch import Tensor, nn

from .layers import Pool, conv, depthwise, he_, network, stack

AT = ("conv1", "blocks.1", "blocks.2", "blocks.4", "conv2")
CHANNELS = (16, 8, 12, 16, 32, 48, 80, 160)
DEPTHS = (1, 2, 3, 4, 3, 3, 1)
STRIDES = (1, 1, 2, 2, 1, 2, 1)


class InvertedResidual(nn.Module):
    """1×1 to more channels, depthwise, 1×1 back; added to the input where the shape allows."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            conv(inputs, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            depthwise(width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv(width, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


def MobileNetV2(num_classes: int = 100) -> nn.Sequential:
    """Seventeen blocks in seven groups; published 64.60 %."""
    sizes = zip(CHANNELS[:-1], CHANNELS[1:], DEPTHS, STRIDES, strict=True)
    groups = [
        stack(partial(InvertedResidual, expansion=6 if index else 1), *size)
        for index, size in enumerate(sizes)
    ]
    return he_(
        network(
            conv1=nn.Sequential(conv(3, 16, 3, stride=2), nn.BatchNorm2d(16)),
            relu=nn.ReLU(),
            blocks=nn.Sequential(*groups),
            conv2=nn.Sequential(conv(160, 1280, 1), nn.BatchNorm2d(1280)),
            pool=Pool(),
            classifier=nn.Linear(1280, num_classes),
        ),
        linear=0.01,
    )
