"""From the names and hyper-parameters of the published sparse losses to calls of `fcfd.families.sparse`.

In the cases the teacher's logits are given; what a stored teacher has is made of them here.
"""

from collections.abc import Callable, Mapping
from math import log
from typing import Any

import torch
from torch import Tensor

from fcfd.families import sparse

from ._types import Adapters
from .logits import kept_mean

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]
PUBLISHED_FLOOR = 1e-7


def listed(x: Inputs, h: Hyper) -> tuple[Tensor, Tensor]:
    """The ids that a case lists, and the teacher's log-probabilities at them."""
    of_all = x["teacher"].log_softmax(-1)
    ranked = x["student"] if h.get("support") == "student" else of_all
    ids = ranked.topk(h["k"], dim=-1).indices
    return ids, of_all.gather(-1, ids)


def of_topk(loss: Callable[..., Tensor], floor: float) -> Callable[[Inputs, Hyper], Tensor]:
    def adapter(x: Inputs, h: Hyper) -> Tensor:
        hyper = {key: h[key] for key in ("tail", "beta") if key in h}
        return kept_mean(loss(x["student"], *listed(x, h), **hyper, floor=floor), x)

    return adapter


def sampled_kl(x: Inputs, h: Hyper) -> Tensor:
    log_p = x["teacher"].log_softmax(-1).gather(-1, x["ids"])
    uniform = torch.full_like(log_p, -log(x["teacher"].shape[-1]))
    proposal = {"teacher": None, "uniform": uniform}[h["proposal"]]
    values = sparse.sampled_kl(
        x["student"], x["ids"], log_p, log_proposal=proposal, self_normalized=h["self_normalized"]
    )
    return kept_mean(values, x)


TOPK = {
    "topk_kl": sparse.topk_kl,
    "topk_reverse_kl": sparse.topk_reverse_kl,
    "topk_jsd": sparse.topk_jsd,
}

ADAPTERS: Adapters = {
    **{name: of_topk(loss, PUBLISHED_FLOOR) for name, loss in TOPK.items()},
    "sampled_kl": sampled_kl,
}

PAPER: Adapters = {name: of_topk(loss, 0.0) for name, loss in TOPK.items()}
