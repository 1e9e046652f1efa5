"""Bridges: small learned maps from one network's feature space to another's.

`bridge` builds one from the two shapes. It is an ordinary module, a stage like any other once it is linked;
any module of your own with the right output shape can stand in its place.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ._text import check_integer, check_number, check_type
from ._tree import TreeSpec, flatten, leaves, tensors, unflatten
from .families.maps import channel_stats_align
from .layouts import Grid, Layout, Shape, channel_axis, channels_last, grid, into_form, is_formed, parse

_FORMS = {2: "vector", 3: "tokens", 4: "map", 5: "volume"}
_RESIZING: dict[int, tuple[Any, str]] = {
    2: (F.adaptive_avg_pool2d, "bilinear"),
    3: (F.adaptive_avg_pool3d, "trilinear"),
}
# By the number of axes in space. Any, because every one of them takes sizes of its own length.
_CONVOLUTIONS: dict[int, tuple[Any, Any, Any]] = {
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d),
}


def identity(source: Any, target: Any) -> nn.Module | None:
    """No bridge where two features have one shape: for `link(..., bridges=identity)`.

    Networks of one architecture read each other's features as they are: a quantised or pruned copy, a moving
    average, blocks that replace blocks.

    Returns:
        `nn.Identity()`, or None, for the usual bridge, where the shapes differ.

    Example:
        >>> identity(torch.ones(2, 3), torch.zeros(2, 3))
        Identity()
        >>> identity(torch.ones(2, 3), torch.zeros(2, 4)) is None
        True
    """
    sizes = [[tensor.shape for tensor in tensors(feature)] for feature in (source, target)]
    return nn.Identity() if sizes[0] == sizes[1] else None


class _Side(NamedTuple):
    """One end of a bridge: the feature's shape in its form, and the layout that it comes from."""

    shape: Shape
    layout: Layout | None

    @property
    def form(self) -> str:
        return _FORMS.get(len(self.shape), "")


def bridge(
    source: Shape,
    target: Shape,
    *,
    rectified: bool = False,
    layouts: tuple[str | None, str | None] = (None, None),
) -> nn.Module:
    """Build a bridge from features of one shape to features of another.

    | source → target | the bridge |
    |---|---|
    | map → map of equal size | conv 3×3, no bias → batch norm |
    | map twice as large | conv 3×3, stride 2, with bias → batch norm |
    | map half as large | transposed conv 4×4, stride 2, padding 1, with bias → batch norm |
    | map of any other size | resize → conv 3×3, no bias → batch norm |
    | volume → volume | as from map to map, in three dimensions |
    | tokens → map | drop the class tokens, lay out the grid → as from map to map |
    | map → tokens | as from map to map → flatten; a class token is the mean of the others |
    | tokens → tokens | resize the grid, keep the class tokens → linear, no bias → layer norm |
    | vector → vector | linear, no bias → batch norm |

    LeakyReLU(0.1) follows where the target's features are rectified. The first three rows and the activation
    are the published bridge; the rest goes beyond it (the authors' code refuses every other shape). A map of
    one row, such as a sequence with its channels first, has a kernel of one row.

    The grid of tokens is that of their layout; where none is stated, that of the map at the other end, its
    size or its ratio of height to width. Between tokens on both sides without a layout, what exceeds the
    largest square is taken for class (and register) tokens, at most five: 197 is 1 + 14 · 14. A sequence
    without such a grid is resized along its length.

    Args:
        source: Shape of a batch of source features. The batch size does not matter.
        target: Shape of a batch of target features. A size other than the example's is resized by the same
            ratio.
        rectified: The target's features are taken after a ReLU.
        layouts: The axes of both, as `fcfd.layouts` says; by default the number of axes tells the form,
            and where a map's first two sizes alone are equal, as in `[2, 7, 7, 768]`, channels are last.

    Returns:
        A module with the submodules `conv` (or `linear`) and `bn` (or `norm`). Convolutions without bias
        start from Kaiming's normal, fan-out; normalisations from one and zero.

    Raises:
        ValueError: No bridge leads from the one form to the other, or a grid of tokens is not known.

    Example:
        >>> module = bridge((2, 16, 32, 32), (2, 64, 16, 16), rectified=True)
        >>> [name for name, _ in module.named_children()]
        ['conv', 'bn', 'act']
        >>> module(torch.zeros(2, 16, 32, 32)).shape
        torch.Size([2, 64, 16, 16])
        >>> module = bridge((2, 16, 100), (2, 50, 32), layouts=("b c t", "b t c"))
        >>> module(torch.zeros(2, 16, 100)).shape
        torch.Size([2, 50, 32])

    Reference:
        Liu et al.: Function-Consistent Feature Distillation, ICLR 2023, arXiv 2304.11832; the authors' code.
    """
    for name, sizes in (("source", source), ("target", target)):
        check_type("bridge", name, sizes, (tuple, list), "the shape of a feature, as tuple(feature.shape)")
        for size in sizes:
            check_integer("bridge", f"a size of {name}", size, least=1)
    check_type("bridge", "rectified", rectified, bool, "whether the target is taken after a ReLU")
    check_type("bridge", "layouts", layouts, (tuple, list), "a pair: (of the source, of the target)")
    ours, theirs = _side(tuple(source), layouts[0]), _side(tuple(target), layouts[1])
    parts: dict[str, nn.Module] = {}
    if ours.layout is not None and not is_formed(ours.layout):
        parts["first"] = Rearrange(f"{ours.layout.raw} -> {ours.layout.form}", **_in_brackets(ours.layout))
    forms = {ours.form, theirs.form}
    if forms == {"vector"}:
        channels = theirs.shape[1]
        parts |= {"linear": nn.Linear(ours.shape[1], channels, bias=False), "bn": nn.BatchNorm1d(channels)}
    elif forms == {"tokens"}:
        parts |= _token_parts(ours, theirs)
    elif forms in ({"map"}, {"tokens", "map"}, {"volume"}):
        parts |= _conv_parts(ours, theirs)
    else:
        raise ValueError(
            f"bridge: no bridge leads from {list(source)} to {list(target)}. Maps [batch, channels, height, "
            "width] and token sequences [batch, tokens, width] lead to each other, vectors [batch, width] to "
            "vectors, volumes to volumes. Pass a module of your own for anything else."
        )
    if rectified:
        parts["act"] = nn.LeakyReLU(0.1)
    if theirs.form == "tokens" and ours.form == "map":
        parts["tokens"] = MapToTokens(_grid_of(theirs, ours).prefix)
    if theirs.layout is not None and not is_formed(theirs.layout):
        parts["last"] = Rearrange(f"{theirs.layout.form} -> {theirs.layout.raw}")
    return nn.Sequential(OrderedDict(parts))


def _side(shape: Shape, pattern: str | None) -> _Side:
    if pattern is None:
        pattern = "b h w c" if channels_last(shape) else None
    if pattern is None:
        return _Side(shape, None)
    layout = parse(pattern)
    return _Side(tuple(into_form(torch.empty(shape, device="meta"), layout).shape), layout)


def _in_brackets(layout: Layout) -> dict[str, int]:
    return layout.sizes if "(" in layout.raw else {}


def _token_parts(ours: _Side, theirs: _Side) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {}
    stated = [grid(side.shape[1], layout=side.layout) for side in (ours, theirs)]
    if ours.shape[1] != theirs.shape[1] or (None not in stated and stated[0] != stated[1]):
        parts["resize"] = ResizeTokens(*_grids(ours, theirs))
    channels = theirs.shape[2]
    return parts | {"linear": nn.Linear(ours.shape[2], channels, bias=False), "norm": nn.LayerNorm(channels)}


def _conv_parts(ours: _Side, theirs: _Side) -> dict[str, nn.Module]:
    """A convolution between maps or volumes, and what lays tokens out before it."""
    parts: dict[str, nn.Module] = {}
    here, there = _sizes(ours, theirs), _sizes(theirs, ours)
    if ours.form == "tokens":
        parts["map"] = TokensToMap(_grid_of(ours, theirs))
    channels = ours.shape[2 if ours.form == "tokens" else 1]
    goal = theirs.shape[2 if theirs.form == "tokens" else 1]
    convolution, transposed, norm = _CONVOLUTIONS[len(here)]
    kernel = [1 if a == b == 1 and len(here) == 2 else 3 for a, b in zip(here, there, strict=True)]
    padding = [size // 2 for size in kernel]
    if here == tuple(2 * size for size in there):
        conv = convolution(channels, goal, 3, stride=2, padding=1)
    elif there == tuple(2 * size for size in here):
        conv = transposed(channels, goal, 4, stride=2, padding=1)
    else:
        conv = convolution(channels, goal, kernel, padding=padding, bias=False)
        if here != there:
            parts["resize"] = ResizeMap(here, there)
    if isinstance(conv, convolution):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return parts | {"conv": conv, "bn": norm(goal)}


def _sizes(side: _Side, other: _Side) -> tuple[int, ...]:
    """The sizes in space of a map or a volume, or of the grid on which tokens lie."""
    if side.form == "tokens":
        found = _grid_of(side, other)
        return (found.height, found.width)
    return side.shape[2:]


def _grid_of(tokens: _Side, other: _Side) -> Grid:
    """The grid of tokens that lead to a map, or come from one."""
    count, (height, width) = tokens.shape[1], other.shape[2:]
    prefix = (tokens.layout.prefix if tokens.layout is not None else None) or 0
    if height == 1:
        return Grid(1, count - prefix, prefix)
    for classes in range(6):  # the map's own size
        if count - classes == height * width and (tokens.layout is None or not tokens.layout.sizes):
            return Grid(height, width, classes)
    found = grid(count, layout=tokens.layout, ratio=height / width)
    if found is None:
        raise ValueError(
            f"bridge: {count} tokens are no grid of {height}·{width} or its ratio, with at most five class "
            f"tokens. State their layout, as in 'b (1 + h=14 w) c', or pass a module of your own."
        )
    return found


def _grids(ours: _Side, theirs: _Side) -> tuple[Grid, Grid]:
    """The stated grids; or else square ones where both sequences have one; or else lines."""
    found = []
    for side in (ours, theirs):
        one = grid(side.shape[1], layout=side.layout) or _square(side.shape[1], side.layout)
        if one is None:
            return Grid(1, ours.shape[1]), Grid(1, theirs.shape[1])
        found.append(one)
    return found[0], found[1]


def _square(tokens: int, layout: Layout | None) -> Grid | None:
    """The largest square of a sequence and the tokens before it, unless its layout says that it is a line."""
    side = int(tokens**0.5)
    line = layout is not None and "(" not in layout.raw
    return None if line or tokens - side * side > 5 else Grid(side, side, tokens - side * side)


class ResizeMap(nn.Module):
    """Resize a map or a volume by a fixed ratio: average where it shrinks, linear where it grows."""

    def __init__(self, source: Sequence[int], target: Sequence[int]) -> None:
        super().__init__()
        self.source, self.target = tuple(source), tuple(target)

    def forward(self, x: Tensor) -> Tensor:
        ratios = zip(x.shape[2:], self.source, self.target, strict=True)
        sizes = [max(1, round(now * there / here)) for now, here, there in ratios]
        shrunk = [min(size, now) for size, now in zip(sizes, x.shape[2:], strict=True)]
        pool, mode = _RESIZING[len(sizes)]
        return F.interpolate(pool(x, shrunk), size=sizes, mode=mode, align_corners=False)


class TokensToMap(nn.Module):
    """Drop the class tokens and lay the others out on their grid, or on a larger one of the same ratio."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        patches = x[:, self.grid.prefix :]
        return rearrange(patches, "b (h w) c -> b c h w", h=self._height(patches.shape[1]))

    def _height(self, patches: int) -> int:
        rows, columns = self.grid.height, self.grid.width
        if rows == 1 or patches == rows * columns:  # a line may have any length
            return rows
        height: int = round(rows * (patches / (rows * columns)) ** 0.5)
        if height * columns * height != patches * rows:
            raise ValueError(
                f"bridge: {patches} tokens lie on no grid of the ratio {rows}·{columns} of the example's. "
                "Link by an example of this ratio, or pass a module of your own."
            )
        return height


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
            TokensToMap(source), ResizeMap(source[:2], target[:2]), MapToTokens(target.prefix - self.kept)
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
            each reads. Where none leads to it, it has no channels, so that who reads it finds an error.
        form: How the target arranges its tensors, as `fcfd._tree.flatten` tells.
    """

    def __init__(self, rows: Iterable[Mapping[int, nn.Module]], form: TreeSpec) -> None:
        super().__init__()
        keyed = ({str(at): module for at, module in row.items()} for row in rows)
        self.rows, self.form = nn.ModuleList(map(nn.ModuleDict, keyed)), form

    def forward(self, x: Any) -> Any:
        found = leaves(x)
        arrived = [[module(found[int(at)]) for at, module in row.items()] for row in self.rows]  # type: ignore[operator]
        absent = found[0][:, :0]
        return unflatten([torch.stack(own).sum(0) if own else absent for own in arrived], self.form)


def multi_bridge(
    source: Any, target: Any, *, reads: Mapping[int, Iterable[int]] | None = None
) -> MultiBridge:
    """Build bridges between features that have several tensors, when one says which lead to which.

    `fcfd.link` does it where both have as many. Pyramids of other numbers of levels it refuses, because all
    to all is a bridge for each of many pairs.

    Args:
        source: The source's feature on an example: a dict, list or tuple of tensors.
        target: The target's.
        reads: For each place of the target, from 0, the places of the source that lead to it. By default all
            lead to all.

    Returns:
        A module from the source's feature to the form of the target's.

    Raises:
        ValueError: A place of the target has nothing that leads to it, or a place is none.

    Example:
        >>> small = {"p3": torch.zeros(2, 4, 8, 8), "p4": torch.zeros(2, 4, 4, 4)}
        >>> large = {**small, "p5": torch.zeros(2, 6, 2, 2)}
        >>> module = multi_bridge(small, large, reads={0: (0,), 1: (1,), 2: (1,)})
        >>> {name: list(level.shape) for name, level in module(small).items()}
        {'p3': [2, 4, 8, 8], 'p4': [2, 4, 4, 4], 'p5': [2, 6, 2, 2]}
    """
    sources, (targets, form) = leaves(source), flatten(target)
    for name, found in (("source", sources), ("target", targets)):
        for leaf in found:
            check_type("multi_bridge", f"a part of {name}", leaf, Tensor, "a feature of tensors")
    if reads is None:
        reads = {place: range(len(sources)) for place in range(len(targets))}
    rows = []
    for place, leaf in enumerate(targets):
        places = tuple(reads.get(place, ()))
        if not places or not {*places} <= {*range(len(sources))}:
            raise ValueError(
                f"multi_bridge: reads[{place}] is {places}; name at least one of the {len(sources)} "
                "places of the source, from 0."
            )
        rectified = bool(leaf.min() >= 0)
        rows.append(
            {at: bridge(tuple(sources[at].shape), tuple(leaf.shape), rectified=rectified) for at in places}
        )
    return MultiBridge(rows, form)


class Orthogonal(nn.Module):
    """A linear bridge that keeps all angles: the projection of VkD, for `losses.vkd`.

    ```
    out = x Pᵀ,    Pᵀ P = 1, or P Pᵀ = 1 where the target is narrower
    P = the orthogonal factor Q of weight = Q R, with a positive diagonal of R
    ```

    `weight` is an ordinary parameter, free to learn; only its directions count. An orthogonal weight is P
    itself, so `state_dict` and `torch.func.functional_call` need to know nothing.

    Args:
        source: Width of what it reads, `[..., source]`: vectors or tokens.
        target: Width of what it returns.

    Example:
        >>> tokens = torch.randn(2, 5, 6)
        >>> projected = Orthogonal(6, 8)(tokens)
        >>> torch.allclose(projected.norm(dim=-1), tokens.norm(dim=-1), atol=1e-5)
        True
    """

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        check_integer("Orthogonal", "source", source, least=1)
        check_integer("Orthogonal", "target", target, least=1)
        self.weight = nn.Parameter(torch.empty(target, source))
        nn.init.orthogonal_(self.weight)

    def projection(self) -> Tensor:
        """P, `[target, source]`."""
        tall = self.weight if self.weight.shape[0] >= self.weight.shape[1] else self.weight.mT
        q, r = torch.linalg.qr(tall.to(torch.promote_types(tall.dtype, torch.float32)))
        projection: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
        return projection if tall is self.weight else projection.mT

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.projection().to(x.dtype))


class MatchStatistics(nn.Module):
    """An `&` bridge without parameters: give a map the channel statistics of what it sees (CrossKD).

    Reads `(feature, seen)`, maps of the same channels, or features of several of them, such as pyramids, each
    of which is matched by itself; see `fcfd.losses.channel_stats_align`.
    """

    def forward(self, pair: tuple[Any, Any]) -> Any:
        check_type("MatchStatistics", "its input", pair, tuple, "the pair (feature, seen)")
        (own, _), (seen, form) = map(flatten, pair)
        if len(own) != len(seen):
            raise ValueError(
                f"MatchStatistics: the feature has {len(own)} tensors, and what it sees {len(seen)}; match "
                "features with as many levels."
            )
        return unflatten([channel_stats_align(*both) for both in zip(own, seen, strict=True)], form)


class MaskedMix(nn.Module):
    """An `&` bridge that mixes what another bridge returns with what it sees, place by place (MiPKD).

    ```
    out = mask · bridge(feature) + (1 − mask) · seen
    mask ~ Bernoulli(keep), one for each place
    ```

    The mask is drawn from torch's global generator at each call. A reconstruction: the published mixing
    happens in a latent space that both networks share.

    Args:
        bridge: Any module from the feature's space to the target's.
        keep: The probability that a place holds the bridged feature.
    """

    def __init__(self, bridge: nn.Module, *, keep: float = 0.5) -> None:
        super().__init__()
        check_type("MaskedMix", "bridge", bridge, nn.Module, "a module that leads to the target's feature")
        check_number("MaskedMix", "keep", keep, least=0, most=1)
        self.bridge, self.keep = bridge, keep

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        feature, seen = pair
        bridged: Tensor = self.bridge(feature)
        channels = channel_axis(tuple(bridged.shape))
        places = bridged.detach().select(channels, 0).unsqueeze(channels)
        return torch.where(torch.rand_like(places) < self.keep, bridged, seen)
