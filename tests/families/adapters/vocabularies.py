"""From the names and hyper-parameters of published losses to calls of `fcfd.families.vocabularies`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fcfd.families import vocabularies as v

from ._types import Adapters
from .logits import kept_mean, pair

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def uld(x: Inputs, h: Hyper) -> Tensor:
    scales = {"temperature": h["T_s"], "target_temperature": h["T_t"]}
    return kept_mean(v.uld(*pair(x), **scales), x)


def uld_hybrid(x: Inputs, h: Hyper) -> Tensor:
    matched = (torch.tensor(h[f"matched_{name}"], dtype=torch.long) for name in ("student", "teacher"))
    values = v.uld_hybrid(*pair(x), *matched, beta=h["beta"], weight=h["matched_weight"])
    return kept_mean(values, x)


ADAPTERS: Adapters = {"uld": uld, "uld_hybrid": uld_hybrid}

PAPER: Adapters = {}
