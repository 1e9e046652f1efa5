"""From the names and hyper-parameters of published divergences to calls of `fcfd.families.divergences`."""

from collections.abc import Mapping
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from fcfd import schedules
from fcfd.families import divergences as d, logits

from ._types import Adapters
from .logits import kept_mean, pair

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def of_variance(loss: Any, x: Inputs, h: Hyper) -> Tensor:
    renamed = {"T": "temperature", "T2": "weight_temperature"}
    hyper = {renamed.get(key, key): value for key, value in h.items()}
    prior = x["prior_logits"].softmax(-1) if "prior_logits" in x else None
    return loss(*pair(x), prior=prior, **hyper).mean()


def ab_divergence(x: Inputs, h: Hyper) -> Tensor:
    """The formula: limits that are limits, and no class dropped."""
    values = d.ab_divergence(*pair(x), alpha=h["alpha"], beta=h["beta"], temperature=h.get("T", 1.0))
    return kept_mean(values, x)


def ab_published(x: Inputs, h: Hyper) -> Tensor:
    """Its limits of one parameter lack a factor, and classes that either network excludes are dropped."""
    a, b = h["alpha"], h["beta"]
    scale = (a or b) if 0 in (a, b, a + b) and (a, b) != (0, 0) else 1.0
    if not any(x[name].isinf().any() for name in ("teacher", "student")):
        return scale * ab_divergence(x, h)
    u, v = ((x[name] / h.get("T", 1.0)).log_softmax(-1) for name in ("teacher", "student"))
    kept = u.isfinite() & v.isfinite()
    u, v = torch.where(kept, u, 0.0), torch.where(kept, v, 0.0)
    return kept_mean(torch.where(kept, scale * integrand(u, v, a, b), 0.0).sum(-1), x)


def integrand(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    """What the formula sums, by the logarithms of both probabilities, class by class."""
    if a == b == 0:
        return 0.5 * (v - u).square()
    if b == 0:
        return (a * (a * u).exp() * (u - v) - (a * u).exp() + (a * v).exp()) / a**2
    if a == 0:
        return integrand(v, u, b, a)
    if a + b == 0:
        return (a * (v - u) + (a * (u - v)).exp() - 1) / a**2
    s = a + b
    return -((a * u + b * v).exp() - a / s * (s * u).exp() - b / s * (s * v).exp()) / (a * b)


def alpha_mixture(x: Inputs, h: Hyper, highest: float = inf) -> Tensor:
    """D(first ‖ second), of the teacher p, the student q and the assistant r."""
    share = min(max(h["lam"], 0.0), 1.0)
    assistant = d.alpha_mixture(*pair(x), alpha=min(h["alpha"], highest), share=share)
    of = {"p": x["teacher"], "q": x["student"], "r": assistant}
    first, second = (of[letter] for letter in h["divergence"])
    if h.get("family") == "ab":
        return kept_mean(d.ab_divergence(second, first, alpha=0.2, beta=0.7), x)
    return kept_mean(logits.kl(second, first, temperature=1.0), x)


def taid_schedule(x: Inputs, h: Hyper) -> dict[str, Tensor]:
    start, end, total = h["t_start"], h["t_end"], h["total"]
    state = schedules.Taid(h.get("t", start), h.get("momentum", 0.0), h.get("previous", inf))
    trace = []
    for step, loss in enumerate(x["losses"].tolist(), start=h.get("first_step", 0)):
        first = state.loss == inf
        state = schedules.taid(
            state, loss, step, steps=total, start=start, end=end, rate=h["eta"], decay=h["decay"]
        )
        if h.get("linear") and not first:
            state = state._replace(share=start + (end - start) * step / total)
        trace.append(state.share)
    outputs = {"value": trace[-1], "trace": trace, "momentum": state.momentum}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in outputs.items()}


def akl(x: Inputs, h: Hyper) -> Tensor:
    return kept_mean(d.akl(*pair(x), mu=h["mu"]), x)


ADAPTERS: Adapters = {
    "ikl": partial(of_variance, d.ikl),
    "gkl": partial(of_variance, d.gkl),
    "ab_divergence": ab_published,
    "alpha_mixture": partial(alpha_mixture, highest=1.0),
    "taid": lambda x, h: kept_mean(d.taid(*pair(x), share=h["t"]), x),
    "taid_schedule": taid_schedule,
    "akl": akl,
}

PAPER: Adapters = {"ab_divergence": ab_divergence, "alpha_mixture": alpha_mixture}
