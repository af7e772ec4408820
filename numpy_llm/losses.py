"""The loss: what training makes smaller.

The dimension letters are explained in `contract/config.py`.
"""

from typing import NamedTuple

import numpy as np


class CrossEntropyCache(NamedTuple):
    probabilities: np.ndarray  # (B, T, V)
    columns: np.ndarray  # the targets as (B·T,)


def cross_entropy_forward(logits, targets):
    """The mean over all tokens of -log softmax(logits)[target], in nats per token.

    Fused with the softmax: its logarithm is taken as logits - log Σ exp(logits), which cannot overflow once
    each row's maximum is subtracted, and the backward pass becomes a single subtraction.

    logits: float (B, T, V); targets: int (B, T)
    returns: loss float (), cache
    Twin: torch_llm.losses.cross_entropy
    """
    V = logits.shape[-1]
    rows, columns = logits.reshape(-1, V), targets.reshape(-1)
    probabilities, losses = np.empty_like(rows), np.empty(len(rows), rows.dtype)
    for block in _row_blocks(rows):
        shifted = rows[block] - rows[block].max(axis=1, keepdims=True)
        picked = shifted[np.arange(len(shifted)), columns[block]]
        exponentials = np.exp(shifted, out=shifted)
        totals = exponentials.sum(axis=1, keepdims=True)
        losses[block] = np.log(totals[:, 0]) - picked
        np.divide(exponentials, totals, out=probabilities[block])
    return losses.mean(), CrossEntropyCache(probabilities.reshape(logits.shape), columns)


def cross_entropy_backward(dloss, cache):
    """Differentiate loss = mean of (log Σ_v exp(z[v]) - z[target]).

        ∂ log Σ_v exp(z[v]) / ∂z[v] = softmax(z)[v]   =>   dz = (softmax(z) - onehot(target)) · dloss / (B·T)

    dloss: float (), 1 for the loss itself, or a part's share of a larger batch
    returns: dlogits (B, T, V)
    """
    columns = cache.columns
    scale = dloss / columns.size
    dlogits = cache.probabilities * scale
    dlogits.reshape(columns.size, -1)[np.arange(columns.size), columns] -= scale
    return dlogits


def _row_blocks(rows):
    """Slices of rows, each of about as many numbers as a core's cache holds while several passes go over them.

    At GPT-2's vocabulary that takes a twentieth off the cross-entropy; at small ones it is a single block.
    """
    height = max(1, (1 << 16) // rows.shape[1])
    return (slice(start, start + height) for start in range(0, len(rows), height))
