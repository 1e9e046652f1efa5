"""From the names and hyper-parameters of published losses to calls of what compares tokens and embeddings."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fcfd.families import contrastive, features, standardization, tokens

from ._types import Adapters
from .logits import pair

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def gram(x: Inputs, h: Hyper) -> Tensor:
    both = pair(x) if h["per_image"] else [rows.flatten(0, 1).unsqueeze(0) for rows in pair(x)]
    return tokens.gram(*both, normalize=h["normalize"], negatives=h["negatives"]).mean()


def relation_kl(x: Inputs, h: Hyper) -> Tensor:
    keys = {"prediction_keys": x["student2"], "target_keys": x["teacher2"]} if "student2" in x else {}
    mask = None
    if "lengths" in h:
        mask = torch.arange(x["student"].shape[1]) < torch.tensor(h["lengths"]).unsqueeze(1)
    return tokens.relation_kl(*pair(x), heads=h["heads"], mask=mask, **keys).mean()


def vkd(x: Inputs, h: Hyper) -> Tensor:
    projected = x["student"].mean(1) @ x["weight"].mT
    return h["alpha"] * features.vkd(projected, x["teacher"].mean((2, 3))).mean()


def phi_s(x: Inputs, h: Hyper) -> dict[str, Tensor]:
    found = standardization.phi_s(x["targets"])
    y = (x["targets"] - found.mean) @ found.matrix.mT
    more = {"mean": found.mean, "gram": y @ y.mT, "matrix": found.matrix, "variance": y.var(0)}
    return {"value": found.scale, **more}


ADAPTERS: Adapters = {
    "gram": gram,
    "similarity_kl": lambda x, h: contrastive.similarity_kl(*pair(x), x["bank"], temperature=h["T"]).mean(),
    "patch_similarity_kl": lambda x, h: tokens.patch_similarity_kl(*pair(x), temperature=h["T"]).mean(),
    "relation_kl": relation_kl,
    "tinybert_attention": lambda x, h: tokens.tinybert_attention(*pair(x)).mean(),
    "vkd": vkd,
    "phi_s": phi_s,
}

PAPER: Adapters = {}
