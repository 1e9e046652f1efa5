"""From the names and hyper-parameters of the published losses to calls of `fcfd.families.maps`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd.families import maps as m
from fcfd.families.features import squared_error

from ._types import Adapters
from .features import pooled

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def attention_transfer(x: Inputs, h: Hyper) -> Tensor:
    if h["p"] % 2 == 0:
        return m.attention_transfer(x["student"], x["teacher"], p=h["p"]).mean()
    # The published code raises to an odd power without the absolute value of the formula.
    maps = (F.normalize(map.pow(h["p"]).mean(1).flatten(1)) for map in pooled(x["student"], x["teacher"]))
    return squared_error(*maps).mean()


def attention_transfer_paper(x: Inputs, h: Hyper) -> Tensor:
    student, target = pooled(x["student"], x["teacher"])
    positions = student.shape[-2] * student.shape[-1]
    return (positions * m.attention_transfer(student, target, p=h["p"])).sqrt().mean()


def hcl(x: Inputs, h: Hyper) -> Tensor:
    levels = [m.hcl(x[f"student{k}"], x[f"teacher{k}"]).mean() for k in range(len(x) // 2)]
    return torch.stack(levels).sum()


def pkd(x: Inputs, h: Hyper) -> Tensor:
    student, target = x["student"], x["teacher"]
    if student.shape[-2] != target.shape[-2] and h["resize_student"]:
        student = F.interpolate(student, target.shape[-2:], mode="bilinear")
    elif student.shape[-2] != target.shape[-2]:
        target = F.interpolate(target, student.shape[-2:], mode="bilinear")
    return m.pkd(student, target)


def wkd_feature(x: Inputs, h: Hyper) -> Tensor:
    return m.wkd_feature(x["student"], x["teacher"], **h).mean()


def fsp(x: Inputs, h: Hyper) -> Tensor:
    student = m.fsp_matrix(x["student0"], x["student1"])
    return squared_error(student, m.fsp_matrix(x["teacher0"], x["teacher1"])).mean()


ADAPTERS: Adapters = {
    "attention_transfer": attention_transfer,
    "hcl": hcl,
    "pkd": pkd,
    "channel_wise_divergence": lambda x, h: m.channel_wise_divergence(
        x["student"], x["teacher"], temperature=h["T"]
    ).mean(),
    "channel_stats_align": lambda x, h: m.channel_stats_align(x["student"], x["teacher"]),
    "wkd_feature": wkd_feature,
    "fsp": fsp,
    "inter_channel_correlation": lambda x, h: m.inter_channel_correlation(x["student"], x["teacher"]).mean(),
    "nst_poly": lambda x, h: m.nst_poly(x["student"], x["teacher"]).mean(),
}

PAPER: Adapters = {"attention_transfer": attention_transfer_paper}
