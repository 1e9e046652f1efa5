"""CIFAR wide ResNets: pre-activation blocks in three stages.

Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016, arXiv 1605.07146, without dropout. Features are the
raw residual sums, before any BatchNorm; the last stage includes the final BatchNorm, but not its ReLU.

State dicts are those of the RepDistiller checkpoints (`wrn_40_2`), which load strictly. Figures are top-1 on
CIFAR-100 as that repository publishes them, not measured here.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Pool, conv, he_, network, stacks

AT = ("conv1", "block1", "block2", "bn1")


class PreactivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3×3 convolutions.

    The skip connection carries the raw input, or a projection of the activated one where channels change.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.convShortcut is None else self.convShortcut(activated))


def _wrn(depth: int, widen: int, num_classes: int) -> nn.Sequential:
    channels = (16, 16 * widen, 32 * widen, 64 * widen)
    blocks = (depth - 4) // 6
    stages = stacks(PreactivationBlock, channels, (blocks,) * 3, strides=(1, 2, 2), name="block")
    return he_(
        network(
            conv1=conv(3, channels[0], 3),
            **{name: network(layer=stage) for name, stage in stages.items()},
            bn1=nn.BatchNorm2d(channels[-1]),
            pool=Pool(),
            fc=nn.Linear(channels[-1], num_classes),
        )
    )


def wrn_16_1(num_classes: int = 100) -> nn.Sequential:
    """Two blocks a stage, not widened. A helper: no published figure."""
    return _wrn(16, 1, num_classes)


def wrn_16_2(num_classes: int = 100) -> nn.Sequential:
    """Two blocks a stage, twice as wide; published 73.26 %."""
    return _wrn(16, 2, num_classes)


def wrn_40_1(num_classes: int = 100) -> nn.Sequential:
    """Six blocks a stage, not widened; published 71.98 %."""
    return _wrn(40, 1, num_classes)


def wrn_40_2(num_classes: int = 100) -> nn.Sequential:
    """Six blocks a stage, twice as wide; published 75.61 %."""
    return _wrn(40, 2, num_classes)
