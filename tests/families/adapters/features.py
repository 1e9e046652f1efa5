"""From the names and hyper-parameters of the published losses to calls of `fcfd.families.features`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd.families import features as f, logits

from ._types import Adapters

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def pooled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The published methods pool the larger map, before they bridge it."""
    if a.shape[-2:] > b.shape[-2:]:
        return F.adaptive_avg_pool2d(a, b.shape[-2:]), b
    return a, F.adaptive_avg_pool2d(b, a.shape[-2:]) if a.shape != b.shape else b


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)


def convreg_mse(x: Inputs, h: Hyper) -> dict[str, Tensor]:
    student, target = x["student"], x["teacher"]
    height, goal = student.shape[-2], target.shape[-2]
    if height == 2 * goal:
        bridged = F.conv2d(student, x["weight"], x["bias"], stride=2, padding=1)
    elif 2 * height == goal:
        bridged = F.conv_transpose2d(student, x["weight"], x["bias"], stride=2, padding=1)
    else:
        bridged = F.conv2d(student, x["weight"], x["bias"])
    bridged = batch_norm(bridged, x["gamma"], x["beta"])
    bridged = bridged.relu() if h["relu"] else bridged
    return {"value": f.squared_error(bridged, target).mean(), "regressed": bridged}


def vid(x: Inputs, h: Hyper) -> Tensor:
    mean, target = pooled(x["mean"], x["teacher"])
    return f.vid(mean, target, x["log_scale"].flatten(), eps=h["eps"]).mean()


def vid_regressor(x: Inputs, h: Hyper) -> Tensor:
    feature, target = pooled(x["student"], x["teacher"])
    for weight in (x["w1"], x["w2"]):
        feature = F.conv2d(feature, weight).relu()
    return f.vid(F.conv2d(feature, x["w3"]), target, x["log_scale"].flatten(), eps=h["eps"]).mean()


def mgd(x: Inputs, h: Hyper) -> Tensor:
    def generator(masked: Tensor) -> Tensor:
        hidden = F.conv2d(masked, x["w1"], x["b1"], padding=1).relu()
        return F.conv2d(hidden, x["w2"], x["b2"], padding=1)

    aligned = F.conv2d(x["student"], x["align_w"], x["align_b"]) if "align_w" in x else x["student"]
    return f.mgd(aligned, x["teacher"], x["mask"], generator, alpha=h["alpha"]).mean()


def srd(x: Inputs, h: Hyper) -> Tensor:
    return f.srd(x["student"], x["teacher"]) + logits.kl(x["logits_s"], x["logits_t"], temperature=1.0).mean()


def srrl(x: Inputs, h: Hyper) -> Tensor:
    means = f.squared_error(x["student"].mean((2, 3)), x["teacher"].mean((2, 3))).mean()
    return h["alpha"] * means + h["beta"] * f.squared_error(x["logits_st"], x["logits_t"]).mean()


def simkd(x: Inputs, h: Hyper) -> dict[str, Tensor]:
    feature, target = pooled(x["student"], x["teacher"])
    for weight in (x["w1"], x["w2"], x["w3"]):
        feature = batch_norm(F.conv2d(feature, weight, padding=weight.shape[-1] // 2)).relu()
    logits_of_teacher_head = F.linear(feature.mean((2, 3)), x["fc_w"], x["fc_b"])
    return {"value": f.squared_error(feature, target).mean(), "logits": logits_of_teacher_head}


def semckd(x: Inputs, h: Hyper) -> Tensor:
    weighted = [
        x["weight"][:, i, j] * f.squared_error(x[f"student{i}{j}"], x[f"teacher{i}{j}"])
        for i in range(h["n_student"])
        for j in range(h["n_teacher"])
    ]
    return torch.stack(weighted).sum(0).mean() / h["n_student"]


def cosine_embed(x: Inputs, h: Hyper) -> Tensor:
    image, text = (f.cosine_distance(x["student"], x[name]) for name in ("image", "text"))
    return (h["lam"] * image + (1 - h["lam"]) * text).mean() - 1


ADAPTERS: Adapters = {
    "feature_mse": lambda x, h: f.squared_error(x["student"], x["teacher"]).mean(),
    "convreg_mse": convreg_mse,
    "vid": vid,
    "vid_regressor": vid_regressor,
    "ofd": lambda x, h: f.ofd(x["student"], x["teacher"], x["margin"].flatten()).mean(),
    "bn_margin": lambda x, h: f.bn_margin(x["gamma"], x["beta"]),
    "mgd": mgd,
    "srd": srd,
    "srrl": srrl,
    "simkd": simkd,
    "semckd": semckd,
    "activation_boundary": lambda x, h: f.activation_boundary(
        x["student"], x["teacher"], margin=h["margin"]
    ).mean(),
    "factor_transfer": lambda x, h: f.factor_transfer(x["student"], x["teacher"]).mean(),
    "cosine_embed": cosine_embed,
}

PAPER: Adapters = {}
