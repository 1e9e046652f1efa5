"""What the families share: convolutions, stacks of blocks, the pooling of every classifier, and a network.

A network here is an `nn.Sequential` with named children. Nothing but its children computes anything, so each
child's output is a place where the network can be cut.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

Block = Callable[[int, int, int], nn.Module]
"""`block(inputs, outputs, stride)`."""


def network(**children: nn.Module) -> nn.Sequential:
    """The children, run one after another under their names."""
    return nn.Sequential(OrderedDict(children))


def stack(block: Block, inputs: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
    """Blocks in a row; the first one changes channels and resolution."""
    rest = (block(outputs, outputs, 1) for _ in range(depth - 1))
    return nn.Sequential(block(inputs, outputs, stride), *rest)


def stacks(
    block: Block, channels: Sequence[int], depths: Sequence[int], strides: Sequence[int], name: str = "layer"
) -> dict[str, nn.Module]:
    """`layer1`, `layer2`, ...: stack k leads from `channels[k - 1]` to `channels[k]`."""
    sizes = zip(channels[:-1], channels[1:], depths, strides, strict=True)
    return {f"{name}{k}": stack(block, *size) for k, size in enumerate(sizes, 1)}


def conv(
    inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution that keeps the map's size, up to its stride."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=bias)


def depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution of every channel by itself."""
    return conv(channels, channels, 3, stride=stride, groups=channels)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels dealt out anew, so that the next grouped convolution sees some of every group."""
    return rearrange(x, "batch (group channel) ... -> batch (channel group) ...", group=groups)


class Pool(nn.Module):
    """What every classifier here reads of a map: rectified, then averaged over space."""

    def forward(self, x: Tensor) -> Tensor:
        return reduce(F.relu(x), "batch channels ... -> batch channels", "mean")


def he_(model: nn.Sequential, *, linear: float | None = None) -> nn.Sequential:
    """Give convolutions He's normal initialisation (fan-out), linear layers a deviation; return the model.

    Where `linear` is None, linear layers keep PyTorch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear) and linear is not None:
            nn.init.normal_(module.weight, std=linear)
            nn.init.zeros_(module.bias)
    return model
