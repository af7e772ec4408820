"""The loss: what training makes smaller.

The dimension letters are explained in `contract/config.py`.
"""

from typing import NamedTuple

import numpy as np

from contract.targets import NO_TARGET, counted
from numpy_llm.layers import linear_forward, soft_cap_forward


class CrossEntropyCache(NamedTuple):
    probabilities: np.ndarray  # (B, T, V)
    columns: np.ndarray  # the targets as (B·T,)


def cross_entropy_forward(logits, targets):
    """The mean over the tokens that count of -log softmax(logits)[target], in nats per token.

    A token with `NO_TARGET` in the place of its target does not count, such as the question before a reply that is
    learnt. If none counts, the loss is 0.

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
        picked = _picked(shifted, columns[block])
        exponentials = np.exp(shifted, out=shifted)
        totals = exponentials.sum(axis=1, keepdims=True)
        losses[block] = np.log(totals[:, 0]) - picked
        np.divide(exponentials, totals, out=probabilities[block])
    return _mean(losses, columns), CrossEntropyCache(probabilities.reshape(logits.shape), columns)


def cross_entropy_backward(dloss, cache):
    """Differentiate loss = mean of (log Σ_v exp(z[v]) - z[target]) over the N tokens that count, all B·T as a rule.

        ∂ log Σ_v exp(z[v]) / ∂z[v] = softmax(z)[v]   =>   dz = (softmax(z) - onehot(target)) · dloss / N

    and dz = 0 for a token that does not count.

    dloss: float (), 1 for the loss itself, or a part's share of a larger batch
    returns: dlogits (B, T, V)
    """
    columns = cache.columns
    scale = dloss / counted(columns)
    dlogits = cache.probabilities * scale
    _subtract_onehot(dlogits.reshape(columns.size, -1), columns, scale)
    return dlogits


class LinearCrossEntropyCache(NamedTuple):
    x: np.ndarray  # as (N, C)
    weight: np.ndarray
    columns: np.ndarray  # the targets as (N,)
    log_totals: np.ndarray  # log Σ exp(logits) of each row
    cap: float | None


def linear_cross_entropy_forward(x, weight, targets, cap=None):
    """The output layer, its soft cap and the cross-entropy, without holding all logits at once.

    Fused over blocks of rows: at V = 150,000 and T = 8,192 the logits alone take 5 GB, and the plain pairs hold them
    three times. The price is that the backward pass computes them again: four products instead of three.

    x: float (B, T, C); weight: float (V, C); targets: int (B, T); cap: of `soft_cap_forward`, None for none
    returns: loss float (), cache
    Twin: torch_llm.losses.linear_cross_entropy
    """
    rows, columns = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    losses, log_totals = np.empty((2, len(rows)), x.dtype)
    for block in _logit_blocks(len(rows), len(weight)):
        logits = _capped_logits(rows[block], weight, cap)
        largest = logits.max(axis=1)
        picked = _picked(logits, columns[block])
        logits -= largest[:, None]
        log_totals[block] = largest + np.log(np.exp(logits, out=logits).sum(axis=1))
        losses[block] = log_totals[block] - picked
    return _mean(losses, columns), LinearCrossEntropyCache(rows, weight, columns, log_totals, cap)


def linear_cross_entropy_backward(dloss, cache):
    """For each block of rows the backward passes of cross-entropy, soft cap and linear layer.

        softmax(z) = exp(z - log Σ exp(z)),  from the logits z computed again and the logarithms kept

    returns: dx (N, C), dweight (V, C)
    """
    dx, dweight = np.empty_like(cache.x), np.zeros_like(cache.weight)
    scale = dloss / counted(cache.columns)
    for block in _logit_blocks(len(cache.x), len(cache.weight)):
        rows, columns = cache.x[block], cache.columns[block]
        logits = _capped_logits(rows, cache.weight, cache.cap)
        slope = 1 if cache.cap is None else 1 - (logits / cache.cap) ** 2
        logits -= cache.log_totals[block, None]
        dlogits = np.exp(logits, out=logits)
        _subtract_onehot(dlogits, columns, 1)
        dlogits *= scale * slope
        dx[block] = dlogits @ cache.weight
        dweight += dlogits.T @ rows
    return dx, dweight


MAX_LOGITS = 1 << 26  # numbers held at once; a block below it is large enough for BLAS at any vocabulary


def _logit_blocks(rows, V):
    height = max(1, MAX_LOGITS // V)
    return [slice(start, start + height) for start in range(0, rows, height)]


def _capped_logits(rows, weight, cap):
    logits, _ = linear_forward(rows, weight, None)
    return logits if cap is None else soft_cap_forward(logits, cap)[0]


def _mean(losses, columns):
    """The mean of the losses of tokens that count; the others become 0."""
    losses[columns == NO_TARGET] = 0
    return losses.sum() / counted(columns)


def _picked(rows, columns):
    """Each row's number at its target, any one at `NO_TARGET`."""
    return rows[np.arange(len(rows)), np.maximum(columns, 0)]


def _subtract_onehot(rows, columns, scale):
    """Subtract onehot(target) · scale from each row, in place; rows whose target does not count become 0."""
    rows[np.arange(len(rows)), np.maximum(columns, 0)] -= scale
    rows[columns == NO_TARGET] = 0


def _row_blocks(rows):
    """Slices of rows, each of about as many numbers as a core's cache holds while several passes go over them.

    At GPT-2's vocabulary that takes a twentieth off the cross-entropy; at small ones it is a single block.
    """
    height = max(1, (1 << 16) // rows.shape[1])
    return (slice(start, start + height) for start in range(0, len(rows), height))
