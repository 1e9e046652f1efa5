"""From the names and hyper-parameters of the published logit losses to calls of this library.

The published code returns means over the batch; here the mean is taken outside. What is published as a loss
of its own, but is a loss behind a transform, a temperature policy or a weight, is composed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fcfd import schedules
from fcfd.families import logits, temperatures

from ._types import Adapters

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def pair(x: Inputs) -> tuple[Tensor, Tensor]:
    return x["student"], x["teacher"]


def kept_mean(values: Tensor, x: Inputs) -> Tensor:
    """Mean over kept tokens, or over all where there is no mask."""
    if "mask" in x:
        return (values * x["mask"]).sum() / x["mask"].sum()
    return values.mean()


def of_tokens(loss: Callable[..., Tensor]) -> Callable[[Inputs, Hyper], Tensor]:
    """Mean over kept tokens, or over the first axis where there is no mask."""

    def adapter(x: Inputs, h: Hyper) -> Tensor:
        renamed = {"lam": "skew", "T": "temperature"}
        values = loss(*pair(x), **{renamed.get(key, key): value for key, value in h.items()})
        if "mask" in x:
            return (values * x["mask"]).sum() / x["mask"].sum()
        return values.sum() / len(values)

    return adapter


def soft_label(x: Inputs, h: Hyper) -> Tensor:
    """Hard labels, or their mixture where two are given."""
    if "labels2" not in x:
        return x["labels"]
    first, second = (
        torch.nn.functional.one_hot(x[name], x["student"].shape[-1]).to(x["student"].dtype)
        for name in ("labels", "labels2")
    )
    return h["lam"] * first + (1 - h["lam"]) * second


def dkd(student: Tensor, teacher: Tensor, x: Inputs, h: Hyper, **temperature: Any) -> Tensor:
    weights = {"alpha": h["alpha"], "beta": h["beta"]}
    return logits.dkd(student, teacher, x["labels"], **weights, **(temperature or {"temperature": h["T"]}))


def standardized(x: Inputs) -> tuple[Tensor, Tensor]:
    return temperatures.standardize_logits(x["student"]), temperatures.standardize_logits(x["teacher"])


def luminet(x: Inputs, h: Hyper) -> Tensor:
    perceived = (temperatures.batch_standardize_logits(z) for z in pair(x))
    return h["alpha"] ** 2 / h["T"] ** 2 * logits.kl(*perceived, temperature=h["T"]).mean()


def energy_temperature(x: Inputs, h: Hyper) -> Tensor:
    return temperatures.energy_temperature(
        temperatures.energy(x["teacher"]),
        torch.tensor([h["low"], h["high"]], dtype=x["teacher"].dtype),
        below=h["T_low_energy"],
        between=h["T_mid"],
        above=h["T_high_energy"],
    )


def ctkd_kl(x: Inputs, h: Hyper) -> Tensor:
    reversed_ = temperatures.grad_reverse(x["theta"], scale=h["lam"]).squeeze()
    temperature = temperatures.learned_temperature(reversed_, start=h["t_start"], span=h["t_range"])
    return logits.kl(*pair(x), temperature=temperature).mean()


def ctkd_lambda_schedule(x: Inputs, h: Hyper) -> Tensor:
    return torch.tensor(
        [schedules.cosine(e, steps=h["loops"], start=h["max"], end=h["min"]) for e in h["epochs"]],
        dtype=torch.float64,
    )


def ea_weight(x: Inputs, h: Hyper) -> Tensor:
    return temperatures.ea_weight(*pair(x), bound=h["H_ub"], temperature=h.get("t", 3.0), eps=1e-10)


def ea_kl(x: Inputs, h: Hyper) -> Tensor:
    return (ea_weight(x, h).detach() * logits.kl(*pair(x), temperature=h["T"])).mean()


def ea_dkd(x: Inputs, h: Hyper) -> Tensor:
    student, teacher = standardized(x) if h.get("standardize") else pair(x)
    weight = temperatures.ea_weight(student, teacher, bound=h["H_ub"], temperature=h.get("t", 3.0))
    return (weight.detach() * dkd(student, teacher, x, h)).mean()


def er_kl(x: Inputs, h: Hyper) -> Tensor:
    weight = temperatures.entropy(x["teacher"], temperature=h["t"])
    return (weight * logits.kl(*pair(x), temperature=h["T"])).mean()


def er_dkd_published(x: Inputs, h: Hyper) -> Tensor:
    return temperatures.entropy(x["teacher"], temperature=h["t"]).mean() * dkd(*pair(x), x, h).mean()


def er_dkd(x: Inputs, h: Hyper) -> Tensor:
    return (temperatures.entropy(x["teacher"], temperature=h["t"]) * dkd(*pair(x), x, h)).mean()


def wkd_logit(x: Inputs, h: Hyper) -> Tensor:
    return logits.wkd_logit(
        *pair(x),
        x["labels"],
        x["cost"],
        temperature=h["T"],
        gamma=h["gamma"],
        regularization=h["reg"],
        iterations=h["iters"],
    ).mean()


ADAPTERS: Adapters = {
    "kl": lambda x, h: logits.kl(*pair(x), temperature=h["T"]).mean(),
    "kd_ce": lambda x, h: h["alpha"] * logits.kd_ce(*pair(x), temperature=h["T"]).mean(),
    "kd_bce": lambda x, h: logits.kd_bce(*pair(x)).mean(),
    "dkd": lambda x, h: dkd(*pair(x), x, h).mean(),
    "nkd": lambda x, h: logits.nkd(*pair(x), x["labels"], temperature=h["T"], gamma=h["gamma"]).mean(),
    "tf_nkd": lambda x, h: logits.tf_nkd(x["student"], soft_label(x, h)),
    "wsld": lambda x, h: logits.wsld(*pair(x), x["labels"], temperature=h["T"]).mean(),
    "ofa": lambda x, h: logits.ofa(*pair(x), x["labels"], temperature=h["T"], gamma=h["eps"]).mean(),
    "wkd_logit": wkd_logit,
    "dist": lambda x, h: logits.dist(*pair(x), temperature=h["T"], beta=h["beta"], gamma=h["gamma"]),
    "mlkd_class_corr": lambda x, h: logits.mlkd_class_corr(*pair(x), temperature=h["T"]),
    "mlkd_batch_corr": lambda x, h: logits.mlkd_batch_corr(*pair(x), temperature=h["T"]),
    # Token by token, the caller masks
    "jsd": of_tokens(logits.jsd),
    "reverse_kl": of_tokens(logits.reverse_kl),
    "forward_kl_ce": of_tokens(partial(logits.kd_ce, temperature=1.0)),
    "total_variation": of_tokens(logits.total_variation),
    "skew_forward_kl_ce": of_tokens(logits.skew_forward_kl_ce),
    "skew_reverse_kl": of_tokens(logits.skew_reverse_kl),
    # Behind a transform
    "standardize_logits": lambda x, h: temperatures.standardize_logits(x["logits"]),
    "batch_standardize_logits": lambda x, h: temperatures.batch_standardize_logits(x["logits"]),
    "kl_standardized": lambda x, h: logits.kl(*standardized(x), temperature=h["T"]).mean(),
    "dkd_standardized": lambda x, h: dkd(*standardized(x), x, h).mean(),
    "luminet": luminet,
    # At a temperature of their own
    "energy": lambda x, h: temperatures.energy(x["logits"]),
    "energy_thresholds": lambda x, h: temperatures.energy_thresholds(temperatures.energy(x["logits"]), **h),
    "energy_kl": lambda x, h: logits.kl(*pair(x), temperature=energy_temperature(x, h)).mean(),
    "energy_dkd": lambda x, h: dkd(*pair(x), x, h, temperature=energy_temperature(x, h)).mean(),
    "grad_reverse": lambda x, h: temperatures.grad_reverse(x["x"], scale=h["lam"]),
    "ctkd_lambda_schedule": ctkd_lambda_schedule,
    "ctkd_kl": ctkd_kl,
    # With a weight for each example
    "ea_weight": ea_weight,
    "ea_kl": ea_kl,
    "ea_dkd": ea_dkd,
    "er_kl": er_kl,
    "er_dkd": er_dkd_published,
}

PAPER: Adapters = {"er_dkd": er_dkd}
