"""Losses between maps ``[batch, channels, *places]``, compared through space and channels.

Places are one to three axes: time, height and width, or a volume.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .._text import check_integer, check_number, check_plain
from .._tree import shape
from ._checks import agreeing, alike, floats
from ._numerics import exact, mean_by_example, safe_normalize, safe_sqrt
from ._softmaxes import FORWARD, softmax_divergence

_MAP = "batch, channels, places, ..."
_ANY = "batch, channels, ..."
_EXAMPLES = "Give both networks the same examples."
_CHANNELS = "Bridge one map into the other's channels first."
_BRIDGE = "Bridge one map into the other's space first."


def attention_transfer(prediction: Tensor, target: Tensor, *, p: float = 2.0) -> Tensor:
    """Mean squared error of two spatial attention maps, each of length one.

    ```
    loss[b] = mean over space of (Q(prediction) − Q(target))²
    Q(f) = q / ‖q‖,    q = Σ_c |f_c|^p
    ```

    Args:
        prediction: Map `[batch, channels, *places]`.
        target: Map of the same examples. Its channels may differ, and its size: the larger map is
            average-pooled to the smaller one's.
        p: Exponent of the attention; published 2.

    Returns:
        `[batch]`.

    Raises:
        ValueError: An input is no map, or the examples differ.

    Example:
        >>> left, right = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
        >>> attention_transfer(left, right)
        tensor([1.])

    Reference:
        Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928. Checked
        against szagoruyko/attention-transfer `at_loss` and megvii-research/mdistiller. The paper writes the
        norm ‖Q − Q‖, which is `(height * width * loss).sqrt()`; everybody, the authors first, runs this
        mean of squares, to which the published weight of 1000 belongs and whose gradient vanishes at
        equality. The code takes f^p without the absolute value, so an odd p differs.
    """
    name = "attention_transfer"
    check_plain(name, "p", p, above=0)
    student, teacher = _one_size(name, prediction=prediction, target=target)

    def attention(feature: Tensor) -> Tensor:
        powers = feature.pow(p) if p % 2 == 0 else feature.abs().pow(p)
        return safe_normalize(powers.sum(1).flatten(1))

    return F.mse_loss(attention(student), attention(teacher), reduction="none").mean(1)


def hcl(prediction: Tensor, target: Tensor, *, sizes: tuple[int, ...] = (4, 2, 1)) -> Tensor:
    """Hierarchical context loss: squared error of two maps at full size and pooled to a few small sizes.

    ```
    loss[b] = (mse(f, g) + Σ_k 2⁻ᵏ · mse(pool_k(f), pool_k(g))) / (1 + Σ_k 2⁻ᵏ)
    ```

    `pool_k` averages to the k-th of the sizes that are below the map's height (its first place axis),
    k = 1, 2, ...

    Args:
        prediction: Map `[batch, channels, *places]`, already in the target's space.
        target: Map of the same shape.
        sizes: Side lengths of the pooled maps, one for all axes; published (4, 2, 1).

    Returns:
        `[batch]`; the published loss adds the mean of each level's.

    Raises:
        ValueError: The shapes differ, or an input is no map.

    Example:
        >>> hcl(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
        tensor([1., 1.])

    Reference:
        Chen et al.: Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv 2104.09044. Checked against
        dvlab-research/ReviewKD `hcl`. The fusion modules and the warm-up are the caller's.
    """
    name = "hcl"
    if not isinstance(sizes, tuple | list):
        raise TypeError(f"{name}: sizes {sizes!r} must be a tuple of whole numbers.")
    for size in sizes:
        check_integer(name, "sizes", size, least=1)
    student, teacher = alike(name, _MAP, _BRIDGE, prediction=prediction, target=target)
    difference = student - teacher
    # Pooling is linear, so the difference is pooled once instead of both maps.
    pooled = [_pooled(name, difference, size) for size in sizes if size < difference.shape[2]]
    weights = [2.0**-k for k in range(1 + len(pooled))]
    errors = [mean_by_example(level.square()) for level in (difference, *pooled)]
    weighted = [weight * error for weight, error in zip(weights, errors, strict=True)]
    return torch.stack(weighted).sum(0) / sum(weights)


def channel_wise_divergence(prediction: Tensor, target: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Kullback–Leibler divergence of where each channel looks: a softmax over the positions.

    ```
    loss[b] = T² · mean_c Σ_n p_t (log p_t − log p_s)
    p = softmax over positions of f / T
    ```

    Args:
        prediction: Map `[batch, channels, *places]`, already in the target's space; logit maps too.
        target: Map of the same shape.
        temperature: T; published 4.

    Returns:
        `[batch]`, in nats: the mean over channels of `kl` with the positions as classes.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> feature = torch.arange(8.0).reshape(1, 2, 2, 2)
        >>> channel_wise_divergence(feature, feature + 5.0)
        tensor([0.])

    Reference:
        Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, arXiv 2011.13256.
        Checked against irfanICMLL/TorchDistiller `CriterionCWD` (which takes the logarithm of a softmax and
        detaches the target) and open-mmlab/mmrazor.
    """
    name = "channel_wise_divergence"
    check_number(name, "temperature", temperature, above=0)
    pair = alike(name, _MAP, _BRIDGE, prediction=prediction, target=target)
    if prediction[0, 0].numel() == 1:
        raise ValueError(
            f"{name}: prediction {shape(prediction)} has one position, whose softmax is always 1."
        )
    student, teacher = (feature.flatten(2) / temperature for feature in pair)
    return softmax_divergence(student, teacher, FORWARD, factor=temperature**2).mean(1)


def pkd(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error of two maps, each standardised by channel: one minus their correlation.

    ```
    loss = ½ · mean (n(prediction) − n(target))²,    n(f) = (f − mean_c) / (std_c + 1e-6)
    ```

    Mean and (unbiased) deviation of a channel are over batch and space, so that the loss is, up to the
    1e-6, (n − 1) / n · (1 − Pearson correlation) averaged over channels.

    Args:
        prediction: Map `[batch, channels, *places]`.
        target: Map of the same shape. Where sizes differ, resize the student's map first; published:
            `torch.nn.functional.interpolate(student, target.shape[2:], mode="bilinear")`.

    Returns:
        A scalar: the statistics couple the batch.

    Raises:
        ValueError: The shapes differ, or a channel has fewer than two values.

    Example:
        >>> feature = torch.arange(12.0).reshape(2, 3, 2)
        >>> pkd(feature, 3.0 * feature + 1.0).round(decimals=4)
        tensor(0.)

    Reference:
        Cao et al.: PKD: General Distillation Framework for Object Detectors via Pearson Correlation
        Coefficient, NeurIPS 2022, arXiv 2207.02039. Checked against open-mmlab/mmrazor `PKDLoss`, which
        resizes inside.
    """
    name, hint = "pkd", "Bridge or resize one map first."
    student, teacher = alike(name, _ANY, hint, prediction=prediction, target=target)
    return 0.5 * F.mse_loss(_standardized(name, student), _standardized(name, teacher))


def channel_stats_align(feature: Tensor, target: Tensor) -> Tensor:
    """Give every channel of a map the mean and the deviation that it has in the target.

    ```
    out = (feature − mean_c) / (std_c + 1e-6) · std_c(target) + mean_c(target)
    ```

    Mean and (unbiased) deviation of a channel are over batch and space. It is a bridge without parameters
    that sees the target.

    Args:
        feature: Map `[batch, channels, ...]`.
        target: Map of the same examples and channels; its size may differ.

    Returns:
        A map of the feature's shape. The gradient also flows through the statistics of both.

    Raises:
        ValueError: Examples or channels differ, or a channel has fewer than two values.

    Example:
        >>> teacher = torch.tensor([[[10.0, 30.0]]])
        >>> channel_stats_align(torch.tensor([[[1.0, 2.0]]]), teacher).round()
        tensor([[[10., 30.]]])

    Reference:
        Wang et al.: CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024, arXiv
        2306.11369. Checked against jbwang1997/CrossKD `align_scale`. No deviation.
    """
    name, shared = "channel_stats_align", "batch, channels"
    student, teacher = agreeing(name, _ANY, shared, _CHANNELS, feature=feature, target=target)
    mean, deviation = _channel_moments(name, teacher)
    return _standardized(name, student) * deviation + mean


def wkd_feature(
    prediction: Tensor, target: Tensor, *, mean_weight: float = 1.0, grid: int = 1, eps: float = 1e-5
) -> Tensor:
    """Squared Wasserstein distance of two maps, read as a Gaussian for each channel and cell of a grid.

    ```
    loss[b] = Σ_{c, cells} (mean_weight · (μ_s − μ_t)² + (σ_s − σ_t)²) / cells
    σ = √(variance + eps)
    ```

    Args:
        prediction: Map `[batch, channels, *places]`.
        target: Map of the same examples and channels; its size may differ.
        mean_weight: How much more the means count; 1 is the distance itself, the published recipes set
            more for each pair of networks.
        grid: Cells along each place axis, cut as adaptive pooling cuts them, each with its own statistics:
            `grid` to the power of the axes.
        eps: Added to the (unbiased) variance; published 1e-5.

    Returns:
        `[batch]`, a sum over channels.

    Raises:
        ValueError: Examples or channels differ, or the grid leaves a cell with fewer than two pixels.

    Example:
        >>> teacher = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> wkd_feature(teacher + 2.0, teacher)
        tensor([4.])

    Reference:
        Lv, Yang, Li: Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation,
        NeurIPS 2024, arXiv 2412.08139. Checked against JiamingLv/WKD `wkd_feature_loss`, whose two parts
        its trainer adds with the weight of the means.
    """
    name, shared = "wkd_feature", "batch, channels"
    check_number(name, "mean_weight", mean_weight)
    check_integer(name, "grid", grid, least=1)
    check_number(name, "eps", eps, least=0)
    pair = agreeing(name, _MAP, shared, _CHANNELS, prediction=prediction, target=target)
    (mean_s, variance_s), (mean_t, variance_t) = (_cell_moments(name, feature, grid) for feature in pair)
    means = (mean_s - mean_t).square()
    deviations = (safe_sqrt(variance_s + eps) - safe_sqrt(variance_t + eps)).square()
    return (mean_weight * means + deviations).sum((1, 2)) / means.shape[2]


def fsp_matrix(first: Tensor, last: Tensor) -> Tensor:
    """How a block transforms its feature: the mean product of every channel before and after it.

    ```
    out[b, i, j] = mean over space of last[b, i] · first[b, j]
    ```

    Args:
        first: Map `[batch, first_channels, *places]` where the block begins.
        last: Map `[batch, last_channels, *places]` where it ends. The larger of the two maps is
            average-pooled to the smaller one's size.

    Returns:
        `[batch, last_channels, first_channels]`.

    Raises:
        ValueError: An input is no map, or the examples differ.

    Example:
        The published loss compares the matrices of the two networks:

        >>> from fcfd.losses import squared_error
        >>> student, teacher = torch.ones(2, 3, 8, 8), torch.ones(2, 5, 4, 4)
        >>> squared_error(fsp_matrix(student, teacher), fsp_matrix(student, 2 * teacher))
        tensor([1., 1.])

    Reference:
        Yim et al.: A Gift from Knowledge Distillation, CVPR 2017. Checked against HobbitLong/RepDistiller
        `FSP`. torchdistill's `FSPLoss` pools by maximum and takes norms by row: another function.
    """
    before, after = (feature.flatten(2) for feature in _one_size("fsp_matrix", first=first, last=last))
    with exact(first):
        return after @ before.mT / before.shape[-1]


def inter_channel_correlation(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared difference of how the channels of two maps correlate, each row of length one.

    ```
    loss[b] = 1/channels · ‖R(prediction) − R(target)‖²
    R = rows of F Fᵀ, each divided by its norm
    ```

    `F` is the map as a matrix `[channels, positions]`.

    Args:
        prediction: Map `[batch, channels, *places]`, bridged to the target's channels (published: a 1×1
            convolution and a batch norm).
        target: Map of the same examples and channels; its size may differ.

    Returns:
        `[batch]`; time grows with channels² · positions, memory with channels².

    Raises:
        ValueError: Examples or channels differ.

    Example:
        >>> feature = torch.arange(8.0).reshape(1, 2, 2, 2)
        >>> inter_channel_correlation(feature, 2 * feature)
        tensor([0.])

    Reference:
        Liu et al.: Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, ICCV
        2021, arXiv 2202.03680. Checked against ADLab-AutoDrive/ICKD, CIFAR code. The authors' ImageNet
        code and torchdistill divide by the batch once more.
    """
    name, shared = "inter_channel_correlation", "batch, channels"
    pair = agreeing(name, _MAP, shared, _CHANNELS, prediction=prediction, target=target)
    with exact(prediction):
        student, teacher = (safe_normalize(x @ x.mT) for x in (feature.flatten(2) for feature in pair))
    return F.mse_loss(student, teacher, reduction="none").sum((1, 2)) / student.shape[1]


def nst_poly(prediction: Tensor, target: Tensor) -> Tensor:
    """Neuron selectivity transfer: maximum mean discrepancy of the channels under ⟨x, y⟩².

    ```
    loss[b] = mean_ij ⟨s_i, s_j⟩² + mean_ij ⟨t_i, t_j⟩² − 2 mean_ij ⟨s_i, t_j⟩²
            = ‖Sᵀ S / C_s − Tᵀ T / C_t‖²
    ```

    `s_i` is channel i of the prediction as a vector of length one, `S` the matrix of them.

    Args:
        prediction: Map `[batch, channels, *places]`.
        target: Map of the same examples. Its channels may differ, and its size: the larger map is
            average-pooled to the smaller one's.

    Returns:
        `[batch]`. Of the two forms the smaller one is computed, so that memory grows with the square of the
        positions or of the channels, whichever are fewer.

    Raises:
        ValueError: An input is no map, or the examples differ.

    Example:
        >>> feature = torch.rand(2, 3, 4, 4)
        >>> nst_poly(feature, feature)
        tensor([0., 0.])

    Reference:
        Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, arXiv
        1707.01219. Checked against HobbitLong/RepDistiller `NSTLoss`, which detaches the target from its
        own term but not from the mixed one; here the target gets the whole gradient.
    """
    pair = _one_size("nst_poly", prediction=prediction, target=target)
    student, teacher = (safe_normalize(feature.flatten(2)) for feature in pair)
    with exact(prediction):
        if student.shape[2] <= max(student.shape[1], teacher.shape[1]):
            difference = student.mT @ student / student.shape[1] - teacher.mT @ teacher / teacher.shape[1]
            return difference.square().sum((1, 2))
        squares = [(a @ b.mT).square().mean((1, 2)) for a, b in ((student, student), (teacher, teacher))]
        return squares[0] + squares[1] - 2 * (student @ teacher.mT).square().mean((1, 2))


def wavelet_compress(feature: Tensor, *, keep: float = 0.5) -> Tensor:
    """The closest map that only has a share of its Haar wavelet coefficients: a transform of a target.

    ```
    out = H⁻¹(c · [|c| is among the largest keep · n of the example]),    c = H(feature)
    ```

    `H` is one level of the orthonormal Haar transform of every channel, on blocks of 2×2 pixels, so that no
    other choice of as many coefficients comes closer to the feature in squared error.

    Args:
        feature: Map `[batch, channels, height, width]`. An odd side repeats its last row or column.
        keep: Share of the coefficients of an example that are kept, above 0 and up to 1. Ties are kept.

    Returns:
        A map of the feature's shape.

    Raises:
        ValueError: The feature is no map, or the share is outside its range.

    Example:
        >>> edge = torch.tensor([[[[1.0, 1.0, 0.0, 0.1], [1.0, 1.0, 0.0, 0.1]]]])
        >>> wavelet_compress(edge, keep=0.125)
        tensor([[[[1., 1., 0., 0.],
                  [1., 1., 0., 0.]]]])

    Reference:
        Wavelet-Based Feature Compression for knowledge distillation, 2024. A reconstruction: the paper's
        transform, levels and selection could not be read; those stated here are this library's.
    """
    name = "wavelet_compress"
    check_plain(name, "keep", keep, above=0, most=1)
    (checked,) = floats(name, "batch, channels, height, width", feature=feature)
    height, width = feature.shape[-2:]
    even = F.pad(checked, (0, width % 2, 0, height % 2), mode="replicate")
    blocks = rearrange(even, "b c (h y) (w x) -> b c h w (y x)", y=2, x=2)
    coefficients = _haar(blocks)
    magnitude = coefficients.detach().abs().flatten(1)
    dropped = magnitude.shape[1] - max(1, round(keep * magnitude.shape[1]))
    threshold = magnitude.kthvalue(dropped + 1, dim=1).values
    small = (magnitude < threshold.unsqueeze(1)).reshape(coefficients.shape)
    restored = _haar(torch.where(small, 0.0, coefficients))
    restored = rearrange(restored, "b c h w (y x) -> b c (h y) (w x)", y=2, x=2)
    return restored[..., :height, :width]


# What the losses share


def _one_size(function: str, /, **pair: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of the same examples, the larger one (by its first place axis) pooled to the other's size."""
    first, second = agreeing(function, _MAP, "batch", _EXAMPLES, **pair)
    if first.ndim != second.ndim:
        found = " and ".join(f"{name} {shape(feature)}" for name, feature in pair.items())
        raise ValueError(f"{function}: {found} must have the same number of axes.")
    if first.shape[2:] > second.shape[2:]:
        return _pooled(function, first, *second.shape[2:]), second
    if first.shape[2:] < second.shape[2:]:
        return first, _pooled(function, second, *first.shape[2:])
    return first, second


def _pooled(function: str, feature: Tensor, *size: int) -> Tensor:
    """A map averaged to a size; one number stands for all axes."""
    axes = feature.ndim - 2
    pools: tuple[Callable[..., Tensor], ...] = (
        F.adaptive_avg_pool1d,
        F.adaptive_avg_pool2d,
        F.adaptive_avg_pool3d,
    )
    if axes > len(pools):
        raise ValueError(
            f"{function}: a map {shape(feature)} of {axes} axes of places cannot be pooled; three can."
        )
    return pools[axes - 1](feature, size if len(size) == axes else size * axes)


def _channel_moments(function: str, feature: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased) of every channel over batch and space, kept as axes."""
    if feature.numel() == feature.shape[1]:
        raise ValueError(f"{function}: {shape(feature)} has one value a channel; a deviation needs two.")
    axes = [axis for axis in range(feature.ndim) if axis != 1]
    variance, mean = torch.var_mean(feature, dim=axes, keepdim=True)
    return mean, safe_sqrt(variance)


def _standardized(function: str, feature: Tensor) -> Tensor:
    """Every channel with the mean 0 and the deviation 1; a constant one only loses its mean."""
    mean, deviation = _channel_moments(function, feature)
    return (feature - mean) / torch.where(deviation <= 0, 1.0, deviation + 1e-6)


def _cell_moments(function: str, feature: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance `[batch, channels, cells]` over the cells of an adaptive pooling."""
    cells = [feature]
    for axis in range(2, feature.ndim):
        cells = [cell.narrow(axis, *span) for cell in cells for span in _spans(feature.shape[axis], grid)]
    if min(cell[0, 0].numel() for cell in cells) < 2:
        raise ValueError(
            f"{function}: a cell of grid {grid} has fewer than two pixels of the map {shape(feature)}. "
            "Take a smaller grid."
        )
    moments = [torch.var_mean(cell.flatten(2), dim=2) for cell in cells]
    return torch.stack([mean for _, mean in moments], -1), torch.stack([var for var, _ in moments], -1)


def _spans(size: int, grid: int) -> list[tuple[int, int]]:
    """Start and length of every cell of an axis, as adaptive pooling cuts it."""
    starts = [k * size // grid for k in range(grid)]
    ends = [-(-(k + 1) * size // grid) for k in range(grid)]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _haar(blocks: Tensor) -> Tensor:
    """The orthonormal Haar transform of the four pixels on the last axis; it is its own inverse."""
    a, b, c, d = blocks.unbind(-1)
    return torch.stack((a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d), -1) / 2
