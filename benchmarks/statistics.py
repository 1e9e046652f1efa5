"""Paired differences: their mean, an interval, an effect size; and the quantiles of Student's t."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple


class Difference(NamedTuple):
    """What pairs say: one method minus another on the same seeds.

    Args:
        mean: The mean difference.
        low: The lower end of the interval of 95 %.
        high: The upper end.
        effect: The mean over the deviation of the differences (Cohen's d for pairs).
        ahead: In how many pairs the first is ahead.
        pairs: How many pairs there are.
    """

    mean: float
    low: float
    high: float
    effect: float
    ahead: int
    pairs: int


def paired(one: Sequence[float], other: Sequence[float], *, confidence: float = 0.95) -> Difference:
    """Compare two methods by pairs.

    ```
    d_i = one_i − other_i,    mean(d) ± t · s(d) / √n,    effect = mean(d) / s(d)
    ```

    t is the quantile of Student's distribution with n − 1 degrees of freedom.

    Raises:
        ValueError: There are fewer than two pairs, or the numbers differ.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(f"paired: {len(one)} and {len(other)} values; give as many of both, at least two.")
    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean, deviation = fmean(differences), stdev(differences)
    half = student_quantile(0.5 + confidence / 2, len(one) - 1) * deviation / math.sqrt(len(one))
    effect = mean / deviation if deviation else math.copysign(math.inf, mean) if mean else 0.0
    ahead = sum(difference > 0 for difference in differences)
    return Difference(mean, mean - half, mean + half, effect, ahead, len(one))


def student_quantile(probability: float, freedom: int) -> float:
    """The value below which Student's t lies with a probability, from one half: by bisection."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"student_quantile: probability {probability}, {freedom} degrees of freedom.")
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_probability(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_probability(value: float, freedom: int) -> float:
    """The probability that Student's t lies below a value, in closed form for whole degrees of freedom.

    ```
    θ = atan(t / √ν);  P(|T| < t) is a finite sum of powers of cos θ, other for odd and even ν
    ```

    Reference:
        Abramowitz and Stegun: Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(value, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for power in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    if freedom == 1:
        total = 0.0
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2


def interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """The mean and half the width of its interval."""
    half = student_quantile(0.5 + confidence / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values), half
