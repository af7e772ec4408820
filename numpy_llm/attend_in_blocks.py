"""Attention in blocks: the numbers of `attend`, and nothing of size T · S is stored.

The dimension letters are explained in `contract/config.py`; S is the number of tokens attended to, and the T queries
are the last of them.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numpy_llm.layers import soft_cap_backward, soft_cap_forward
from numpy_llm.threads import each

# The shortest text that is attended to in blocks: below it the plain pairs are as fast (docs/benchmarks.md).
BLOCKS_FROM = 384
# Queries and keys of a block. Its scores, 512 kB in float32, stay in a core's cache while they are worked on,
# and each call of NumPy is long enough for two threads not to wait for each other's.
_QUERIES = 256
_KEYS = 512


class AttendInBlocksCache(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    heads: np.ndarray
    log_totals: np.ndarray  # log Σ exp(scores) of each query's row, (B, H, T)
    scale: float
    window: int | None
    cap: float | None


def attend_in_blocks_forward(query, key, value, scale, window=None, cap=None):
    """heads = softmax(cap · tanh(query keyᵀ · scale / cap) + mask) value, a block of queries and keys at a time.

    A softmax over keys that come block by block: of each row the largest score so far, m, and the sums with it,

        total = Σ exp(score - m),   sum = Σ exp(score - m) value

    A block with a larger score makes m grow to m'; what was summed before is then multiplied by exp(m - m'). At the
    end heads = sum / total, and log Σ exp(score) = m + log(total) is all that the backward pass needs to compute the
    probabilities again. Blocks that the mask hides are not computed.

    query: float (B, H, T, D); key, value: float (B, K, S, D); scale: of the scores
    window: how many tokens a query sees, None for all before it; cap: of the scores, None for none
    returns: heads (B, H, T, D), cache
    Source: Dao et al. 2022, algorithm 1; Dao 2023, section 3.1. Twin: torch_llm.attend_in_blocks.attend_in_blocks
    """
    B, H, T, D = query.shape
    group = H // key.shape[1]
    heads = np.empty((B, T, H, D), query.dtype).swapaxes(1, 2)  # in memory as `merge_heads` wants them
    log_totals = np.empty((B, H, T), query.dtype)

    def attend(place):
        b, h = place
        keys, values = map(np.ascontiguousarray, (key[b, h // group], value[b, h // group]))
        for rows, columns in _blocks(T, len(keys), window):
            scaled = query[b, h, rows] * scale
            largest, total, gathered = -np.inf, 0, 0
            for block in columns:
                scores, _ = _scores(scaled, keys, rows, block, T, cap, window)
                new = np.maximum(largest, scores.max(axis=-1, keepdims=True))
                scores -= new
                exponentials = np.exp(scores, out=scores)
                kept = np.exp(largest - new)  # 0 before the first block, when nothing was gathered
                total = total * kept + np.einsum("ts->t", exponentials)[:, None]
                gathered = gathered * kept + exponentials @ values[block]
                largest = new
            heads[b, h, rows] = gathered / total
            log_totals[b, h, rows] = (largest + np.log(total))[:, 0]

    each(attend, np.ndindex(B, H))
    return heads, AttendInBlocksCache(query, key, value, heads, log_totals, scale, window, cap)


def attend_in_blocks_backward(dheads, cache, out=(None, None, None)):
    """The backward passes of weighted sum, softmax, soft cap and scores, for one block after another.

    The probabilities come back from the scores, p = exp(score - log_total). In the gradient of a softmax,

        dscores = p (dp - delta),   delta = Σ_s dp[s] p[s],   dp[s] = dheads · value[s]

    the sum runs over all keys, those of other blocks too; but Σ_s p[s] value[s] = heads, so delta = dheads · heads,
    known before the first block.

    out: where to write the results
    returns: dquery (B, H, T, D), dkey, dvalue (B, K, S, D)
    Source: Dao et al. 2022, section 3.1 and appendix B; Dao 2023, section 3.1
    """
    query, key, value, scale, window = cache.query, cache.key, cache.value, cache.scale, cache.window
    B, H, T, D = query.shape
    K, S = key.shape[1:3]
    dquery = np.empty_like(query) if out[0] is None else out[0]
    # Each query head adds to a part of its own; the parts of a group are added up at the end, in order.
    dkeys, dvalues = np.zeros((2, B, H, S, D), query.dtype)
    delta = np.einsum("bhtd,bhtd->bht", dheads, cache.heads)

    def differentiate(place):
        b, h = place
        keys, values = map(np.ascontiguousarray, (key[b, h * K // H], value[b, h * K // H]))
        for rows, columns in _blocks(T, S, window):
            scaled = query[b, h, rows] * scale
            dhead = np.ascontiguousarray(dheads[b, h, rows])
            dscaled = 0
            for block in columns:
                scores, cap_cache = _scores(scaled, keys, rows, block, T, cache.cap, window)
                scores -= cache.log_totals[b, h, rows, None]
                probabilities = np.exp(scores, out=scores)
                dvalues[b, h, block] += probabilities.T @ dhead
                dscores = dhead @ values[block].T
                dscores -= delta[b, h, rows, None]
                dscores *= probabilities
                if cap_cache is not None:
                    dscores = soft_cap_backward(dscores, cap_cache)
                dscaled = dscaled + dscores @ keys[block]
                dkeys[b, h, block] += dscores.T @ scaled
            np.multiply(dscaled, scale, out=dquery[b, h, rows])

    each(differentiate, np.ndindex(B, H))
    dkey, dvalue = (
        np.sum(parts.reshape(B, K, H // K, S, D), axis=2, out=place)
        for parts, place in zip((dkeys, dvalues), out[1:], strict=True)
    )
    return dquery, dkey, dvalue


def _blocks(T, S, window):
    """The rows of each block of queries, and the slices of the keys that some of its queries see.

    The T queries are the last of the S tokens, so the rows from t to u stand at the places S - T + t to S - T + u.
    """
    for start in range(0, T, _QUERIES):
        rows = slice(start, min(start + _QUERIES, T))
        first = 0 if window is None else max(0, S - T + start + 1 - window)
        stop = S - T + rows.stop
        yield rows, [slice(at, min(at + _KEYS, stop)) for at in range(first, stop, _KEYS)]


def _scores(scaled, keys, rows, block, T, cap, window):
    """The masked scores of a block. returns: scores (rows, block), cache of the soft cap or None"""
    scores, cap_cache = scaled @ keys[block].T, None
    if cap is not None:
        scores, cap_cache = soft_cap_forward(scores, cap)
    last = len(keys) - T + rows.start  # the place of the first query
    if block.stop - 1 > last or (window is not None and block.start <= last + len(scaled) - 1 - window):
        scores += _mask(len(scaled), block.stop - block.start, last - block.start, window)
    return scores, cap_cache


@lru_cache(maxsize=64)
def _mask(height, width, distance, window):
    """What to add to a block: -inf where a key lies in the query's future or before its window.

    distance: from the block's first key to its first query, in places
    returns: float32 (height, width)
    """
    ahead = np.arange(width) - np.arange(height)[:, None] - distance  # of the key, from the query
    hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
    return np.where(hidden, np.float32(-np.inf), np.float32(0))
