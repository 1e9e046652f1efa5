"""Weights that change by step: pure functions from a step to a plain float.

A float enters a compiled objective as a dynamic number: a new value per step does not recompile it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ._text import check_plain, check_type


def constant(step: float, *, value: float = 1.0) -> float:
    """The same value at every step.

    Example:
        >>> constant(7, value=0.5)
        0.5
    """
    _check("constant", step=step, value=value)
    return float(value)


def linear_warmup(step: float, *, steps: float, end: float = 1.0) -> float:
    """FCFD's warm-up of all feature terms.

    ```
    r(e) = end · min(1, (e + 1) / steps)
    ```

    Args:
        step: e, from 0; an epoch or a step, in the unit of `steps`.
        steps: How many until `end` is reached; published 20 epochs on CIFAR-100, 5 on ImageNet.
        end: The value after the warm-up.

    Raises:
        TypeError: An argument is no plain number.
        ValueError: One is not finite, `step` is negative, or `steps` is not above 0.

    Example:
        >>> [linear_warmup(epoch, steps=4) for epoch in (0, 1, 3, 9)]
        [0.25, 0.5, 1.0, 1.0]
    """
    _check("linear_warmup", step=step, steps=steps, end=end)
    return float(end) * min(1.0, (step + 1) / steps)


def piecewise_constant(step: float, *, boundaries: Sequence[float], values: Sequence[float]) -> float:
    """One value until each boundary: the learning rates of the published recipes.

    Value *i* holds for `boundaries[i−1] ≤ step < boundaries[i]`.

    Args:
        step: A step or an epoch, from 0.
        boundaries: Increasing steps at which the value changes; published 150, 180, 210 epochs on CIFAR-100.
        values: One more value than boundaries.

    Raises:
        ValueError: The numbers do not fit, or the boundaries do not increase.

    Example:
        >>> [
        ...     piecewise_constant(epoch, boundaries=(150, 180), values=(1.0, 0.1, 0.01))
        ...     for epoch in (149, 150, 200)
        ... ]
        [1.0, 0.1, 0.01]
    """
    _check("piecewise_constant", step=step)
    for name, numbers in (("boundaries", boundaries), ("values", values)):
        check_type("piecewise_constant", name, numbers, Sequence, "a tuple of numbers")
        for number in numbers:
            check_plain("piecewise_constant", name, number)
    if len(values) != len(boundaries) + 1 or list(boundaries) != sorted(set(boundaries)):
        raise ValueError(
            f"piecewise_constant: {len(values)} values and boundaries {list(boundaries)}; "
            "give increasing boundaries and one more value than boundaries."
        )
    return float(values[sum(step >= boundary for boundary in boundaries)])


def cosine(step: float, *, steps: float, start: float = 1.0, end: float = 0.0) -> float:
    """Half a cosine from one value to another, constant outside.

    ```
    end + (start − end) · (1 + cos(π · clip(step, 0, steps) / steps)) / 2
    ```

    Example:
        >>> [cosine(step, steps=2) for step in (0, 1, 2, 3)]
        [1.0, 0.5, 0.0, 0.0]
    """
    _check("cosine", step=step, steps=steps, start=start, end=end)
    progress = min(max(step, 0), steps) / steps
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear(step: float, *, steps: float, start: float = 0.0, end: float = 1.0) -> float:
    """A straight line from one value to another, constant outside.

    ```
    start + (end − start) · clip(step, 0, steps) / steps
    ```

    Example:
        >>> [linear(step, steps=2) for step in (0, 1, 2, 3)]
        [0.0, 0.5, 1.0, 1.0]
    """
    _check("linear", step=step, steps=steps, start=start, end=end)
    return start + (end - start) * (min(max(step, 0), steps) / steps)


class Taid(NamedTuple):
    """Where TAID's schedule is, and all that it remembers.

    Args:
        share: t, the teacher's share of the target: `losses.taid(s, t, share=state.share)`.
        momentum: m, the moving average of how fast the loss falls.
        loss: The last loss, infinite before the first.
    """

    share: float = 0.4
    momentum: float = 0.0
    loss: float = math.inf


def taid(
    state: Taid,
    loss: float,
    step: float,
    *,
    steps: float,
    start: float = 0.4,
    end: float = 1.0,
    rate: float = 5e-4,
    decay: float = 0.99,
) -> Taid:
    """TAID's schedule after one more loss: the target moves faster while the student still learns.

    ```
    r = (l − loss) / (l + 1e−15),    m ← decay · m + (1 − decay) · r
    t ← min(end, max(start + (end − start) · step / steps, t + rate · sigmoid(m) · (1 − t)))
    l ← loss;    the first loss is only remembered
    ```

    Args:
        state: What the last step returned; `Taid(share=start)` to begin.
        loss: The loss of this step, a plain number: `loss.item()`.
        step: From 0.
        steps: How many there will be.
        start: t at first; published 0.4.
        end: t at last; published 1.
        rate: How fast t grows beside its straight line; published 5e−4. With 0 it is that line.
        decay: Of the moving average, in [0, 1]; published 0.99.

    Raises:
        TypeError: An argument is no plain number.
        ValueError: One is not finite, or out of its range.

    Example:
        >>> state = Taid()
        >>> for step, loss in enumerate((3.0, 2.0, 1.0)):
        ...     state = taid(state, loss, step, steps=100)
        >>> round(state.share, 3)
        0.412

    Reference:
        Shing et al.: TAID, ICLR 2025, arXiv 2501.16937. Checked against `TAID.update_t` of SakanaAI/TAID,
        whose numbers are float32.
    """
    check_type("taid", "state", state, Taid, "a `schedules.Taid`, such as `Taid()` at first")
    _check("taid", loss=loss, step=step, steps=steps, start=start, end=end, rate=rate)
    check_plain("taid", "decay", decay, least=0, most=1)
    if state.loss == math.inf:
        return state._replace(loss=float(loss))
    fall = (state.loss - loss) / (state.loss + 1e-15)
    momentum = decay * state.momentum + (1 - decay) * fall
    grown = state.share + rate * (1 - state.share) / (1 + math.exp(-momentum))
    share = min(end, max(start + (end - start) * step / steps, grown))
    return Taid(share, momentum, float(loss))


def _check(function: str, **numbers: float) -> None:
    for name, number in numbers.items():
        above = 0 if name == "steps" else -math.inf
        least = 0 if name == "step" and function != "cosine" else -math.inf
        check_plain(function, name, number, above=above, least=least)
