"""What the recording knows of a feature's axes, and where it admits that it does not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fcfd


class Patches(nn.Module):
    """Tokens of a map of 4 rows and 16 columns, which is near no square, and a class token."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.patch, self.block, self.head = nn.Conv2d(3, 8, 4, 4), Residual(8), nn.Linear(8, 5)
        self.token = nn.Parameter(torch.zeros(1, tokens, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.block(torch.cat([self.token.expand(len(x), -1, -1), x], 1)).mean(1))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(self.norm(x)))


class Permuted(nn.Module):
    """A layer norm over the channels of a map, as ConvNeXt's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.back = nn.Conv2d(3, 8, 4, 4), ToLast(), ToSecond()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.back(self.last(self.stem(x))).mean((2, 3)))


class ToLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)) * 2


class ToSecond(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.movedim(-1, 1))


class TimeFirst(nn.Module):
    """PyTorch's own default for sequences: the batch is the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x.transpose(0, 1)).mean(0))


class Unknown(nn.Module):
    """A view of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.odd, self.head = nn.Linear(6, 6), Odd(), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.odd(self.a(x)).mean(1))


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, 3)


def audio() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3, 2), nn.BatchNorm1d(8), nn.GELU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(32, 5)
    )


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, 2), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    )


CASES: dict[str, tuple[Any, Any, Tensor, list[Any], list[Any]]] = {
    "audio": (audio, ["0", "2", "3"], torch.randn(2, 2, 18), ["b c t"] * 3 + ["b c"], [None] * 4),
    "a volume": (volume, ["0", "2"], torch.randn(2, 1, 8, 8, 8), ["b c d h w"] * 2 + [None], [None] * 3),
    "patches": (
        lambda: Patches(0),
        ["patch", "block"],
        torch.randn(2, 3, 16, 64),
        ["b c h w", "b t c", "b c"],
        [None, (4, 16), None],
    ),
    "and a class token": (
        lambda: Patches(1),
        ["block"],
        torch.randn(2, 3, 16, 64),
        ["b t c", "b c"],
        [(4, 16), None],
    ),
    "permutations": (
        Permuted,
        ["stem", "last", "back"],
        torch.randn(2, 3, 16, 16),
        ["b c h w", "b h w c", "b c h w", "b c"],
        [None] * 4,
    ),
    "time first": (TimeFirst, ["a"], torch.randn(2, 7, 6), [None, "b c"], [None, None]),
    "a view": (Unknown, ["a", "odd"], torch.randn(2, 7, 6), ["b t c", None, "b c"], [None] * 3),
}


@pytest.mark.parametrize("case", CASES)
def test_the_axes_of_features(case):
    make, at, example, layouts, grids = CASES[case]
    network = fcfd.split(make(), at, example=example)
    assert list(network.layouts) == layouts
    assert list(network.grids) == grids
    assert len(network.shapes) == len(layouts)


def test_features_of_several_tensors_have_several_layouts():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.head = Both(), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.both(x)
            return self.head(a.mean((2, 3)) + b.mean(1))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 4, 4), nn.Linear(3, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x.flatten(2).transpose(1, 2))

    network = fcfd.split(Two(), ["both"], example=torch.randn(2, 3, 8, 8))
    assert network.layouts == (("b c h w", "b t c"), "b c")
    assert network.shapes == (((2, 8, 2, 2), (2, 64, 8)), (2, 5))
    assert fcfd.split([nn.Linear(2, 2)]).layouts == ()
