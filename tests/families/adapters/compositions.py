"""Published methods that are a loss behind a transform, at a temperature, or under a weight.

Each is written as a user writes it; `docs/losses.md` shows the same lines.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd.families import divergences, features, logits

from ._types import Adapters
from .logits import kept_mean, pair

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def wttm(x: Inputs, h: Hyper) -> Tensor:
    s, t = pair(x)
    weight = (h["gamma"] * t.log_softmax(-1)).logsumexp(-1).exp()
    return (weight * logits.kl(s, h["gamma"] * t, temperature=1.0)).mean()


def normkd(x: Inputs, h: Hyper) -> Tensor:
    s, t = pair(x)
    of_s, of_t = s.std(-1, keepdim=True), t.std(-1, keepdim=True)
    return (t.var(-1) * logits.kl(s / of_s, t / of_t, temperature=h["T"])).mean()


def dtkd(x: Inputs, h: Hyper) -> Tensor:
    s, t = pair(x)
    highest_s, highest_t = s.amax(-1, keepdim=True), t.amax(-1, keepdim=True)
    T_s, T_t = (2 * h["T"] * top / (highest_s + highest_t) for top in (highest_s, highest_t))
    own = (T_s * T_t).squeeze(-1) * logits.kl(s / T_s, t / T_t, temperature=1.0)
    return (h["alpha"] * own + h["beta"] * logits.kl(s, t, temperature=h["T"])).mean()


def by_text(values: Tensor, x: Inputs) -> Tensor:
    """A mean over the kept tokens of each text."""
    mask = x.get("mask", torch.ones_like(values))
    return (values * mask).sum(-1) / mask.sum(-1)


def skew(x: Inputs, h: Hyper, ahead: str, behind: str) -> Tensor:
    """DistiLLM-2's, for each text: by how much more likely one network finds it."""
    if h["anchor"] is None:
        return x["student"].new_full((len(x["student"]),), h["alpha0"])
    likely = {name: by_text(-logits.cross_entropy(x[name], x["labels"]), x).exp() for name in (ahead, behind)}
    gap = likely[ahead] - likely[behind] + 1e-5
    return (1 - (1 - h["alpha0"]) * h["anchor"] / gap).clamp(0.01, h["alpha0"])


def distillm2_forward(x: Inputs, h: Hyper) -> dict[str, Tensor]:
    s, t = pair(x)
    a = skew(x, h, "teacher", "student")
    share = a.unsqueeze(-1).expand(s.shape[:-1])
    mixture = divergences.alpha_mixture(s, t, alpha=-1.0, share=share)
    return {"value": by_text(logits.kl(mixture, t, temperature=1.0), x).mean(), "skew": a}


def distillm2_reverse(x: Inputs, h: Hyper) -> dict[str, Tensor]:
    s, t = pair(x)
    a = skew(x, h, "student", "teacher")
    share = 1 - a.unsqueeze(-1).expand(s.shape[:-1])
    mixture = divergences.alpha_mixture(s.detach(), t, alpha=-1.0, share=share)
    return {"value": by_text(logits.kl(mixture, s, temperature=1.0), x).mean(), "skew": a}


def cat_kd(x: Inputs, h: Hyper) -> Tensor:
    maps = [F.adaptive_avg_pool2d(z, h["resolution"]).flatten(2) for z in pair(x)]
    maps = [F.normalize(z, dim=-1) for z in maps] if h["normalize"] else maps
    return features.squared_error(*maps).mean()


def mlkd_kl(x: Inputs, h: Hyper) -> Tensor:
    return torch.stack([logits.kl(*pair(x), temperature=T).mean() for T in h["T"]]).sum()


def corrected(x: Inputs, h: Hyper) -> Tensor:
    """MFT's targets: the label leads by a threshold where the teacher is wrong, and gains it where right."""
    p = (x["teacher"].detach() / h["T"]).softmax(-1)
    y = x["labels"].unsqueeze(-1)
    own, lead = p.gather(-1, y), p.amax(-1, keepdim=True)
    wrong = p.argmax(-1, keepdim=True) != y
    wanted = torch.where(wrong, lead - own + h["threshold"], (own + h["threshold"]).clamp(max=1) - own)
    share = wanted / (torch.where(wrong, 1 + lead, 1.0) - own + 1e-7)
    return torch.lerp(p, torch.zeros_like(p).scatter(-1, y, 1.0), share)


def mft(x: Inputs, h: Hyper) -> dict[str, Tensor]:
    targets = corrected(x, h)
    loss = h["T"] ** 2 * logits.kl(x["student"] / h["T"], targets.log(), temperature=1.0)
    return {"value": loss.mean(), "targets": targets}


def tekap(x: Inputs, h: Hyper) -> Tensor:
    s, t = pair(x)
    loss = logits.kl(s, t, temperature=h["T"])
    for name in ("noise1", "noise2", "noise3"):
        noisy = h["keep"] * t.detach() + (1 - h["keep"]) * x[name]
        loss = loss + h["weight"] * logits.kl(s, noisy, temperature=h["T"])
    return loss.mean()


def cells(x: Inputs, h: Hyper, name: str) -> Tensor:
    """Class scores of every cell of pooled grids, `[batch, cells, classes]`."""
    finest = F.adaptive_avg_pool2d(x[name], 4)
    pooled = torch.cat([F.adaptive_avg_pool2d(finest, size).flatten(2) for size in h["M"]], dim=-1)
    return F.linear(pooled.mT, x[f"{name}_weight"], x[f"{name}_bias"])


def sdd(x: Inputs, h: Hyper, loss: Callable[..., Tensor]) -> Tensor:
    s, t = cells(x, h, "student"), cells(x, h, "teacher")
    labels = x["labels"].unsqueeze(-1).expand(s.shape[:-1])
    right = t.argmax(-1) == labels
    weight = 1 + (right != right[:, :1]).to(s.dtype)
    return (weight * loss(s, t, labels)).mean()


def sdd_kd(x: Inputs, h: Hyper) -> Tensor:
    return sdd(x, h, lambda s, t, labels: logits.kl(s, t, temperature=h["T"]))


def sdd_dkd(x: Inputs, h: Hyper) -> Tensor:
    weights = {"alpha": h["alpha"], "beta": h["beta"]}
    return sdd(x, h, lambda s, t, labels: logits.dkd(s, t, labels, temperature=h["T"], **weights))


def tinybert_soft_ce(x: Inputs, h: Hyper) -> Tensor:
    s, t = pair(x)
    return kept_mean(logits.kd_ce(s / h["T"], t / h["T"], temperature=1.0), x) / s.shape[-1]


ADAPTERS: Adapters = {
    "ttm": lambda x, h: logits.kl(x["student"], h["gamma"] * x["teacher"], temperature=1.0).mean(),
    "wttm": wttm,
    "normkd": normkd,
    "dtkd": dtkd,
    "distillm2_forward": distillm2_forward,
    "distillm2_reverse": distillm2_reverse,
    "cat_kd": cat_kd,
    "mlkd_kl": mlkd_kl,
    "mft": mft,
    "tekap": tekap,
    "sdd_kd": sdd_kd,
    "sdd_dkd": sdd_dkd,
    "tinybert_hidden": lambda x, h: features.squared_error(
        F.linear(x["student"], x["weight"], x["bias"]), x["teacher"]
    ).mean(),
    "tinybert_soft_ce": tinybert_soft_ce,
}

PAPER: Adapters = {}
