"""Positions: what tells a token its place in the sequence.

The dimension letters are explained in `contract/config.py`.
"""

from typing import NamedTuple

import numpy as np


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


# The table of encodings of each choice of `position`, from the configuration and the weights.
POSITIONS = {
    "sinusoidal": lambda config, weights: sinusoidal_positions(
        config.context_length, config.d_model, weights["token_embedding.weight"].dtype
    ),
    "learned": lambda config, weights: weights["position_embedding.weight"],
}
