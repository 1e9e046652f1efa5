"""Stitching: how well one network reads another's features, with an affine map between them and no more.

Both networks are frozen. `stitch` fits the map in closed form; `stitched` puts it behind any stage of the one
and before any stage of the other, as columns that every walk and recipe takes.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._text import check_mapping, check_number, check_type
from ._tree import shape
from .bridges import ResizeMap, bridge
from .layouts import channel_axis
from .paths import crosses, depth, expand
from .stages import Buffers, Column, Params, frozen, stage
from .transforms import joined
from .walking import Columns

_LAYOUTS = {2: "b c", 3: None, 4: "b c h w", 5: "b c d h w"}


@torch.no_grad()
def stitch(source: Tensor, target: Tensor, *, ridge: float = 0.0) -> nn.Sequential:
    """Fit the affine map from one feature to another by least squares, channel by channel, at every place.

    ```
    W, b = argmin Σ_i ‖W x_i + b − y_i‖² + ridge · n · v ‖W‖²
    i over examples and places (n of them), v the mean variance of a channel of x
    ```

    Where places differ, the source is brought to the target's first, as `fcfd.bridge` does: maps are resized,
    tokens laid out on their grid. Of all minima the one of least norm is taken, so channels that are constant
    get no weight.

    Args:
        source: Features `[batch, ...]`: vectors, tokens `[batch, tokens, channels]`, maps or volumes with
            channels second. As many examples as there are: the closed form sees all of them at once.
        target: Features of the same examples.
        ridge: How much to shrink, in units of the source's mean variance.

    Returns:
        A module: what changes the places if they differ, and `affine`. Its own precision is float32, or
        float64 where a feature is; it writes the target's. It learns like any other.

    Raises:
        ValueError: The features are not of the same examples, hold no finite numbers, or no map leads from
            the one form to the other.

    Example:
        >>> source = torch.tensor([[0.0], [1.0], [2.0]])
        >>> fitted = stitch(source, 3 * source + 1)
        >>> fitted(torch.tensor([[10.0]])).round(decimals=3)
        tensor([[31.]], grad_fn=<RoundBackward1>)
    """
    _check_features(source, target)
    check_number("stitch", "ridge", ridge, least=0)
    before = _arranged(source, target)
    x, y = _samples(before(source)), _samples(target)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    covariance = x.T @ x / len(x)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean())
    inverse = torch.linalg.pinv(covariance, hermitian=True, rtol=1e-10)
    weight = (inverse @ (x.T @ y / len(x))).T
    own = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    affine = Affine(weight.to(own), (mean_y - weight @ mean_x).to(own), writes=target.dtype)
    return nn.Sequential(OrderedDict([*before.named_children(), ("affine", affine)]))


class Affine(nn.Module):
    """An affine map of channels, the same at every place.

    Args:
        weight: `[channels there, channels here]`.
        bias: `[channels there]`.
        writes: The precision of what it returns; it reads any.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, writes: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight, self.bias, self.writes = nn.Parameter(weight), nn.Parameter(bias), writes

    def forward(self, x: Tensor) -> Tensor:
        axis = channel_axis(tuple(x.shape))
        y = F.linear(x.to(self.weight.dtype).movedim(axis, -1), self.weight, self.bias)
        return y.movedim(-1, axis).to(self.writes)


def _arranged(source: Tensor, target: Tensor) -> nn.Sequential:
    """What brings the source's places to the target's: the parts of a bridge that learn nothing."""
    with torch.random.fork_rng(devices=[]):  # the bridge's own weights are drawn, and thrown away
        made = bridge(
            tuple(source.shape), tuple(target.shape), layouts=(_LAYOUTS[source.ndim], _LAYOUTS[target.ndim])
        )
    parts = dict(made.to(source.device, torch.float32).named_children())
    before = OrderedDict[str, nn.Module]()
    before.update({name: parts[name] for name in ("map", "resize") if name in parts})
    arranged = nn.Sequential(before)(source[:1].float())
    if "conv" in parts:
        sizes = parts["conv"](arranged).shape[2:]
        if sizes != arranged.shape[2:]:  # the bridge changes the size by its stride
            before["resize"] = ResizeMap(arranged.shape[2:], sizes)
    if "tokens" in parts:
        before["tokens"] = parts["tokens"]
    return nn.Sequential(before)


def _samples(feature: Tensor) -> Tensor:
    """Places and examples as rows of channels, in float64: what is squared needs it."""
    return feature.movedim(channel_axis(tuple(feature.shape)), -1).flatten(0, -2).double()


def _check_features(source: Tensor, target: Tensor) -> None:
    for name, feature in (("source", source), ("target", target)):
        check_type("stitch", name, feature, Tensor, "a feature of one tensor")
        if not feature.is_floating_point():
            raise TypeError(f"stitch: {name} {shape(feature)} of {feature.dtype} must be floating-point.")
        if feature.ndim not in _LAYOUTS or feature.numel() == 0:
            raise ValueError(
                f"stitch: {name} {shape(feature)} must be vectors, tokens, maps or volumes, of at least one "
                "example."
            )
        if not bool(feature.isfinite().all()):
            raise ValueError(f"stitch: {name} {shape(feature)} holds numbers that are not finite.")
    if len(source) != len(target):
        raise ValueError(
            f"stitch: source {shape(source)} and target {shape(target)} must be features of the same "
            "examples."
        )
    if source.device != target.device:
        raise ValueError(f"stitch: source is on {source.device} and target on {target.device}.")


def stitched(
    stages: Mapping[str, Column],
    params: Mapping[str, Params],
    buffers: Mapping[str, Buffers],
    module: nn.Module,
    source: str,
    target: str,
) -> Columns:
    """Columns in which a module leads from any stage of one network into another network at any stage.

    A crossing keeps the depth. So the stages up to the source become one stage, and so do those up to the
    target: then `"s"` is the source, `"t"` the target, `"s>t"` the stitch between them, and `"stt…"` the
    later stages of the other network on it. What measures the stitch, or trains it, is terms on that path:

    | target of the stitch | terms |
    |---|---|
    | the stitch point | `recipes.fula(path, weights=(1, 0, …, 0, 0))` |
    | the penultimate feature | `recipes.fula(path, weights=(0, 0, …, 1, 0))` |
    | every later stage, logits too | `recipes.fula(path)` |
    | logits | `recipes.fula(path, weights=(0, 0, …, 0, 1))`, or a term with `losses.kl` |

    Args:
        stages: The columns of stages of both networks, of any lengths.
        params: A flat dict of parameters for each column.
        buffers: The same of buffers.
        module: What leads from the one feature to the other: `stitch(...)`, or any other.
        source: The path of the feature that is read, `"sss"`.
        target: The path of the feature that it stands in for, `"tt"`.

    Returns:
        Columns of both networks and of the stitch. The networks' parameters are detached, the module's are
        its own, so a gradient reaches the stitch alone.

    Raises:
        ValueError: A path crosses, or does not end in a feature of its network, or both are of one network.

    Example:
        >>> from torch.nn import Linear
        >>> a = fcfd.split([Linear(4, 5), Linear(5, 5), Linear(5, 5), Linear(5, 3)])
        >>> b = fcfd.split([Linear(4, 6), Linear(6, 6), Linear(6, 3)])
        >>> columns = [{"s": one, "t": other} for one, other in zip(a[:3], b[:3])]
        >>> cut = stitched(*columns, Linear(5, 6), "sss", "t")
        >>> values, _ = fcfd.walk(fcfd.plan(("stt",)), *cut, {"": torch.ones(2, 4)})
        >>> values["s>t"].shape, values["stt"].shape
        (torch.Size([2, 6]), torch.Size([2, 3]))

    Reference:
        The paths between any two depths of model stitching: Lenc and Vedaldi, CVPR 2015; Bansal, Nakkiran,
        Barak, NeurIPS 2021.
    """
    for name, columns in (("stages", stages), ("params", params), ("buffers", buffers)):
        check_mapping("stitched", name, columns, "a dict by column: {'s': ..., 't': ...}")
    check_type("stitched", "module", module, nn.Module, "a module from the source to the target")
    source, target = expand(source), expand(target)
    for name, path in (("source", source), ("target", target)):
        _check_feature(name, path, stages)
    here, there = source[0], target[0]
    if here == there:
        raise ValueError(f"stitched: {source!r} and {target!r} are features of one network; stitch two.")
    for name, dicts in (("params", params), ("buffers", buffers)):
        for letter in (here, there):
            if letter not in dicts:
                raise ValueError(f"stitched: {name} has no network {letter!r}.")
    column = f"{here}>{there}"
    own = {letter: stages[letter] for letter in (here, there)}
    cut = {
        letter: joined(own[letter], range(depth(path), len(own[letter]) + 1))
        for letter, path in ((here, source), (there, target))
    }
    return Columns(
        stages={**cut, column: (stage(module),)},
        params={letter: frozen(params[letter]) for letter in own} | {column: dict(module.named_parameters())},
        buffers={letter: dict(buffers[letter]) for letter in own} | {column: dict(module.named_buffers())},
    )


def _check_feature(name: str, path: str, stages: Mapping[str, Column]) -> None:
    if path == "" or crosses(path):
        raise ValueError(f"stitched: {name} is {path!r}; give a feature of one network, such as 'sss'.")
    if path[0] not in stages:
        raise ValueError(
            f"stitched: there is no network {path[0]!r}; stages has {', '.join(map(repr, stages))}."
        )
    most = len(stages[path[0]]) - 1
    if depth(path) > most:
        raise ValueError(
            f"stitched: {name} {path!r} is no feature of network {path[0]!r}; it has some at depths 1 to "
            f"{most}."
        )
