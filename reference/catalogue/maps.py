"""Rows of `fcfd.families.maps`."""

import torch
from torch import Generator, Tensor

from fcfd.families import maps

from .row import Row, Size, map_pair

POOLED = "the larger map is pooled to the smaller one"


def first_and_last(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(zip(("first", "last"), map_pair(size, generator, dtype).values(), strict=True))


def one_map(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"feature": map_pair(size, generator, dtype)["prediction"]}


def feature_and_target(size: Size, generator: Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(zip(("feature", "target"), map_pair(size, generator, dtype).values(), strict=True))


ROWS: tuple[Row, ...] = (
    Row(
        maps.attention_transfer,
        "match where the networks look, whatever their channels",
        "B·C·N",
        map_pair,
        least=Size(1, 2, 2),
        free_width=POOLED,
    ),
    Row(maps.hcl, "match a map at several sizes", "B·C·N", map_pair),
    Row(
        maps.channel_wise_divergence,
        "match where each channel looks, for dense prediction",
        "B·C·N",
        map_pair,
        least=Size(1, 2, 2),
    ),
    Row(
        maps.pkd,
        "match a map up to the scale of its channels, for detection",
        "B·C·N",
        map_pair,
        output="",
        least=Size(2, 2, 2),
        couples="the channels are standardised by statistics of the batch",
    ),
    Row(
        maps.channel_stats_align,
        "give a map the target's channel statistics before a crossing",
        "B·C·N",
        feature_and_target,
        output="batch, channels, height, width",
        learns=("feature",),
        targets=(),
        least=Size(2, 2, 2),
        couples="the statistics are those of the batch",
    ),
    Row(
        maps.wkd_feature,
        "match the distribution of each channel",
        "B·C·N",
        map_pair,
        least=Size(1, 2, 2),
        free_width="only statistics over space are compared",
    ),
    Row(
        maps.fsp_matrix,
        "describe how a block transforms its feature",
        "B·C²·N",
        first_and_last,
        output="batch, last_channels, first_channels",
        learns=("first", "last"),
        targets=(),
    ),
    Row(
        maps.inter_channel_correlation,
        "match how channels correlate",
        "B·C²·N",
        map_pair,
        least=Size(1, 2, 2),
        free_width="only products of channels are compared",
    ),
    Row(
        maps.nst_poly,
        "match the set of patterns that channels select",
        "B·C·N·min(C, N)",
        map_pair,
        least=Size(1, 2, 2),
        free_width=POOLED,
    ),
    Row(
        maps.wavelet_compress,
        "keep the strongest wavelet coefficients of a target",
        "B·C·N",
        one_map,
        output="batch, channels, height, width",
        learns=("feature",),
        targets=(),
    ),
)
