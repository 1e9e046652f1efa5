"""What a student learns by, as terms: published methods with the weights of a pair of networks.

A method is a function `method(pair, now) -> {name: Term}`. Add one here, and every command has it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import fcfd
from fcfd import Term, losses, recipes, scaled


class Pair(NamedTuple):
    """A published pair, and what was published with it.

    Args:
        student: Its name in `reference.zoo.NETWORKS`.
        teacher: The same.
        published: Top-1 in %: the teacher, the student alone, the student by FCFD. Quoted, unverified here.
        rate: The first learning rate.
        temperature: T of FCFD's divergences.
        feature_weight: The weight of FCFD's squared errors.
        path_weight: The weight of its crossed divergences.
        dkd: Temperature and beta, as mdistiller has them for the pair.
        dist: Temperature, and the weight of both correlations, as the paper has them for the data.
    """

    student: str
    teacher: str
    published: tuple[float | None, float | None, float | None]
    rate: float
    temperature: float = 4.0
    feature_weight: float = 5.0
    path_weight: float = 1.0
    dkd: tuple[float, float] = (4.0, 8.0)
    dist: tuple[float, float] = (4.0, 2.0)


class Now(NamedTuple):
    """What terms depend on besides the pair.

    Args:
        depth: The number of stages of each network.
        paths: The crossed paths of this step.
        warm: The published warm-up of features, from 0 to 1.
        crossed: The warm-up of all that crossed paths compare, from 0 to 1.
    """

    depth: int
    paths: tuple[str, ...]
    warm: float = 1.0
    crossed: float = 1.0

    @property
    def logits(self) -> tuple[str, str]:
        """The paths of the student's and of the teacher's logits."""
        return fcfd.pure("s", self.depth), fcfd.pure("t", self.depth)

    @property
    def bridged(self) -> tuple[str, ...]:
        """Every bridged feature but the stem's."""
        return fcfd.bridged(self.depth, first=2)


Terms: TypeAlias = dict[str, Term]


def label(pair: Pair, now: Now) -> Terms:
    """The labels alone."""
    return {"label": Term(losses.cross_entropy, now.logits[0], "Labels")}


def kd(pair: Pair, now: Now) -> Terms:
    """Labels and softened logits, weights 1: FCFD without features."""
    return recipes.kd(now.depth, temperature=pair.temperature)


def hint(pair: Pair, now: Now) -> Terms:
    """FitNet in one stage, as RepDistiller weighs it: the labels, and 100 times the middle feature."""
    return label(pair, now) | scaled(recipes.hints(now.bridged[1:2]), 100.0)


def hints(pair: Pair, now: Now) -> Terms:
    """KD, and every bridged feature: FCFD without crossed paths."""
    appearance = recipes.appearance(now.depth, now.bridged)
    return kd(pair, now) | scaled(appearance, pair.feature_weight * now.warm)


def dkd(pair: Pair, now: Now) -> Terms:
    """Labels and decoupled distillation, warmed up as mdistiller does."""
    (student, teacher), (temperature, beta) = now.logits, pair.dkd
    loss = partial(losses.dkd, temperature=temperature, beta=beta)
    return label(pair, now) | {"dkd": Term(loss, student, (teacher, "Labels"), now.warm)}


def dist(pair: Pair, now: Now) -> Terms:
    """Labels and the correlations of DIST."""
    (student, teacher), (temperature, weight) = now.logits, pair.dist
    return label(pair, now) | {
        "dist": Term(partial(losses.dist, temperature=temperature), student, teacher, weight)
    }


def crossed(pair: Pair, now: Now) -> Terms:
    """What crossed paths compare, with the published weights."""
    terms = recipes.function(now.depth, now.paths, temperature=pair.temperature)
    feature = pair.feature_weight * now.warm
    return scaled(terms, {name: pair.path_weight if name.startswith("kl/") else feature for name in terms})


def published(pair: Pair, now: Now) -> Terms:
    """FCFD as published: crossed divergences have their full weight from the first step."""
    return hints(pair, now) | crossed(pair, now)


def warmed(pair: Pair, now: Now) -> Terms:
    """FCFD whose crossed paths count little until their bridges have learned something."""
    return hints(pair, now) | scaled(crossed(pair, now), now.crossed)


def warmed_dkd(pair: Pair, now: Now) -> Terms:
    """The same with DKD in place of the plain divergence of logits."""
    return scaled(warmed(pair, now), {"kl/student": 0.0}) | dkd(pair, now)


def warmed_dist(pair: Pair, now: Now) -> Terms:
    """The same and DIST."""
    return warmed(pair, now) | dist(pair, now)


METHODS: dict[str, Callable[[Pair, Now], Terms]] = {
    "label": label,
    "kd": kd,
    "hint": hint,
    "hints": hints,
    "dkd": dkd,
    "dist": dist,
    "fcfd": published,
    "fcfd-warmed": warmed,
    "fcfd-warmed+dkd": warmed_dkd,
    "fcfd-warmed+dist": warmed_dist,
}
