"""Every method that is compared: a function from a moment of training to the terms that count at it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcfd import Term, is_bridged, losses, recipes, scaled, schedules
from fcfd.paths import counterpart, pure
from fcfd.terms import path_names

BOTH = ("st", "ts")


class Moment(NamedTuple):
    """A step of training, as methods see it: the paths that were drawn for it, and how far it is.

    Args:
        depth: The number of stages.
        paths: The crossed paths that were drawn.
        bridged: The student's features that are bridged.
        weight: Of what the method adds to the labels: its own times the factor of the grid.
        features: Of what compares features, besides.
        step: From 0.
        steps: How many there are.
    """

    depth: int
    paths: tuple[str, ...]
    bridged: tuple[str, ...]
    weight: float
    features: float
    step: int
    steps: int


class Method(NamedTuple):
    """How a student learns.

    Args:
        terms: From a moment to its terms.
        weight: Of what the method adds to the labels, before tuning; `Moment.weight` is this times a factor.
        directions: Of the crossed paths to draw from.
        paths: How many to draw in a step; None, all.
        train_teacher: Whether the teacher normalises by the batch's statistics.
        calibrated: Whether bridges begin with the target's mean and deviation by channel.
        tuned_as: The method whose tuning this one takes over; by default its own.
    """

    terms: Callable[[Moment], dict[str, Term]]
    weight: float = 1.0
    directions: tuple[str, ...] = ()
    paths: int | None = 2
    train_teacher: bool = False
    calibrated: bool = False
    tuned_as: str = ""


def ramp(moment: Moment, share: float) -> float:
    """From 0 to 1 over the first part of training."""
    return schedules.linear_warmup(moment.step, steps=share * moment.steps) if share else 1.0


def of_features(moment: Moment) -> float:
    """The weight of what compares features; warmed up over a tenth, as published."""
    return moment.weight * moment.features * ramp(moment, 0.1)


# Without crossed paths


def label(moment: Moment) -> dict[str, Term]:
    return {"label": Term(losses.cross_entropy, pure("s", moment.depth), "Labels")}


def kd(moment: Moment) -> dict[str, Term]:
    return scaled(recipes.kd(moment.depth), {"kl": moment.weight})


def hints(moment: Moment) -> dict[str, Term]:
    return label(moment) | appearance(moment)


def kd_hints(moment: Moment) -> dict[str, Term]:
    return recipes.kd(moment.depth) | appearance(moment)


def kd_hidden_states(moment: Moment) -> dict[str, Term]:
    """Hidden states of equal width as they are, without a bridge."""
    states = [path.partition(">")[0] for path in moment.bridged]
    weight = of_features(moment)
    return recipes.kd(moment.depth) | {
        f"feature/{path}": Term(losses.squared_error, path, pure("t", len(path)), weight) for path in states
    }


def appearance(moment: Moment) -> dict[str, Term]:
    """Every bridged feature against the teacher's own."""
    terms = recipes.appearance(moment.depth, moment.bridged)
    return scaled(terms, of_features(moment))


def on_logits(
    loss: Callable[..., Tensor], moment: Moment, *, labels: bool = False, share: float = 0
) -> dict[str, Term]:
    """The labels, and one loss between the logits."""
    own, teacher = pure("s", moment.depth), pure("t", moment.depth)
    target = (teacher, "Labels") if labels else teacher
    return label(moment) | {"logits": Term(loss, own, target, moment.weight * ramp(moment, share))}


def standardized_kl(prediction: Tensor, target: Tensor) -> Tensor:
    """Logit standardisation: logits of mean 0 and deviation 1 before the divergence, at temperature 2."""
    return losses.kl(
        losses.standardize_logits(prediction), losses.standardize_logits(target), temperature=2.0
    )


def srrl(moment: Moment) -> dict[str, Term]:
    return scaled(recipes.srrl(moment.depth), {"pooled": moment.weight, "logits": moment.weight})


def kd_hcl(moment: Moment) -> dict[str, Term]:
    """ReviewKD's comparison, of averages over several grids, at every bridged feature."""
    weight = of_features(moment)
    return recipes.kd(moment.depth) | {
        f"hcl/{path}": Term(losses.hcl, path, counterpart(path), weight) for path in moment.bridged
    }


# With crossed paths


def published(moment: Moment) -> dict[str, Term]:
    """FCFD as published: features are warmed up over a tenth, divergences count in full from the start."""
    crossed = recipes.function(moment.depth, moment.paths)
    return kd_hints(moment) | _by_kind(crossed, feature=of_features(moment))


def warmed(moment: Moment, *, share: float, logits: float = 1.0, features: float = 1.0) -> dict[str, Term]:
    """FCFD with all crossed terms warmed up over the first part of training."""
    crossed = recipes.function(moment.depth, moment.paths)
    feature = features * of_features(moment)
    return kd_hints(moment) | scaled(_by_kind(crossed, feature=feature, logits=logits), ramp(moment, share))


def late(moment: Moment, *, share: float) -> dict[str, Term]:
    """FCFD that begins with KD and hints alone, and crosses after the first part of training."""
    return kd_hints(moment) if moment.step < share * moment.steps else warmed(moment, share=0)


def without_appearance(moment: Moment, *, share: float) -> dict[str, Term]:
    terms = warmed(moment, share=share)
    return {
        name: term for name, term in terms.items() if not any(map(is_bridged, path_names(term.prediction)))
    }


def gated(moment: Moment) -> dict[str, Term]:
    """FCFD whose crossed terms count as far as their path is read: the crossed loss is the gate."""
    feature = of_features(moment)
    terms = dict(kd_hints(moment))
    for path in moment.paths:
        crossed = _by_kind(recipes.function(moment.depth, (path,)), feature=feature)
        for name, term in crossed.items():
            prediction = (*path_names(term.prediction), path)
            target = (*path_names(term.target), pure("t", moment.depth))
            terms[name] = Term(partial(gate, term.loss), prediction, target, term.weight)
    return terms


def gate(loss: Callable[..., Tensor], value: Any, logits: Tensor, target: Any, teacher: Tensor) -> Tensor:
    """A loss times the share of the teacher's information that the crossed path gives.

    ```
    g · loss(value, target),    g = max(0, 1 − KL(t ‖ crossed) / KL(t ‖ uniform)), no gradient
    ```
    """
    divergence = partial(losses.kl, temperature=4.0)
    with torch.no_grad():
        nothing = divergence(torch.zeros_like(teacher), teacher).mean()
        share = (1 - divergence(logits, teacher).mean() / nothing).clamp(min=0)
    return share * loss(value, target).mean()


def and_logits(
    terms: Callable[[Moment], dict[str, Term]], loss: Callable[..., Tensor], moment: Moment, *, labels: bool
) -> dict[str, Term]:
    """A method and one more loss between the logits, at the weight that it has alone."""
    alone = moment._replace(weight=LOGITS[loss])
    more = on_logits(loss, alone, labels=labels, share=0.1)
    return terms(moment) | {"logits": more["logits"]}


def _by_kind(terms: dict[str, Term], *, feature: float, logits: float = 1.0) -> dict[str, Term]:
    return {
        name: term._replace(weight=term.weight * (logits if name.startswith("kl/") else feature))
        for name, term in terms.items()
    }


LOGITS: dict[Callable[..., Tensor], float] = {losses.dkd: 1.0, losses.dist: 2.0}
WARMED = Method(partial(warmed, share=1 / 3), directions=BOTH, tuned_as="FCFD")
PUBLISHED = Method(published, directions=BOTH, tuned_as="FCFD, published")

METHODS: Mapping[str, Method] = {
    "labels": Method(label),
    "KD": Method(kd),
    "hints": Method(hints),
    "KD + hints": Method(kd_hints),
    "KD + hidden states": Method(kd_hidden_states),
    "DKD": Method(partial(on_logits, losses.dkd, labels=True, share=0.1), LOGITS[losses.dkd]),
    "DIST": Method(partial(on_logits, losses.dist), LOGITS[losses.dist]),
    "standardised KD": Method(partial(on_logits, standardized_kl), 3.0),
    "SRRL": Method(srrl),
    "KD + HCL": Method(kd_hcl),
    "FCFD, published": PUBLISHED,
    "FCFD": WARMED,
    "FCFD, a tenth": WARMED._replace(terms=partial(warmed, share=0.1)),
    "FCFD, half": WARMED._replace(terms=partial(warmed, share=0.5)),
    "FCFD, all along": WARMED._replace(terms=partial(warmed, share=1.0)),
    "FCFD, late": WARMED._replace(terms=partial(late, share=1 / 3)),
    "FCFD, gated": WARMED._replace(terms=gated),
    "FCFD, into the teacher": WARMED._replace(directions=("st",)),
    "FCFD, into the student": WARMED._replace(directions=("ts",)),
    "FCFD, no appearance": WARMED._replace(terms=partial(without_appearance, share=1 / 3)),
    "FCFD, no crossed logits": WARMED._replace(terms=partial(warmed, share=1 / 3, logits=0.0)),
    "FCFD, no crossed features": WARMED._replace(terms=partial(warmed, share=1 / 3, features=0.0)),
    "FCFD, one path": WARMED._replace(paths=1),
    "FCFD, all paths": WARMED._replace(paths=None),
    "FCFD, teacher in train mode": WARMED._replace(train_teacher=True),
    "FCFD, calibrated bridges": WARMED._replace(calibrated=True),
    "FCFD, published, teacher in train mode": PUBLISHED._replace(train_teacher=True),
    "FCFD, published, calibrated bridges": PUBLISHED._replace(calibrated=True),
    "FCFD, published, into the teacher": PUBLISHED._replace(directions=("st",)),
    "FCFD, published, into the student": PUBLISHED._replace(directions=("ts",)),
    "FCFD + DKD": WARMED._replace(terms=partial(and_logits, WARMED.terms, losses.dkd, labels=True)),
    "FCFD + DIST": WARMED._replace(terms=partial(and_logits, WARMED.terms, losses.dist, labels=False)),
}
"""By the name that tables show. FCFD without its crossed paths is KD with hints."""

TUNED = tuple(name for name, method in METHODS.items() if method.tuned_as in ("", name) and name != "labels")
"""The methods that have a grid of their own."""

SCHEDULES = ("FCFD, a tenth", "FCFD, half", "FCFD, all along", "FCFD, late", "FCFD, gated")
"""Schedules of the crossed terms besides the first third."""
