"""What is compared on what, as data: a setting fixes all but the method, its factor and the seed."""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fcfd
from reference.zoo import resnet

from .. import data as images
from ..networks import network, sgd
from .emoji import by_groups, emoji, shifted
from .methods import METHODS
from .networks import depthwise, mixer
from .reviews import adamw, by_layers, classifier, kept, named, reviews

PILOT = 500
"""The first seed of pilot runs, which are scored on validation data."""
REPORTED = 600
"""The first seed of reported runs, which are scored on test data."""

MEASURED = 4
"""Functional distance takes as long as a run; it is measured for so many of the first seeds."""

FACTORS = (1 / 3, 1.0, 3.0, 10.0)
"""The grid of every method: how many times its own weight."""

MAIN = ("labels", "KD", "KD + hints", "FCFD, published", "FCFD")
ORDER = (
    *MAIN,
    "FCFD, late",
    "FCFD, into the student",
    "FCFD, into the teacher",
    "FCFD, a tenth",
    "FCFD, half",
    "FCFD, gated",
    *(name for name in METHODS if name != "KD + hidden states"),  # which needs features of equal width
)
EVERY = tuple(dict.fromkeys(ORDER))
"""All methods; those first that matter most if time runs out."""


def by_hand(model: nn.Module, example: Any) -> fcfd.Network:
    """The stages of a chain."""
    return fcfd.split(list(model.children()))


def as_it_is(rows: Tensor) -> Tensor:
    """The batch is a tensor."""
    return rows


class Setting(NamedTuple):
    """Data, a pair of networks, and how they learn.

    Args:
        data: Returns what to learn from and what to test on.
        teacher: Makes a new teacher.
        student: Makes a new student.
        per_class: How many labelled examples of each class the student has; None, all.
        steps: Of the student.
        teacher_steps: Of the teacher, which learns from everything but validation data.
        held_out: How many of the last examples to learn from are validation data.
        methods: What is compared.
        seeds: How many are reported.
        tuned_on: The setting whose tuning counts here; where there is none, every factor is 1.
        distance: The methods whose students' functional distance is measured, by new bridges.
        batch: Examples a step.
        rate: Learning rate at the start of a cosine.
        first: The earliest depth of a crossing.
        features: The weight of what compares features, before tuning.
        optimizer: From parameters to their optimizer.
        layouts: Of features, as `fcfd.link` takes them.
        cut: From a network and an example to its stages.
        feed: From rows of the data to the batch that networks read.
        mask: From rows to the positions of features that count; by default all.
        augment: From a batch to another view of it. Without, the teacher's values are computed once.
    """

    data: Callable[[], images.Data]
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    per_class: int | None
    steps: int
    teacher_steps: int
    held_out: int
    methods: tuple[str, ...] = MAIN
    seeds: int = 10
    tuned_on: str = "small-200"
    distance: tuple[str, ...] = ()
    batch: int = 50
    rate: float = 0.05
    first: int = 2
    features: float = 10.0
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = sgd
    layouts: tuple[tuple[str, str], ...] = ()
    cut: Callable[[nn.Module, Any], fcfd.Network] = by_hand
    feed: Callable[[Tensor], Any] = as_it_is
    mask: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None


def fingerprint(setting: Setting) -> str:
    """A short name of all numbers and functions of a setting; not of what is compared, and how often."""
    chosen = setting._replace(methods=(), seeds=0, tuned_on="", distance=())
    return hashlib.sha256(json.dumps([_plain(value) for value in chosen]).encode()).hexdigest()[:10]


def _plain(value: Any) -> Any:
    if isinstance(value, partial):
        return [_plain(value.func), list(value.args), value.keywords]
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value


FASHION = Setting(
    data=images.fashion_mnist,
    teacher=partial(network, 16, convolutions=2, first_stride=2),
    student=partial(network, 8, convolutions=1, first_stride=2),
    per_class=20,
    steps=300,
    teacher_steps=1000,
    held_out=10_000,
)
DIGITS = Setting(
    data=images.digits,
    teacher=partial(network, 16, convolutions=2, first_stride=1),
    student=partial(network, 4, convolutions=1, first_stride=1),
    per_class=10,
    steps=300,
    teacher_steps=300,
    held_out=300,
    rate=0.1,
    tuned_on="digits",
)

SMALL = FASHION._replace(data=images.fashion_mnist_14)
REVIEWS = Setting(
    data=reviews,
    teacher=partial(classifier, (0, 1, 2, 3, 4, 5)),
    student=partial(classifier, (0, 2, 4)),
    per_class=100,
    steps=50,
    teacher_steps=120,
    held_out=1000,
    methods=("KD", "KD + hidden states", "FCFD", "KD + hints", "FCFD, published"),
    seeds=5,
    tuned_on="reviews",
    batch=8,
    rate=1e-4,
    first=1,
    features=1.0,
    optimizer=adamw,
    cut=by_layers,
    feed=named,
    mask=kept,
)
EMOJI = Setting(
    data=emoji,
    teacher=partial(resnet.resnet32x4, 99),
    student=partial(resnet.resnet8x4, 99),
    per_class=None,
    steps=2000,
    teacher_steps=3000,
    held_out=500,
    seeds=5,
    tuned_on="emoji",
    batch=64,
    cut=by_groups,
    augment=shifted,
)

SETTINGS = {
    "small-200": SMALL._replace(
        methods=EVERY, seeds=12, distance=("KD", "KD + hints", "FCFD, published", "FCFD")
    ),
    "small-weight-10": SMALL._replace(tuned_on="nothing"),  # before tuning
    "small-2000": SMALL._replace(per_class=200, steps=1000),
    "small-long": SMALL._replace(steps=1500),
    "small-room": SMALL._replace(student=partial(network, 16, convolutions=1, first_stride=2)),
    "small-depthwise": SMALL._replace(student=partial(depthwise, 12, first_stride=2)),
    "small-mixer": SMALL._replace(
        student=partial(mixer, 32, 24, patch=2, size=14), layouts=(("s", "b (h=7 w=7) c"),)
    ),
    "fashion-200": FASHION,
    "fashion-2000": FASHION._replace(per_class=200, steps=1000),
    "digits": DIGITS,
    "emoji": EMOJI,
    "reviews": REVIEWS,
    "reviews-long": REVIEWS._replace(steps=200),
}
"""By name. The settings of Fashion-MNIST at 28 pixels have one teacher, those at 14 pixels another."""
