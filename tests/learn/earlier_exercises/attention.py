# ruff: noqa
"""Exercise attention: each token gathers the values of the tokens up to itself.

    query, key, value = split_heads(x W_qkvᵀ + b_qkv)
    y = merge_heads(softmax(query keyᵀ / √D + mask) value) W_outputᵀ + b_output

Write `attention_backward`.
"""

import numpy as np

from numpy_llm.attention import softmax_backward, softmax_forward  # earlier steps
from numpy_llm.layers import linear_backward, linear_forward

EXERCISE = "attention"
SEED = 3


def attention_forward(x, weights, n_head):
    """Given. returns: y, and the cache that attention_backward gets."""
    B, T, C = x.shape
    D = C // n_head
    qkv, qkv_cache = linear_forward(x, weights["query_key_value.weight"], weights["query_key_value.bias"])
    query, key, value = qkv.reshape(B, T, 3, n_head, D).transpose(2, 0, 3, 1, 4)  # each (B, H, T, D)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(D)
    scores += np.triu(np.full((T, T), -np.inf), k=1)
    probabilities, _ = softmax_forward(scores)
    heads = probabilities @ value
    merged = heads.swapaxes(1, 2).reshape(B, T, C)
    y, output_cache = linear_forward(merged, weights["output.weight"], weights["output.bias"])
    return y, (qkv_cache, query, key, value, probabilities, output_cache)


def attention_backward(dy, cache):
    """dy: the gradient of the loss with respect to y.

    returns: dx, and a dict of the weights' gradients by the names that they have in `weights`

    linear_backward(dy, its cache) returns dx, dweight, dbias; softmax_backward(dy, probabilities) returns dx.
    """
    qkv_cache, query, key, value, probabilities, output_cache = cache
    B, H, T, D = query.shape
    dmerged, doutput_weight, doutput_bias = linear_backward(dy, output_cache)
    dheads = dmerged.reshape(B, T, H, D).swapaxes(1, 2)
    dprobabilities = dheads @ value.swapaxes(-1, -2)
    dvalue = probabilities.swapaxes(-1, -2) @ dheads
    dscores = softmax_backward(dprobabilities, probabilities)
    dscores = dscores / np.sqrt(D)
    dquery = dscores @ key
    dkey = dscores.swapaxes(-1, -2) @ query
    dqkv = np.stack([dquery, dkey, dvalue]).transpose(1, 3, 0, 2, 4).reshape(B, T, -1)
    dx, dqkv_weight, dqkv_bias = linear_backward(dqkv, qkv_cache)
    return dx, {
        "query_key_value.weight": dqkv_weight,
        "query_key_value.bias": dqkv_bias,
        "output.weight": doutput_weight,
        "output.bias": doutput_bias,
    }
