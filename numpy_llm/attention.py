"""Causal multi-head self-attention, forward and backward: pairs, and the layer made of them.

Source: Vaswani et al. 2017, sections 3.2.1 to 3.2.3. The dimension letters are explained in
`contract/config.py`; S is the number of tokens attended to: T, or more when a key/value cache holds earlier
ones.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from contract.trace import NO_TRACE
from numpy_llm.layers import (
    DropoutCache,
    LinearCache,
    dropout_backward,
    dropout_forward,
    linear_backward,
    linear_forward,
)


class SplitHeadsCache(NamedTuple):
    shape: tuple[int, ...]  # of qkv
    n_head: int


def split_heads_forward(qkv, n_head):
    """Read a token's 3·H·D channels as query, key and value, each of H heads side by side.

    qkv: float (B, T, 3·H·D); returns: query, key, value, each (B, H, T, D) and a view of qkv; cache
    Source: Vaswani et al. 2017, section 3.2.2. Twin: torch_llm.attention.split_heads
    """
    return *_heads_of(qkv, n_head), SplitHeadsCache(qkv.shape, n_head)


def _heads_of(qkv, n_head):
    """(B, T, 3·H·D) -> (B, T, 3, H, D) -> (3, B, H, T, D), a view"""
    B, T, channels = qkv.shape
    return qkv.reshape(B, T, 3, n_head, channels // (3 * n_head)).transpose(2, 0, 3, 1, 4)


def split_heads_backward(dquery, dkey, dvalue, cache, out=None):
    """No number changes: each moves back to the channel that it came from.

    out: float (B, T, 3·H·D), where to write; what is a view of it already is in its place
    returns: dqkv (B, T, 3·H·D)
    """
    dqkv = np.empty(cache.shape, dquery.dtype) if out is None else out
    for place, gradient in zip(_heads_of(dqkv, cache.n_head), (dquery, dkey, dvalue), strict=True):
        if not np.may_share_memory(dqkv, gradient):
            place[...] = gradient
    return dqkv


class ScoresCache(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    scale: float


def scores_forward(query, key, scale):
    """How well each query fits each key: scores = query keyᵀ · scale.

    query: float (B, H, T, D); key: float (B, H, S, D); scale: 1/√D
    returns: scores (B, H, T, S), before the mask; cache
    Source: Vaswani et al. 2017, section 3.2.1. Twin: torch_llm.attention.scores
    """
    scores = query @ key.swapaxes(-1, -2)  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
    scores *= scale
    return scores, ScoresCache(query, key, scale)


def scores_backward(dscores, cache, scratch=None, out=(None, None)):
    """Differentiate scores[t, s] = scale · Σ_d query[t, d] key[s, d].

        dquery = dscores key · scale,   dkey = dscoresᵀ query · scale

    scratch: like dscores, overwritten; out: where to write the results
    returns: dquery (B, H, T, D), dkey (B, H, S, D)
    """
    scaled = np.multiply(dscores, cache.scale, out=scratch)
    dquery = np.matmul(scaled, cache.key, out=out[0])
    dkey = np.matmul(scaled.swapaxes(-1, -2), cache.query, out=out[1])
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
def causal_mask(T, S):
    """What to add to the scores: 0 where query t may see key s, -inf where s lies in its future.

    The T queries are the last of the S tokens, so query t stands at place S - T + t.
    returns: float32 (T, S)
    """
    return np.triu(np.full((T, S), -np.inf, np.float32), k=1 + S - T)


def masked_softmax_forward(scores):
    """The share of each key that a query may see: softmax(scores + mask).

    scores: float (B, H, T, S); returns: probabilities (B, H, T, S), cache
    Source: Vaswani et al. 2017, section 3.2.3. Twin: torch_llm.attention.masked_softmax
    """
    T, S = scores.shape[-2:]
    if T == 1:  # the last token sees all
        return softmax_forward(scores)
    masked = scores + causal_mask(T, S)
    return softmax_forward(masked, out=masked)


def masked_softmax_backward(dprobabilities, cache):
    """The mask adds a constant, so it passes the gradient unchanged; softmax makes the masked ones 0."""
    return softmax_backward(dprobabilities, cache)


class WeightedSumCache(NamedTuple):
    probabilities: np.ndarray
    value: np.ndarray


def weighted_sum_forward(probabilities, value):
    """What each query gathers: heads = probabilities value.

    probabilities: float (B, H, T, S); value: float (B, H, S, D)
    returns: heads (B, H, T, D), cache
    Source: Vaswani et al. 2017, equation 1. Twin: torch_llm.attention.weighted_sum
    """
    heads = probabilities @ value  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)
    return heads, WeightedSumCache(probabilities, value)


def weighted_sum_backward(dheads, cache, out=None):
    """Differentiate heads[t, d] = Σ_s probabilities[t, s] value[s, d].

        dprobabilities = dheads valueᵀ,   dvalue = probabilitiesᵀ dheads

    out: where to write dvalue; returns: dprobabilities (B, H, T, S), dvalue (B, H, S, D)
    """
    dprobabilities = dheads @ cache.value.swapaxes(-1, -2)
    dvalue = np.matmul(cache.probabilities.swapaxes(-1, -2), dheads, out=out)
    return dprobabilities, dvalue


class MergeHeadsCache(NamedTuple):
    shape: tuple[int, ...]  # of heads


def merge_heads_forward(heads):
    """Lay a token's heads side by side in its channels: head h in channels h·D to (h+1)·D.

    heads: float (B, H, T, D); returns: merged (B, T, H·D), cache
    Source: Vaswani et al. 2017, section 3.2.2. Twin: torch_llm.attention.merge_heads
    """
    B, H, T, D = heads.shape
    return heads.swapaxes(1, 2).reshape(B, T, H * D), MergeHeadsCache(heads.shape)


def merge_heads_backward(dmerged, cache):
    """No number changes: merged = heads.swapaxes(1, 2).reshape(B, T, H·D), undone in reverse.

    returns: dheads (B, H, T, D)
    """
    B, H, T, D = cache.shape
    return dmerged.reshape(B, T, H, D).swapaxes(1, 2)


class AttendCache(NamedTuple):
    name: str
    scores: ScoresCache
    softmax: SoftmaxCache
    dropout: DropoutCache
    weighted_sum: WeightedSumCache


def attend_forward(query, key, value, name, config, dropout=None, trace=NO_TRACE):
    """Weigh the values by how well each query fits their keys: heads = softmax(query keyᵀ / √D + mask) value.

    query: float (B, H, T, D); key, value: float (B, H, S, D); the rest as in `attention_forward`
    returns: heads (B, H, T, D), cache
    Source: Vaswani et al. 2017, equation 1. Twin: torch_llm.attention.attend
    """
    scale = config.head_size**-0.5
    scores, scores_cache = scores_forward(query, key, scale)
    trace.record(f"{name}.scores", scores, "scores", query, key, scale)
    probabilities, softmax_cache = masked_softmax_forward(scores)
    trace.record(f"{name}.probabilities", probabilities, "masked_softmax", scores)
    dropping = config.dropout, dropout, f"{name}.probabilities"
    kept, dropout_cache = dropout_forward(probabilities, *dropping)
    trace.record(f"{name}.probabilities_dropout", kept, "dropout", probabilities, *dropping)
    heads, sum_cache = weighted_sum_forward(kept, value)
    trace.record(f"{name}.heads", heads, "weighted_sum", kept, value)
    return heads, AttendCache(name, scores_cache, softmax_cache, dropout_cache, sum_cache)


def attend_backward(dheads, cache, trace=NO_TRACE, out=(None, None, None)):
    """The forward pass reversed. out: where to write the results; returns: dquery, dkey, dvalue"""
    name = cache.name
    trace.record_gradient(f"{name}.heads", dheads)
    dkept, dvalue = weighted_sum_backward(dheads, cache.weighted_sum, out=out[2])
    trace.record_gradient(f"{name}.probabilities_dropout", dkept)
    dprobabilities = dropout_backward(dkept, cache.dropout)
    trace.record_gradient(f"{name}.probabilities", dprobabilities)
    dscores = masked_softmax_backward(dprobabilities, cache.softmax)
    trace.record_gradient(f"{name}.scores", dscores)
    dquery, dkey = scores_backward(dscores, cache.scores, scratch=dscores, out=out[:2])
    trace.record_gradient(f"{name}.value", dvalue)
    trace.record_gradient(f"{name}.key", dkey)
    trace.record_gradient(f"{name}.query", dquery)
    return dquery, dkey, dvalue


class AttentionCache(NamedTuple):
    name: str
    query_key_value: LinearCache
    split: SplitHeadsCache
    attend: AttendCache
    merge: MergeHeadsCache
    output: LinearCache


def attention_forward(x, weights, name, config, dropout=None, kv_cache=None, trace=NO_TRACE):
    """Each token gathers the values of the tokens up to itself, weighted by how its query fits their keys.

        query, key, value = split_heads(x W_qkvᵀ + b_qkv)
        y = merge_heads(attend(query, key, value)) W_outputᵀ + b_output

    x: float (B, T, C); weights: mapping that holds this layer's under `name`, such as "blocks.0.attention"
    dropout: DropoutKey, or None for evaluation
    kv_cache: keys and values of earlier tokens, extended here with those of x; None to attend within x
    returns: y (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.2.2. Twin: torch_llm.attention.Attention
    """
    qkv_weights = weights[f"{name}.query_key_value.weight"], weights.get(f"{name}.query_key_value.bias")
    output_weights = weights[f"{name}.output.weight"], weights.get(f"{name}.output.bias")
    qkv, qkv_cache = linear_forward(x, *qkv_weights)
    trace.note(f"{name}.query_key_value", qkv, "linear", x, *qkv_weights)
    query, key, value, split_cache = split_heads_forward(qkv, config.n_head)
    parts = {f"{name}.query": query, f"{name}.key": key, f"{name}.value": value}
    trace.record_all(parts, "split_heads", qkv, config.n_head)
    if kv_cache is not None:
        key, value = kv_cache.extend(name, key, value)
    heads, attend_cache = attend_forward(query, key, value, name, config, dropout, trace)
    merged, merge_cache = merge_heads_forward(heads)
    trace.note(f"{name}.merged", merged, "merge_heads", heads)
    y, output_cache = linear_forward(merged, *output_weights)
    trace.record(f"{name}.output", y, "linear", merged, *output_weights)
    return y, AttentionCache(name, qkv_cache, split_cache, attend_cache, merge_cache, output_cache)


def attention_backward(dy, cache, trace=NO_TRACE):
    """The forward pass read from its last line to its first.

    returns: dx (B, T, C), gradients by weight name (None for an absent bias)
    """
    name = cache.name
    trace.record_gradient(f"{name}.output", dy)
    dmerged, doutput_weight, doutput_bias = linear_backward(dy, cache.output)
    dheads = merge_heads_backward(dmerged, cache.merge)
    dqkv = np.empty(cache.split.shape, dy.dtype)
    views = _heads_of(dqkv, cache.split.n_head)  # what is written to them fills dqkv
    dquery, dkey, dvalue = attend_backward(dheads, cache.attend, trace, out=views)
    dqkv = split_heads_backward(dquery, dkey, dvalue, cache.split, out=dqkv)
    dx, dqkv_weight, dqkv_bias = linear_backward(dqkv, cache.query_key_value)
    return dx, {
        f"{name}.query_key_value.weight": dqkv_weight,
        f"{name}.query_key_value.bias": dqkv_bias,
        f"{name}.output.weight": doutput_weight,
        f"{name}.output.bias": doutput_bias,
    }
