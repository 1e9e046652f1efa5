"""Losses of features and maps that no reference value covers, against their formulas written out."""

import pytest
import torch
from torch import Tensor

from fcfd.families.features import attended_squared_error, mgd, ofd, srd, vid
from fcfd.families.maps import (
    attention_transfer,
    channel_stats_align,
    channel_wise_divergence,
    fsp_matrix,
    hcl,
    inter_channel_correlation,
    nst_poly,
    pkd,
    wavelet_compress,
    wkd_feature,
)


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_attended_squared_error_compares_weighted_sums() -> None:
    prediction, target, attention = maps(2, 3, 4, 5), maps(2, 3, 4, 5) + 1, maps(2, 4, 5).abs()
    wanted = torch.zeros(2, dtype=torch.float64)
    for b in range(2):
        for c in range(3):
            student = (attention[b] * prediction[b, c]).sum()
            wanted[b] += (student - (attention[b] * target[b, c]).sum()) ** 2 / 3
    torch.testing.assert_close(attended_squared_error(prediction, target, attention), wanted)


def test_attended_squared_error_reads_bags_of_instances() -> None:
    bags, attention = maps(2, 6, 8), maps(2, 8).softmax(1)
    error = attended_squared_error(bags, bags.flip(2), attention)
    torch.testing.assert_close(error, attended_squared_error(bags.flip(2), bags, attention))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_wavelet_compress_is_the_best_approximation_with_as_many_coefficients(keep: float) -> None:
    feature = maps(2, 3, 6, 4)
    count = round(keep * 72)
    basis = torch.stack([wavelet_compress(unit.reshape(1, 3, 6, 4), keep=1.0) for unit in torch.eye(72)])
    torch.testing.assert_close(basis.reshape(72, 72), torch.eye(72))
    # The Haar transform of a block [a b; c d], from its definition.
    blocks = feature.unfold(2, 2, 2).unfold(3, 2, 2).reshape(2, 3, 3, 2, 4)
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double() / 2
    energies = (blocks @ signs).square().flatten(1).sort(descending=True).values
    kept = wavelet_compress(feature, keep=keep)
    torch.testing.assert_close(kept.square().sum((1, 2, 3)), energies[:, :count].sum(1))
    torch.testing.assert_close((feature - kept).square().sum((1, 2, 3)), energies[:, count:].sum(1))


def test_wavelet_compress_takes_odd_sides() -> None:
    feature = maps(2, 3, 5, 7)
    torch.testing.assert_close(wavelet_compress(feature, keep=1.0), feature)
    assert wavelet_compress(feature, keep=0.3).shape == feature.shape


def test_attention_of_any_exponent_is_of_absolute_values() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 5, 4, 4)
    odd = attention_transfer(student, teacher, p=3.0)
    torch.testing.assert_close(odd, attention_transfer(-student.abs(), teacher.abs(), p=3.0))


def test_a_target_that_is_never_positive_asks_little() -> None:
    student, teacher = maps(2, 3, 4, 4), -maps(2, 3, 4, 4).abs() - 1
    margin = torch.full([3], -0.5, dtype=torch.float64)
    wanted = (student + 0.5).clamp_min(0).square().sum((1, 2, 3))
    torch.testing.assert_close(ofd(student, teacher, margin), wanted)


SPACELESS = (
    hcl,
    attention_transfer,
    nst_poly,
    wkd_feature,
    channel_wise_divergence,
    inter_channel_correlation,
    pkd,
    fsp_matrix,
)


@pytest.mark.parametrize("loss", SPACELESS, ids=lambda loss: loss.__name__)
def test_a_map_has_any_axes_of_space(loss) -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 3, 4, 4) + maps(4)
    flat = loss(student, teacher)
    # A row of pixels is the same along one axis, or along two or three of which the others are of size one.
    row, column = student[:, :, :1], teacher[:, :, :1]
    wanted = loss(row.reshape(2, 3, 4), column.reshape(2, 3, 4))
    for size in ((4, 1), (4, 1, 1)):
        torch.testing.assert_close(loss(row.reshape(2, 3, *size), column.reshape(2, 3, *size)), wanted)
    assert loss(student.reshape(2, 3, 2, 2, 4), teacher.reshape(2, 3, 2, 2, 4)).shape == flat.shape


@pytest.mark.parametrize("size", [(4,), (4, 4), (4, 4, 2)], ids=str)
def test_a_larger_map_is_pooled_along_every_axis(size: tuple[int, ...]) -> None:
    small, large = maps(2, 3, *size), maps(2, 3, *(2 * side for side in size))
    pooled = large
    for axis in range(2, large.ndim):
        pooled = pooled.unflatten(axis, (-1, 2)).mean(axis + 1)
    for loss in (attention_transfer, nst_poly, fsp_matrix):
        torch.testing.assert_close(loss(small, large), loss(small, pooled))


def test_a_grid_of_cells_cuts_every_axis() -> None:
    student, teacher = maps(2, 3, 4, 4, 4), maps(2, 3, 4, 4, 4) + 1
    halves = slice(0, 2), slice(2, 4)
    wanted = torch.zeros(2, dtype=torch.float64)
    for a in halves:
        for b in halves:
            for c in halves:
                wanted += wkd_feature(student[:, :, a, b, c], teacher[:, :, a, b, c]) / 8
    torch.testing.assert_close(wkd_feature(student, teacher, grid=2), wanted)


MAP = torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attended_squared_error(MAP, MAP, torch.ones(2, 4)),
            r"attended_squared_error: attention \[2, 4\] must have one weight for each position, \[2, 4, 4\]",
        ),
        (
            lambda: ofd(MAP, MAP, torch.zeros(4)),
            r"ofd: margin \[4\] must have one value for each channel, \[3\]",
        ),
        (
            lambda: vid(MAP, MAP, torch.zeros(1, 3)),
            r"vid: log_scale \[1, 3\] must have one value for each channel, \[3\]",
        ),
        (lambda: mgd(MAP, MAP, torch.ones(2, 3), torch.relu), r"mgd: mask \[2, 3\] must have 1 or the"),
        (
            lambda: mgd(MAP, MAP, torch.ones(2, 1, 1, 1), lambda x: x[:, :1]),
            r"mgd: generated \[2, 1, 4, 4\] and target \[2, 3, 4, 4\] must have the same shape",
        ),
        (lambda: srd(torch.ones(1, 3), torch.ones(1, 3)), r"srd: prediction \[1, 3\] has one example"),
        (lambda: pkd(torch.ones(1, 3), torch.ones(1, 3)), r"pkd: \[1, 3\] has one value a channel"),
        (
            lambda: channel_stats_align(MAP, torch.ones(2, 4, 4, 4)),
            r"channel_stats_align: feature \[2, 3, 4, 4\] and target \[2, 4, 4, 4\] must agree in \[ba",
        ),
        (
            lambda: wkd_feature(MAP, MAP, grid=4),
            r"wkd_feature: a cell of grid 4 has fewer than two pixels of the map \[2, 3, 4, 4\]",
        ),
        (
            lambda: hcl(MAP[:, :, 0, 0], MAP[:, :, 0, 0]),
            r"hcl: prediction \[2, 3\] must be \[batch, ch",
        ),
        (
            lambda: attention_transfer(MAP, torch.ones(2, 3, 4)),
            r"attention_transfer: prediction \[2, 3, 4, 4\] and target \[2, 3, 4\] must have the same number",
        ),
        (
            lambda: attention_transfer(torch.ones(2, 3, 4, 4, 4, 4), torch.ones(2, 3, 2, 2, 2, 2)),
            r"attention_transfer: a map \[2, 3, 4, 4, 4, 4\] of 4 axes of places cannot be pooled",
        ),
        (
            lambda: channel_wise_divergence(MAP[..., :1, :1], MAP[..., :1, :1]),
            r"channel_wise_divergence: prediction \[2, 3, 1, 1\] has one position",
        ),
        (
            lambda: wavelet_compress(MAP, keep=0.0),
            r"wavelet_compress: keep 0\.0 must be above 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        call()
