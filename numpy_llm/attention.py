"""Causal multi-head self-attention, forward and backward.

Source: Vaswani et al. 2017, sections 3.2.1 to 3.2.3. The dimension letters are explained in
`contract/config.py`; S is the number of tokens attended to: T, or more when a key/value cache holds earlier
ones.
"""

from functools import lru_cache

import numpy as np

from contract.trace import NO_TRACE
from numpy_llm.layers import dropout_backward, dropout_forward, linear_backward, linear_forward


def softmax_forward(x):
    """Turn the last axis into probabilities: y = exp(x) / Σ exp(x).

    x: float (..., S); -inf becomes exactly 0; every row holds at least one finite value
    returns: y (..., S), cache
    """
    y = x - x.max(axis=-1, keepdims=True)  # the same ratio, without overflow
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y, y


def softmax_backward(dy, cache):
    """Differentiate y[i] = exp(x[i]) / Σ_k exp(x[k]).

        ∂y[i]/∂x[j] = y[i] (δ[i, j] - y[j])   =>   dx[j] = y[j] (dy[j] - Σ_i dy[i] y[i])

    returns: dx (..., S), exactly 0 where y is 0, so masked places get no gradient
    """
    y = cache
    dx = dy - np.einsum("...s,...s->...", dy, y)[..., None]
    dx *= y
    return dx


@lru_cache(maxsize=8)
def causal_mask(T, S):
    """What to add to the scores: 0 where query t may see key s, -inf where s lies in its future.

    The T queries are the last of the S tokens, so query t stands at place S - T + t.
    returns: float32 (T, S)
    """
    return np.triu(np.full((T, S), -np.inf, np.float32), k=1 + S - T)


def attention_forward(x, weights, name, config, dropout=None, kv_cache=None, trace=NO_TRACE):
    """Each token gathers the values of the tokens up to itself, weighted by how its query fits their keys.

        query, key, value = split_heads(x W_qkvᵀ + b_qkv)
        y = merge_heads(softmax(query keyᵀ / √D + mask) value) W_outputᵀ + b_output

    x: float (B, T, C); weights: mapping that holds this layer's under `name`, such as "blocks.0.attention"
    dropout: DropoutKey, or None for evaluation
    kv_cache: keys and values of earlier tokens, extended here with those of x; None to attend within x
    returns: y (B, T, C), cache
    Source: Vaswani et al. 2017, equation 1. Twin: torch_llm.attention.attention
    """
    B, T, C = x.shape
    qkv, qkv_cache = linear_forward(
        x, weights[f"{name}.query_key_value.weight"], weights.get(f"{name}.query_key_value.bias")
    )
    # (B, T, 3·C) -> (B, T, 3, H, D) -> (3, B, H, T, D)
    query, key, value = qkv.reshape(B, T, 3, config.n_head, config.head_size).transpose(2, 0, 3, 1, 4)
    if kv_cache is not None:
        key, value = kv_cache.extend(name, key, value)
    trace.record(f"{name}.query", query)
    trace.record(f"{name}.key", key)
    trace.record(f"{name}.value", value)

    scale = config.head_size**-0.5
    scores = query @ key.swapaxes(-1, -2)  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
    scores *= scale
    trace.record(f"{name}.scores", scores)
    if T > 1:
        scores += causal_mask(T, key.shape[2])
    probabilities, softmax_cache = softmax_forward(scores)
    trace.record(f"{name}.probabilities", probabilities)
    kept, dropout_cache = dropout_forward(probabilities, config.dropout, dropout, f"{name}.probabilities")
    trace.record(f"{name}.probabilities_dropout", kept)
    heads = kept @ value  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)
    trace.record(f"{name}.heads", heads)

    merged = heads.swapaxes(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, H, D) -> (B, T, C)
    y, output_cache = linear_forward(
        merged, weights[f"{name}.output.weight"], weights.get(f"{name}.output.bias")
    )
    trace.record(f"{name}.output", y)
    return y, (name, qkv_cache, query, key, value, scale, softmax_cache, dropout_cache, kept, output_cache)


def attention_backward(dy, cache, trace=NO_TRACE):
    """The forward pass read from its last line to its first.

        heads = kept value             =>   dkept = dheads valueᵀ,     dvalue = keptᵀ dheads
        scores = query keyᵀ · scale    =>   dquery = dscores key · scale,   dkey = dscoresᵀ query · scale

    The mask adds a constant, so its gradient passes unchanged; softmax has made the masked ones 0.

    returns: dx (B, T, C), gradients by weight name (None for an absent bias)
    """
    name, qkv_cache, query, key, value, scale, softmax_cache, dropout_cache, kept, output_cache = cache
    B, H, T, D = query.shape
    trace.record_gradient(f"{name}.output", dy)
    dmerged, doutput_weight, doutput_bias = linear_backward(dy, output_cache)
    dheads = dmerged.reshape(B, T, H, D).swapaxes(1, 2)  # merged = heads.swapaxes(1, 2).reshape(B, T, C)
    trace.record_gradient(f"{name}.heads", dheads)

    dkept = dheads @ value.swapaxes(-1, -2)  # heads = kept @ value
    trace.record_gradient(f"{name}.probabilities_dropout", dkept)
    dprobabilities = dropout_backward(dkept, dropout_cache)
    trace.record_gradient(f"{name}.probabilities", dprobabilities)
    dscores = softmax_backward(dprobabilities, softmax_cache)
    trace.record_gradient(f"{name}.scores", dscores)
    dscores *= scale  # scores *= scale

    dqkv = np.empty((B, T, 3, H, D), dy.dtype)
    dquery, dkey, dvalue = dqkv.transpose(2, 0, 3, 1, 4)  # views: what is written to them fills dqkv
    np.matmul(dscores, key, out=dquery)  # scores = query @ key.swapaxes(-1, -2)
    np.matmul(dscores.swapaxes(-1, -2), query, out=dkey)
    np.matmul(kept.swapaxes(-1, -2), dheads, out=dvalue)  # heads = kept @ value
    trace.record_gradient(f"{name}.value", dvalue)
    trace.record_gradient(f"{name}.key", dkey)
    trace.record_gradient(f"{name}.query", dquery)
    dx, dqkv_weight, dqkv_bias = linear_backward(dqkv.reshape(B, T, -1), qkv_cache)
    return dx, {
        f"{name}.query_key_value.weight": dqkv_weight,
        f"{name}.query_key_value.bias": dqkv_bias,
        f"{name}.output.weight": doutput_weight,
        f"{name}.output.bias": doutput_bias,
    }
