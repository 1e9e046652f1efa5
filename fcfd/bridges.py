"""Bridges: small learned maps from one network's feature space to another's.

`bridge` builds one from the two shapes. It is an ordinary module, a stage like any other once it is linked;
any module of your own with the right output shape can stand in its place.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ._layout import channel_axis, channels_last
from ._tree import TreeSpec, leaves, unflatten
from .families.maps import channel_stats_align


class Grid(NamedTuple):
    """How a feature lies in space: a map has no prefix; a token sequence may have class tokens before it."""

    height: int
    width: int
    prefix: int = 0


def bridge(source: tuple[int, ...], target: tuple[int, ...], *, rectified: bool = False) -> nn.Module:
    """Build a bridge from features of one shape to features of another.

    | source → target | the bridge |
    |---|---|
    | map → map of equal size | conv 3×3, no bias → batch norm |
    | map twice as large | conv 3×3, stride 2, with bias → batch norm |
    | map half as large | transposed conv 4×4, stride 2, padding 1, with bias → batch norm |
    | map of any other size | resize → conv 3×3, no bias → batch norm |
    | tokens → map | drop the class tokens, lay out the grid → as from map to map |
    | map → tokens | as from map to map → flatten; a class token is the mean of the others |
    | tokens → tokens | resize the grid, keep the class tokens → linear, no bias → layer norm |
    | vector → vector | linear, no bias → batch norm |

    A map is `[batch, channels, height, width]`; where the first two sizes alone are equal, as in Swin's
    `[2, 7, 7, 768]`, the channels are taken to be last.

    LeakyReLU(0.1) follows where the target's features are rectified. The first three rows and the activation
    are the published bridge; the rest goes beyond it (the authors' code refuses every other shape).

    Of a token sequence, what exceeds the largest square is taken for class (and register) tokens, at most
    five: 197 is 1 + 14 · 14. A sequence without such a grid is resized along its length.

    Args:
        source: Shape of a batch of source features: `[batch, channels, height, width]`,
            `[batch, tokens, width]` or `[batch, width]`. The batch size does not matter.
        target: Shape of a batch of target features. A size other than the example's is resized by the same
            ratio.
        rectified: The target's features are taken after a ReLU.

    Returns:
        A module with the submodules `conv` (or `linear`) and `bn` (or `norm`). Convolutions without bias
        start from Kaiming's normal, fan-out; normalisations from one and zero.

    Raises:
        ValueError: No bridge leads from the one layout to the other.

    Example:
        >>> module = bridge((2, 16, 32, 32), (2, 64, 16, 16), rectified=True)
        >>> [name for name, _ in module.named_children()]
        ['conv', 'bn', 'act']
        >>> module(torch.zeros(2, 16, 32, 32)).shape
        torch.Size([2, 64, 16, 16])

    Reference:
        Liu et al.: Function-Consistent Feature Distillation, ICLR 2023, arXiv 2304.11832; the authors' code.
    """
    kinds = _kind(source), _kind(target)
    parts: dict[str, nn.Module] = {}
    if channels_last(source):
        source = (source[0], source[3], source[1], source[2])
        parts["first"] = Rearrange("b h w c -> b c h w")
    goal = (target[0], target[3], target[1], target[2]) if channels_last(target) else target
    if kinds == ("vector", "vector"):
        parts |= {"linear": nn.Linear(source[1], goal[1], bias=False), "bn": nn.BatchNorm1d(goal[1])}
    elif kinds == ("tokens", "tokens"):
        parts |= _token_parts(source, goal)
    elif set(kinds) <= {"tokens", "map"}:
        parts |= _conv_parts(source, goal)
    else:
        raise ValueError(
            f"bridge: no bridge leads from {list(source)} to {list(target)}. Maps [batch, channels, height, "
            "width] and token sequences [batch, tokens, width] lead to each other, vectors [batch, width] to "
            "vectors. Pass a module of your own for anything else."
        )
    if rectified:
        parts["act"] = nn.LeakyReLU(0.1)
    if channels_last(target):
        parts["last"] = Rearrange("b c h w -> b h w c")
    elif kinds == ("map", "tokens"):
        parts["tokens"] = MapToTokens(_square(target[1]).prefix)
    return nn.Sequential(OrderedDict(parts))


def _kind(shape: tuple[int, ...]) -> str | None:
    return {2: "vector", 3: "tokens", 4: "map"}.get(len(shape))


def _token_parts(source: tuple[int, ...], target: tuple[int, ...]) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {}
    if source[1] != target[1]:
        parts["resize"] = ResizeTokens(*_grids(source[1], target[1]))
    return parts | {"linear": nn.Linear(source[2], target[2], bias=False), "norm": nn.LayerNorm(target[2])}


def _conv_parts(source: tuple[int, ...], target: tuple[int, ...]) -> dict[str, nn.Module]:
    (channels, here), (goal, there) = _laid_out(source), _laid_out(target)
    parts: dict[str, nn.Module] = {"map": TokensToMap(here)} if len(source) == 3 else {}
    conv: nn.Module
    if here[:2] == (2 * there.height, 2 * there.width):
        conv = nn.Conv2d(channels, goal, 3, stride=2, padding=1)
    elif there[:2] == (2 * here.height, 2 * here.width):
        conv = nn.ConvTranspose2d(channels, goal, 4, stride=2, padding=1)
    else:
        conv = nn.Conv2d(channels, goal, 3, padding=1, bias=False)
        if here[:2] != there[:2]:
            parts["resize"] = ResizeMap(here, there)
    if isinstance(conv, nn.Conv2d):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return parts | {"conv": conv, "bn": nn.BatchNorm2d(goal)}


def _laid_out(shape: tuple[int, ...]) -> tuple[int, Grid]:
    """Channels and grid of a map, or of the tokens that are laid out as one."""
    return (shape[2], _square(shape[1])) if len(shape) == 3 else (shape[1], Grid(shape[2], shape[3]))


def _square(tokens: int) -> Grid:
    """The largest square of a token sequence, and the class tokens before it."""
    side = math.isqrt(tokens)
    if tokens - side * side > 5:
        raise ValueError(
            f"bridge: {tokens} tokens are no square grid with at most five class tokens ({side}·{side} "
            f"leaves {tokens - side * side}). Pass a module of your own that knows the grid."
        )
    return Grid(side, side, tokens - side * side)


def _grids(source: int, target: int) -> tuple[Grid, Grid]:
    """Square grids where both sequences have one, lines otherwise."""
    try:
        return _square(source), _square(target)
    except ValueError:
        return Grid(1, source), Grid(1, target)


class ResizeMap(nn.Module):
    """Resize a map by a fixed ratio: average where it shrinks, bilinear where it grows."""

    def __init__(self, source: Grid, target: Grid) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        height = max(1, round(x.shape[-2] * self.target.height / self.source.height))
        width = max(1, round(x.shape[-1] * self.target.width / self.source.width))
        x = F.adaptive_avg_pool2d(x, (min(height, x.shape[-2]), min(width, x.shape[-1])))
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


class TokensToMap(nn.Module):
    """Drop the class tokens and lay the others out on their grid."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        patches = x[:, self.grid.prefix :]
        return rearrange(patches, "b (h w) c -> b c h w", h=self.grid.height, w=self.grid.width)


class MapToTokens(nn.Module):
    """Flatten a map; each class token is the mean of the others."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        patches = rearrange(x, "b c h w -> b (h w) c")
        return torch.cat([patches.mean(1, keepdim=True).expand(-1, self.prefix, -1), patches], 1)


class ResizeTokens(nn.Module):
    """Resize the grid of a token sequence; class tokens that both sequences have pass as they are."""

    def __init__(self, source: Grid, target: Grid) -> None:
        super().__init__()
        self.kept = min(source.prefix, target.prefix)
        self.resize = nn.Sequential(
            TokensToMap(source), ResizeMap(source, target), MapToTokens(target.prefix - self.kept)
        )

    def forward(self, x: Tensor) -> Tensor:
        resized: Tensor = self.resize(x)
        return torch.cat([x[:, : self.kept], resized], 1)


class MultiBridge(nn.Module):
    """Bridges between features that have several tensors, such as pyramids of maps.

    ```
    out_j = Σ_i bridge_ji(x_i)
    ```

    Args:
        rows: For each tensor of the target, the bridges that lead to it, by the place of the tensor that
            each reads.
        form: How the target arranges its tensors, as `fcfd._tree.flatten` tells.
    """

    def __init__(self, rows: Iterable[Mapping[int, nn.Module]], form: TreeSpec) -> None:
        super().__init__()
        keyed = ({str(at): module for at, module in row.items()} for row in rows)
        self.rows, self.form = nn.ModuleList(map(nn.ModuleDict, keyed)), form

    def forward(self, x: Any) -> Any:
        found = leaves(x)
        arrived = [[module(found[int(at)]) for at, module in row.items()] for row in self.rows]  # type: ignore[operator]
        return unflatten([torch.stack(own).sum(0) for own in arrived], self.form)


class MatchStatistics(nn.Module):
    """An `&` bridge without parameters: give a map the channel statistics of what it sees (CrossKD).

    Reads `(feature, seen)`, maps of the same channels; see `fcfd.losses.channel_stats_align`.
    """

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return channel_stats_align(*pair)


class MaskedMix(nn.Module):
    """An `&` bridge that mixes what another bridge returns with what it sees, place by place (MiPKD).

    ```
    out = mask · bridge(feature) + (1 − mask) · seen,    mask ~ Bernoulli(keep), one for each place
    ```

    The mask is drawn from torch's global generator at each call. A reconstruction: the published mixing
    happens in a latent space that both networks share.

    Args:
        bridge: Any module from the feature's space to the target's.
        keep: The probability that a place holds the bridged feature.
    """

    def __init__(self, bridge: nn.Module, *, keep: float = 0.5) -> None:
        super().__init__()
        self.bridge, self.keep = bridge, keep

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        feature, seen = pair
        bridged: Tensor = self.bridge(feature)
        channels = channel_axis(tuple(bridged.shape))
        places = bridged.detach().select(channels, 0).unsqueeze(channels)
        return torch.where(torch.rand_like(places) < self.keep, bridged, seen)
