"""What attention computes from queries, keys and values: pairs, and all of them in a row.

Source: Vaswani et al. 2017, section 3.2.1. The dimension letters are explained in `contract/config.py`; S is the
number of tokens attended to: T, or more when a key/value cache holds earlier ones.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from contract.trace import NO_TRACE
from numpy_llm.layers import (
    DropoutCache,
    SoftCapCache,
    dropout_backward,
    dropout_forward,
    soft_cap_backward,
    soft_cap_forward,
)


def _grouped(x, K):
    """(B, H, T, N) -> (B, K, H/K·T, N): the query heads that read one key/value head, one below the other.

    Head h reads key/value head h // (H/K), so each group's heads lie together: no number moves.
    """
    B, H, T, N = x.shape
    return x.reshape(B, K, H // K * T, N)


class ScoresCache(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    scale: float


def scores_forward(query, key, scale):
    """How well each query fits each key: scores = query keyᵀ · scale; query head h reads key head h // (H/K).

    query: float (B, H, T, D); key: float (B, K, S, D); scale: 1/√D as a rule
    returns: scores (B, H, T, S), before the mask; cache
    Source: Vaswani et al. 2017, section 3.2.1; Ainslie et al. 2023, section 2.2. Twin: torch_llm.attend.scores
    """
    B, H, T, _ = query.shape
    K, S = key.shape[1:3]
    scores = _grouped(query, K) @ key.swapaxes(-1, -2)  # (B, K, H/K·T, D) @ (B, K, D, S) -> (B, K, H/K·T, S)
    scores *= scale
    return scores.reshape(B, H, T, S), ScoresCache(query, key, scale)


def scores_backward(dscores, cache, scratch=None, out=(None, None)):
    """Differentiate scores[h, t, s] = scale · Σ_d query[h, t, d] key[h // (H/K), s, d].

        dquery[h] = dscores[h] key[h // (H/K)] · scale
        dkey[k]   = Σ dscores[h]ᵀ query[h] · scale  over the query heads h that read k: one product over all their rows

    scratch: like dscores, overwritten; out: where to write the results, dquery only where each query head has a key
        head of its own
    returns: dquery (B, H, T, D), dkey (B, K, S, D)
    """
    query, key = cache.query, cache.key
    H, K = query.shape[1], key.shape[1]
    scaled = _grouped(np.multiply(dscores, cache.scale, out=scratch), K)
    dquery = np.matmul(scaled, key, out=out[0] if H == K else None).reshape(query.shape)
    dkey = np.matmul(scaled.swapaxes(-1, -2), _grouped(query, K), out=out[1])
    return dquery, dkey


class SoftmaxCache(NamedTuple):
    y: np.ndarray


def softmax_forward(x, out=None):
    """Turn the last axis into probabilities: y = exp(x) / Σ exp(x).

    x: float (..., S); -inf becomes exactly 0; every row holds at least one finite value
    out: where to write y, may be x
    returns: y (..., S), cache
    """
    y = np.subtract(x, x.max(axis=-1, keepdims=True), out=out)  # the same ratio, without overflow
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y, SoftmaxCache(y)


def softmax_backward(dy, cache):
    """Differentiate y[i] = exp(x[i]) / Σ_k exp(x[k]).

        ∂y[i]/∂x[j] = y[i] (δ[i, j] - y[j])   =>   dx[j] = y[j] (dy[j] - Σ_i dy[i] y[i])

    returns: dx (..., S), exactly 0 where y is 0, so masked places get no gradient
    """
    dx = dy - np.einsum("...s,...s->...", dy, cache.y)[..., None]
    dx *= cache.y
    return dx


@lru_cache(maxsize=8)
def causal_mask(T, S, window=None):
    """What to add to the scores: 0 where query t may see key s, -inf where s lies in its future or before its window.

    The T queries are the last of the S tokens, so query t stands at place S - T + t; with a window of W it sees the
    last W tokens up to itself.
    returns: float32 (T, S)
    """
    mask = np.triu(np.full((T, S), -np.inf, np.float32), k=1 + S - T)
    if window is not None:
        mask += np.tril(np.full((T, S), -np.inf, np.float32), k=S - T - window)
    return mask


def masked_softmax_forward(scores, window=None):
    """The share of each key that a query may see: softmax(scores + mask).

    scores: float (B, H, T, S); window: how many tokens a query sees, None for all before it
    returns: probabilities (B, H, T, S), cache
    Source: Vaswani et al. 2017, section 3.2.3; Beltagy et al. 2020, section 3.1 (window).
    Twin: torch_llm.attend.masked_softmax
    """
    T, S = scores.shape[-2:]
    if T == 1 and (window or S) >= S:  # the last token sees all
        return softmax_forward(scores)
    masked = scores + causal_mask(T, S, window)
    return softmax_forward(masked, out=masked)


def masked_softmax_backward(dprobabilities, cache):
    """The mask adds a constant, so it passes the gradient unchanged; softmax makes the masked ones 0."""
    return softmax_backward(dprobabilities, cache)


class WeightedSumCache(NamedTuple):
    probabilities: np.ndarray
    value: np.ndarray


def weighted_sum_forward(probabilities, value):
    """What each query gathers: heads = probabilities value; query head h reads value head h // (H/K).

    probabilities: float (B, H, T, S); value: float (B, K, S, D)
    returns: heads (B, H, T, D), cache
    Source: Vaswani et al. 2017, equation 1. Twin: torch_llm.attend.weighted_sum
    """
    B, H, T, _ = probabilities.shape
    heads = (
        _grouped(probabilities, value.shape[1]) @ value
    )  # (B, K, H/K·T, S) @ (B, K, S, D) -> (B, K, H/K·T, D)
    return heads.reshape(B, H, T, -1), WeightedSumCache(probabilities, value)


def weighted_sum_backward(dheads, cache, out=None):
    """Differentiate heads[h, t, d] = Σ_s probabilities[h, t, s] value[h // (H/K), s, d].

        dprobabilities[h] = dheads[h] valueᵀ[h // (H/K)]
        dvalue[k]         = Σ probabilities[h]ᵀ dheads[h]  over the query heads h that read k

    out: where to write dvalue; returns: dprobabilities (B, H, T, S), dvalue (B, K, S, D)
    """
    K = cache.value.shape[1]
    drows = _grouped(dheads, K)
    dprobabilities = drows @ cache.value.swapaxes(-1, -2)
    dvalue = np.matmul(_grouped(cache.probabilities, K).swapaxes(-1, -2), drows, out=out)
    return dprobabilities.reshape(cache.probabilities.shape), dvalue


class AttendCache(NamedTuple):
    name: str
    scores: ScoresCache
    cap: SoftCapCache | None
    softmax: SoftmaxCache
    dropout: DropoutCache
    weighted_sum: WeightedSumCache


def attend_forward(query, key, value, name, config, window=None, dropout=None, trace=NO_TRACE):
    """Weigh the values by how well each query fits their keys: heads = softmax(query keyᵀ / √D + mask) value.

    query: float (B, H, T, D); key, value: float (B, K, S, D); window: how many tokens a query sees, None for all
    the rest as in `attention_forward`
    returns: heads (B, H, T, D), cache
    Source: Vaswani et al. 2017, equation 1. Twin: torch_llm.attend.attend
    """
    scale = config.score_scale
    scores, scores_cache = scores_forward(query, key, scale)
    trace.record(f"{name}.scores", scores, "scores", query, key, scale)
    cap_cache = None
    if config.score_cap is not None:
        capped, cap_cache = soft_cap_forward(scores, config.score_cap)
        trace.record(f"{name}.capped_scores", capped, "soft_cap", scores, config.score_cap)
        scores = capped
    probabilities, softmax_cache = masked_softmax_forward(scores, window)
    trace.record(f"{name}.probabilities", probabilities, "masked_softmax", scores, window)
    dropping = config.dropout, dropout, f"{name}.probabilities"
    kept, dropout_cache = dropout_forward(probabilities, *dropping)
    trace.record(f"{name}.probabilities_dropout", kept, "dropout", probabilities, *dropping)
    heads, sum_cache = weighted_sum_forward(kept, value)
    trace.record(f"{name}.heads", heads, "weighted_sum", kept, value)
    return heads, AttendCache(name, scores_cache, cap_cache, softmax_cache, dropout_cache, sum_cache)


def attend_backward(dheads, cache, trace=NO_TRACE, out=(None, None, None)):
    """The forward pass reversed. out: where to write the results; returns: dquery, dkey, dvalue"""
    name = cache.name
    trace.record_gradient(f"{name}.heads", dheads)
    dkept, dvalue = weighted_sum_backward(dheads, cache.weighted_sum, out=out[2])
    trace.record_gradient(f"{name}.probabilities_dropout", dkept)
    dprobabilities = dropout_backward(dkept, cache.dropout)
    trace.record_gradient(f"{name}.probabilities", dprobabilities)
    dscores = masked_softmax_backward(dprobabilities, cache.softmax)
    if cache.cap is not None:
        trace.record_gradient(f"{name}.capped_scores", dscores)
        dscores = soft_cap_backward(dscores, cache.cap)
    trace.record_gradient(f"{name}.scores", dscores)
    dquery, dkey = scores_backward(dscores, cache.scores, scratch=dscores, out=out[:2])
    return dquery, dkey, dvalue
