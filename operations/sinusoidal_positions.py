"""Sinusoidal positions: their equation and what people get wrong in it."""

from functools import wraps

import numpy as np

from numpy_llm.positions import sinusoidal_positions
from operations.operation import Operation, wrong_forward


@wraps(sinusoidal_positions)
def _forward(*arguments):
    return sinusoidal_positions(*arguments), None


@wrong_forward("all sines stand before all cosines; wanted: sine and cosine in turn")
def sinusoids_in_halves(context_length, d_model, dtype):
    table = sinusoidal_positions(context_length, d_model, dtype)
    return np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1)


@wrong_forward("sine and cosine are swapped")
def sinusoids_swapped(context_length, d_model, dtype):
    table = sinusoidal_positions(context_length, d_model, dtype)
    return table.reshape(len(table), -1, 2)[..., ::-1].reshape(table.shape)


@wrong_forward("the wavelengths are wrong: 10000^(2i/C) for the i-th pair")
def sinusoids_wavelengths(context_length, d_model, dtype):
    t, pair, C = np.arange(context_length)[:, None], np.arange(d_model // 2), d_model
    angles = [t / base ** (2 * pair / C) for base in (1000, 10000**0.5, 10000**2)]
    angles.append(t / 10000 ** (2 * pair / max(C - 2, 1)))
    return [np.stack([np.sin(each), np.cos(each)], axis=-1).reshape(len(t), C) for each in angles]


SINUSOIDAL_POSITIONS = Operation(
    "sinusoidal_positions",
    _forward,
    None,
    "table[t, 2i] = sin(t / 10000^(2i/C)), table[t, 2i+1] = cos(the same)",
    {},
    (sinusoids_in_halves, sinusoids_swapped, sinusoids_wavelengths),
)
