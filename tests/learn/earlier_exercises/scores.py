# ruff: noqa
"""Exercise scores: how much each token attends to each token before it.

    y = softmax(query keyᵀ / √D + mask),   mask[t, s] = -inf where s > t, else 0

Write `scores_backward`. `softmax_backward(dy, y)` is yours from an earlier step.
"""

import numpy as np

from numpy_llm.attention import softmax_backward, softmax_forward  # earlier steps

EXERCISE = "scores"
SEED = 3


def scores_forward(query, key):
    """Given. returns: y, and the cache that scores_backward gets."""
    T, D = query.shape[-2:]
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(D)  # (B, H, T, D) @ (B, H, D, T) -> (B, H, T, T)
    scores += np.triu(np.full((T, T), -np.inf), k=1)
    y, _ = softmax_forward(scores)
    return y, (query, key, y)


def scores_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dquery, dkey"""
    query, key, y = cache
    scale = 1 / np.sqrt(query.shape[-1])
    dscores = softmax_backward(dy, y)
    dscores = dscores * scale
    return dscores @ key, dscores.swapaxes(-1, -2) @ query
