"""Positions: what tells a token its place in the sequence.

The dimension letters are explained in `contract/config.py`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from contract.rotary import Rotary


def sinusoidal_positions(context_length, d_model, dtype):
    """The fixed table of position encodings: a sine and a cosine for each of C/2 wavelengths.

        table[t, 2i] = sin(t / 10000^(2i/C)),   table[t, 2i+1] = cos(t / 10000^(2i/C))

    returns: dtype (context_length, d_model)
    Source: Vaswani et al. 2017, section 3.5. Twin: torch_llm.positions.sinusoidal_positions
    """
    t = np.arange(context_length)[:, None]
    angle = t / 10000 ** (np.arange(0, d_model, 2) / d_model)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(context_length, d_model).astype(dtype)


class PositionCache(NamedTuple):
    T: int
    start: int
    shape: tuple[int, int]  # of the table


def position_forward(x, table, start=0):
    """Add to each token the encoding of its place: y[b, t] = x[b, t] + table[start + t].

    x: float (B, T, C); table: float (context_length, C), fixed or learned; start: place of the first token
    returns: y (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.5. Twin: torch_llm.positions.position
    """
    T = x.shape[1]
    return x + table[start : start + T], PositionCache(T, start, table.shape)


def position_backward(dy, cache):
    """Every sequence of the batch adds the same row, so the row's gradient sums over the batch.

        y[b, t] = x[b, t] + table[start + t]   =>   dx = dy,   dtable[start + t] = Σ_b dy[b, t]

    returns: dx (B, T, C), dtable (context_length, C)
    """
    dtable = np.zeros(cache.shape, dy.dtype)
    dtable[cache.start : cache.start + cache.T] = dy.sum(axis=0)
    return dy, dtable


def rotary_frequencies(rotary: Rotary, head_size):
    """By how many radians each pair of channels turns per place: theta^(-2i/D), slowed down by the scaling.

    returns: float64 (D/2,)
    Source: Su et al. 2021, section 3.2.2; the scalings as in `contract.rotary`.
    Twin: torch_llm.positions.rotary_frequencies
    """
    frequency = rotary.theta ** (-np.arange(0, head_size, 2) / head_size)
    if rotary.scaling == "linear":
        return frequency / rotary.factor
    if rotary.scaling == "llama3":
        # How many of its wavelengths the original context holds: few of a slow pair, which is slowed down further.
        waves = rotary.original_context_length * frequency / (2 * np.pi)
        low, high = rotary.low_frequency_factor, rotary.high_frequency_factor
        kept = np.clip((waves - low) / (high - low), 0, 1)
        return kept * frequency + (1 - kept) * frequency / rotary.factor
    return frequency


@lru_cache(maxsize=8)
def rotary_table(rotary: Rotary, head_size, length, dtype):
    """Cosine and sine of each pair's angle at the places 0 to length - 1, computed in float64.

    returns: dtype (length, D/2) each, not to be changed
    Twin: torch_llm.positions.rotary_table
    """
    angle = np.arange(length)[:, None] * rotary_frequencies(rotary, head_size)
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


class RotateCache(NamedTuple):
    cosine: np.ndarray  # (T, D/2)
    sine: np.ndarray


def rotate_forward(x, rotary, start=0):
    """Turn each pair of channels, i and i + D/2, by an angle that grows with the token's place.

        y[i]       = x[i] cos(a[i]) - x[i + D/2] sin(a[i])
        y[i + D/2] = x[i + D/2] cos(a[i]) + x[i] sin(a[i]),    a[i] = (start + t) · frequency[i]

    A score of a turned query and a turned key then depends on how far apart they are, not on where.

    x: float (B, H, T, D); start: place of the first token
    returns: y (B, H, T, D), cache
    Source: Su et al. 2021, section 3.4.2, with the halves paired as in published Llama weights.
    Twin: torch_llm.positions.rotate
    """
    T, D = x.shape[-2:]
    length = (
        1 << (start + T - 1).bit_length()
    )  # a power of two, so that the table is made anew only as it doubles
    cosine, sine = (table[start : start + T] for table in rotary_table(rotary, D, length, x.dtype))
    return _turn(x, cosine, sine), RotateCache(cosine, sine)


def rotate_backward(dy, cache, out=None):
    """The transpose of a rotation is the rotation back: turn dy by minus the angle.

    out: where to write dx; returns: dx (B, H, T, D)
    """
    return _turn(dy, cache.cosine, -cache.sine, out)


def _turn(x, cosine, sine, out=None):
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    y = np.empty(x.shape, x.dtype) if out is None else out
    np.multiply(first, cosine, out=y[..., :half])
    y[..., :half] -= second * sine
    np.multiply(second, cosine, out=y[..., half:])
    y[..., half:] += first * sine
    return y


# What each choice of `position` adds to the embeddings, from the configuration and the weights; rotary adds nothing.
POSITIONS = {
    "sinusoidal": lambda config, weights: sinusoidal_positions(
        config.context_length, config.d_model, weights["token_embedding.weight"].dtype
    ),
    "learned": lambda config, weights: weights["position_embedding.weight"],
    "rotary": lambda config, weights: None,
}
