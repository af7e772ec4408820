"""Sinusoidal positions: their equation and what people get wrong in it."""

import numpy as np

from numpy_llm.positions import sinusoidal_positions
from operations.operation import Operation, wrong_forward


def _columns(order):
    """The right table's columns in another order: order(C)."""
    return lambda *arguments: sinusoidal_positions(*arguments)[:, order(arguments[1])]


def _other_wavelengths(context_length, d_model, dtype):
    t, pair, C = np.arange(context_length)[:, None], np.arange(d_model // 2), d_model
    angles = [t / base ** (2 * pair / C) for base in (1000, 10000**0.5, 10000**2)]
    angles.append(t / 10000 ** (2 * pair / max(C - 2, 1)))
    return [np.stack([np.sin(each), np.cos(each)], axis=-1).reshape(len(t), C) for each in angles]


SINUSOIDAL_POSITIONS = Operation(
    "sinusoidal_positions", sinusoidal_positions, None,
    "table[t, 2i] = sin(t / 10000^(2i/C)), table[t, 2i+1] = cos(the same)",
    mistakes=(
        wrong_forward("sinusoids_in_halves", _columns(lambda C: np.r_[0:C:2, 1:C:2]),
            "all sines stand before all cosines; wanted: sine and cosine in turn"),
        wrong_forward("sinusoids_swapped", _columns(lambda C: np.arange(C) ^ 1), "sine and cosine are swapped"),
        wrong_forward("sinusoids_wavelengths", _other_wavelengths,
            "the wavelengths are wrong: 10000^(2i/C) for the i-th pair"),
    ),
)  # fmt: skip
