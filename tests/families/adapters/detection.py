"""From the names and hyper-parameters of the published detection losses to calls of `fcfd`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fcfd.families import detection

from ._types import Adapters


def kd_quality_focal(x: Mapping[str, Tensor], h: Mapping[str, Any]) -> Tensor:
    """The detector's own reduction: a weight for each anchor, and a number of anchors that counts."""
    loss = detection.kd_quality_focal(x["student"], x["teacher"], beta=h["beta"])
    if "weight" in x:
        weight = x["weight"]
        loss = loss * (weight.unsqueeze(-1) if weight.ndim < loss.ndim else weight)
    if h.get("avg_factor") is None:
        return loss.mean()
    return loss.sum() / (h["avg_factor"] + 2.0**-23)


ADAPTERS: Adapters = {"kd_quality_focal": kd_quality_focal}

PAPER: Adapters = {}
