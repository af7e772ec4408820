"""The learning rate by step: linear warm-up, then one of the schedules."""

from math import cos, pi

import pytest

from harness.training.schedule import SCHEDULES, learning_rate

SETTINGS = {"steps": 110, "peak": 1.0, "minimum": 0.1, "warmup_steps": 10}


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        pytest.param(0, 0.1, id="the first step already learns"),
        pytest.param(4, 0.5, id="half of the warm-up"),
        pytest.param(9, 1.0, id="the last of the warm-up"),
        pytest.param(10, 1.0, id="the cosine starts at the peak"),
        pytest.param(35, 0.1 + 0.9 * (1 + cos(pi / 4)) / 2, id="a quarter"),
        pytest.param(60, 0.55, id="half-way between peak and minimum"),
        pytest.param(85, 0.1 + 0.9 * (1 - cos(pi / 4)) / 2, id="three quarters"),
        pytest.param(110, 0.1, id="the end"),
        pytest.param(500, 0.1, id="beyond the end"),
    ],
)
def test_values(step, rate):
    """The rate at chosen steps, worked out by hand."""
    assert learning_rate(step, **SETTINGS) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (
            "cosine",
            [1.0, 0.55, 0.1 + 0.9 * (1 + cos(0.8 * pi)) / 2, 0.1 + 0.9 * (1 + cos(0.9 * pi)) / 2, 0.1],
        ),
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.55, 0.28, 0.19, 0.1]),
        ("wsd", [1.0, 1.0, 1.0, 0.55, 0.1]),
    ],
)
def test_schedules(schedule, rates):
    """Each after its warm-up: the start, half-way, where the last fifth begins, its middle, the end and beyond."""
    settings = SETTINGS | {"schedule": schedule}
    settings["minimum"] = 1.0 if schedule == "constant" else 0.1
    found = [learning_rate(step, **settings) for step in (10, 60, 90, 100, 110)]
    assert found == pytest.approx(rates, rel=1e-12)
    assert learning_rate(500, **settings) == pytest.approx(rates[-1])
    assert [learning_rate(step, **settings) for step in (0, 4)] == pytest.approx([0.1, 0.5])


def test_the_schedule_of_earlier_releases():
    """The default has their bits, computed as they did."""
    for step in range(10, 111):
        earlier = 0.1 + (1.0 - 0.1) * (1 + cos(pi * min(1.0, (step - 10) / 100))) / 2
        assert learning_rate(step, **SETTINGS) == earlier


@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - {"constant"}))
@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 109])
def test_shape(warmup_steps, schedule):
    """The rate never falls in the warm-up nor rises after it, and stays between 0 and peak."""
    settings = SETTINGS | {"warmup_steps": warmup_steps, "schedule": schedule}
    rates = [learning_rate(step, **settings) for step in range(111)]
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[warmup_steps] == max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1)


def test_no_warm_up():
    """Without warm-up training starts at the peak."""
    assert learning_rate(0, **{**SETTINGS, "warmup_steps": 0}) == 1.0


def test_constant_rate():
    """A minimum equal to the peak keeps the rate where the warm-up ended."""
    settings = {**SETTINGS, "minimum": 1.0}
    assert {learning_rate(step, **settings) for step in range(10, 120)} == {1.0}


def test_warm_up_longer_than_training():
    """A run that ends within the warm-up never divides by zero, and rises all the way."""
    settings = {**SETTINGS, "steps": 5, "warmup_steps": 10}
    assert [learning_rate(step, **settings) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert learning_rate(0, **{**SETTINGS, "steps": 1, "warmup_steps": 1}) == 1.0
    assert learning_rate(1, **{**SETTINGS, "steps": 1, "warmup_steps": 1}) == 1.0


def test_scale():
    """Peak and minimum scale the whole curve."""
    settings = {**SETTINGS, "peak": 3e-4, "minimum": 3e-5}
    for step in (0, 5, 20, 77, 110):
        assert learning_rate(step, **settings) == pytest.approx(3e-4 * learning_rate(step, **SETTINGS))
