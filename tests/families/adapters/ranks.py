"""From the names and hyper-parameters of published losses to calls of `fcfd.families.ranks`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fcfd.families import logits, ranks

from ._types import Adapters
from .logits import pair, standardized

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def both(x: Inputs, h: Hyper) -> tuple[Tensor, Tensor]:
    return standardized(x) if h.get("standardize") else pair(x)


def rld(x: Inputs, h: Hyper) -> Tensor:
    weights = {"alpha": h["alpha"], "beta": h["beta"]}
    scales = {"temperature": h["T"], "label_temperature": h["T_alpha"]}
    return ranks.rld(*both(x, h), x["labels"], **scales, **weights).mean()


def gdkd(x: Inputs, h: Hyper) -> Tensor:
    reverse = {"forward": 0.0, "reverse": 1.0, "both": 0.5}[h.get("kl_type", "forward")]
    given = {key: h[key] for key in ("k", "strategy", "w0", "w1", "w2") if key in h}
    return ranks.gdkd(*pair(x), temperature=h["T"], reverse=reverse, **given).mean()


def gdkd3(x: Inputs, h: Hyper) -> Tensor:
    given = {key: h[key] for key in ("k", "w0", "w1", "w2")}
    return ranks.gdkd3(*pair(x), temperature=h["T"], **given).mean()


def topk_nckd(x: Inputs, h: Hyper) -> Tensor:
    """Rows without a class left count 0. Beside plain distillation two means are multiplied, as published."""
    student, teacher = both(x, h)

    def part(alpha: float, beta: float) -> Tensor:
        hyper = {"k": h["k"], "temperature": h["T"], "alpha": alpha, "beta": beta}
        return ranks.topk_nckd(student, teacher, x["labels"], **hyper).mean()

    if h["form"] == "dkd":
        return part(h["alpha"], h["beta"])
    doubt = 1 - (teacher / h["T"]).softmax(-1).gather(-1, x["labels"].unsqueeze(-1))
    return part(1.0, 0.0) + doubt.mean() * part(0.0, 1.0)


def topk_nckd_published(x: Inputs, h: Hyper) -> Tensor:
    """Where no class is left, the published mask makes the second part one over all classes."""
    student, teacher = both(x, h)
    alone = (teacher.argmax(-1) == x["labels"]) if h["k"] == 1 else x["labels"] < 0
    of_all = (alone * logits.kl(student, teacher, temperature=h["T"])).mean()
    doubt = 1 - (teacher / h["T"]).softmax(-1).gather(-1, x["labels"].unsqueeze(-1))
    return topk_nckd(x, h) + of_all * (h["beta"] if h["form"] == "dkd" else doubt.mean())


ADAPTERS: Adapters = {
    "rld": rld,
    "gdkd": gdkd,
    "gdkd3": gdkd3,
    "topk_nckd": topk_nckd_published,
}

PAPER: Adapters = {"topk_nckd": topk_nckd}
