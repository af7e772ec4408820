"""Rotary positions: frequencies, scalings and what a rotation keeps, from plain formulas."""

from math import cos, pi, sin

import numpy as np
import pytest

from contract.rotary import Rotary
from numpy_llm import positions

torch_positions = pytest.importorskip("torch_llm.positions", reason="needs PyTorch")
import torch  # noqa: E402

LLAMA_3 = Rotary(theta=500_000.0, scaling="llama3", factor=32.0)  # Llama 3.2's


def scaled(theta, i, D, rotary):
    """One frequency, by the published rule."""
    frequency = theta ** (-2 * i / D)
    wavelength = 2 * pi / frequency
    if rotary.scaling == "linear":
        return frequency / rotary.factor
    if rotary.scaling == "none" or wavelength < rotary.original_context_length / rotary.high_frequency_factor:
        return frequency
    if wavelength > rotary.original_context_length / rotary.low_frequency_factor:
        return frequency / rotary.factor
    low, high = rotary.low_frequency_factor, rotary.high_frequency_factor
    smooth = (rotary.original_context_length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / rotary.factor + smooth * frequency


@pytest.mark.parametrize(
    "rotary",
    [Rotary(), Rotary(theta=1e6), Rotary(scaling="linear", factor=8.0), LLAMA_3],
    ids=["plain", "theta", "linear", "llama3"],
)
def test_frequencies(rotary):
    """Every pair turns as the published rule says, in both twins."""
    expected = [scaled(rotary.theta, i, 64, rotary) for i in range(32)]
    np.testing.assert_allclose(positions.rotary_frequencies(rotary, 64), expected, rtol=1e-13)
    np.testing.assert_allclose(torch_positions.rotary_frequencies(rotary, 64), expected, rtol=1e-13)


def test_llama_scaling_has_three_ranges():
    """Of Llama 3.2's 32 pairs the fast ones stay, the slow ones turn 32 times as slowly, some lie between."""
    ratio = positions.rotary_frequencies(Rotary(theta=LLAMA_3.theta), 64) / positions.rotary_frequencies(
        LLAMA_3, 64
    )
    assert (ratio[:15] == 1).all()
    np.testing.assert_allclose(ratio[-12:], 32)
    assert ((ratio > 1.01) & (ratio < 31.9)).sum() >= 2


def test_rotate_values():
    """Channels i and i + D/2 turn by (start + t) · frequency[i], written as loops."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    y, _ = positions.rotate_forward(x, Rotary(theta=100.0), 5)
    for b, h, t, i in np.ndindex(2, 3, 4, 3):
        angle = (5 + t) * 100.0 ** (-2 * i / 6)
        first, second = x[b, h, t, i], x[b, h, t, i + 3]
        assert y[b, h, t, i] == pytest.approx(first * cos(angle) - second * sin(angle), abs=1e-14)
        assert y[b, h, t, i + 3] == pytest.approx(second * cos(angle) + first * sin(angle), abs=1e-14)


def test_scores_depend_on_the_distance_alone():
    """Moving query and key by the same number of places leaves their product as it was."""
    query, key = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 8))

    def score(t, s):
        turned = (positions.rotate_forward(x, Rotary(), at)[0] for x, at in ((query, t), (key, s)))
        return (next(turned) * next(turned)).sum()

    assert score(1007, 1000) == pytest.approx(score(7, 0), rel=1e-11)
    assert score(7, 0) != pytest.approx(score(8, 0), rel=1e-3)


def test_long_positions_keep_their_digits():
    """Angles are float64: at place 100,000 a float32 rotation is as exact as at place 1."""
    x = np.ones((1, 1, 1, 4))
    exact, _ = positions.rotate_forward(x, Rotary(), 100_000)
    single, _ = positions.rotate_forward(x.astype(np.float32), Rotary(), 100_000)
    np.testing.assert_allclose(single, exact, rtol=1e-6)


def test_table_of_generation_serves_training():
    """A table that the twin made in inference mode can be differentiated through later."""
    rotary = Rotary(theta=77.0)
    with torch.inference_mode():
        torch_positions.rotate(torch.ones(1, 1, 3, 4), rotary)
    x = torch.ones(1, 1, 3, 4, requires_grad=True)
    torch_positions.rotate(x, rotary).sum().backward()
    assert x.grad is not None
