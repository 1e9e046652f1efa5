"""Schedules: published values, limits, and plain floats."""

import pytest
from hypothesis import given, strategies as st

from fcfd.schedules import constant, cosine, linear_warmup, piecewise_constant

steps = st.integers(0, 10_000)


def test_the_published_warm_up():
    assert linear_warmup(6, steps=20) == 0.35
    assert linear_warmup(0, steps=20) == 0.05
    assert linear_warmup(19, steps=20) == linear_warmup(239, steps=20) == 1.0


def test_the_published_learning_rate():
    rates = [0.05, 0.05 * 0.1, 0.05 * 0.1**2, 0.05 * 0.1**3]
    epochs = {0: 0, 149: 0, 150: 1, 179: 1, 180: 2, 209: 2, 210: 3, 239: 3}
    for epoch, at in epochs.items():
        assert piecewise_constant(epoch, boundaries=(150, 180, 210), values=rates) == rates[at]


@given(steps, st.integers(1, 1000), st.floats(-10, 10), st.floats(-10, 10))
def test_a_schedule_is_a_float_within_its_limits(step, count, start, end):
    values = {
        "constant": constant(step, value=start),
        "cosine": cosine(step, steps=count, start=start, end=end),
        "piecewise": piecewise_constant(step, boundaries=(count,), values=(start, end)),
    }
    for name, value in values.items():
        assert type(value) is float, name
        assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9, name
    assert type(linear_warmup(step, steps=count)) is float
    assert cosine(0, steps=count, start=start, end=end) == pytest.approx(start)
    assert cosine(count + step, steps=count, start=start, end=end) == pytest.approx(end)


def test_schedules_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="linear_warmup: steps 0 must be above 0"):
        linear_warmup(1, steps=0)
    with pytest.raises(ValueError, match="cosine: steps -1 must be above 0"):
        cosine(1, steps=-1)
    with pytest.raises(ValueError, match="piecewise_constant: 2 values and boundaries"):
        piecewise_constant(1, boundaries=(1, 2), values=(1.0, 2.0))
    with pytest.raises(ValueError, match="give increasing boundaries"):
        piecewise_constant(1, boundaries=(2, 1), values=(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (lambda: linear_warmup(-5, steps=3), "linear_warmup: step -5 must be at least 0"),
        (lambda: linear_warmup(float("nan"), steps=3), "linear_warmup: step nan must be at least 0"),
        (lambda: linear_warmup(0, steps=3, end=float("inf")), "linear_warmup: end inf must be finite"),
        (lambda: cosine(float("nan"), steps=3), "cosine: step nan must be finite"),
        (lambda: constant(None), "constant: step None must be a number"),
        (lambda: constant(0, value="1"), "constant: value '1' must be a number"),
        (
            lambda: piecewise_constant(0, boundaries=3, values=(1.0,)),
            "piecewise_constant: boundaries is of type int",
        ),
        (
            lambda: piecewise_constant(0, boundaries=(1,), values=(1.0, float("nan"))),
            "piecewise_constant: values nan must be finite",
        ),
    ],
)
def test_schedules_take_finite_plain_numbers(schedule, text):
    with pytest.raises((ValueError, TypeError), match=text):
        schedule()
