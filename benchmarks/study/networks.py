"""Students of other families than the demo's networks: depth-wise convolutions, and an MLP-mixer."""

from typing import Any

import torch
from torch import Tensor, nn


def depthwise(width: int, *, first_stride: int, classes: int = 10) -> nn.Sequential:
    """Five stages: a stem and three blocks of a depth-wise and a point-wise convolution, the classifier."""

    def block(channels: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )

    stem = (nn.Conv2d(1, width, 3, first_stride, padding=1, bias=False), nn.BatchNorm2d(width))
    return nn.Sequential(
        nn.Sequential(*stem, nn.ReLU(inplace=True)),
        block(width, width, 1),
        block(width, 2 * width, 2),
        block(2 * width, 4 * width, 2),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)),
    )


class _Mixer(nn.Module):
    """One block: tokens are mixed, then channels, each by two layers with a shortcut."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.across = nn.Sequential(nn.Linear(tokens, hidden), nn.GELU(), nn.Linear(hidden, tokens))
        self.within = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.within(self.norms[1](x))
        return mixed


class _Patches(nn.Module):
    """Pixels to tokens `[batch, tokens, width]`."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, side, side)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.embed(images)
        return patches.flatten(2).transpose(1, 2)


class _Average(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def mixer(width: int, hidden: int, *, patch: int = 4, size: int = 28, classes: int = 10) -> nn.Sequential:
    """Five stages: patches, three mixer blocks, the classifier."""
    tokens = (size // patch) ** 2
    blocks = [_Mixer(tokens, width, hidden) for _ in range(3)]
    head = nn.Sequential(nn.LayerNorm(width), _Average(), nn.Linear(width, classes))
    return nn.Sequential(_Patches(patch, width), *blocks, head)


@torch.no_grad()
def calibrate_(bridges: nn.Module, targets: dict[str, Tensor]) -> None:
    """Set each bridge's last batch norm to the mean and deviation of what it is compared with.

    Args:
        bridges: `Linked.bridges`.
        targets: The target of each bridge by `"column.at"`, such as `"s>t.1"`: `[batch, channels, ...]`.
    """
    for name, target in targets.items():
        column, at = name.rsplit(".", 1)
        found: Any = bridges[column][at]  # type: ignore[index]
        norm = [module for module in found.modules() if isinstance(module, nn.BatchNorm2d)][-1]
        norm.weight.copy_(target.std((0, 2, 3)).clamp(min=1e-3))
        norm.bias.copy_(target.mean((0, 2, 3)))
