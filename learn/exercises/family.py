"""The functions of the exercises on what newer models have: rotary positions, SwiGLU, grouped queries, and one block.

As in composites.py: a forward pass here stands in a student's file as it is, and the references call the model's own
functions through their modules, where a mistake may stand in their place.
"""

import numpy as np

from contract.config import Layer, ModelConfig
from contract.rotary import Rotary
from learn.exercises.composites import layer_of
from learn.exercises.inputs import modern_config
from numpy_llm import attend, attention, block, feed_forward, layers, norms, positions
from numpy_llm.attend import softmax_forward
from numpy_llm.feed_forward import silu_forward
from numpy_llm.layers import linear_forward
from numpy_llm.norms import rms_norm_forward


def rotary_forward(x, theta):
    """Turn each pair of channels, i and i + D/2, by an angle that grows with the token's place t.

    y[i]       = x[i] cos(a[i]) - x[i + D/2] sin(a[i])
    y[i + D/2] = x[i + D/2] cos(a[i]) + x[i] sin(a[i]),   a[i] = t · theta^(-2i/D)
    """
    T, D = x.shape[-2:]
    angle = np.arange(T)[:, None] * theta ** (-np.arange(0, D, 2) / D)  # (T, D/2)
    cosine, sine = np.cos(angle), np.sin(angle)
    first, second = np.split(x, 2, axis=-1)
    y = np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return y, (cosine, sine)


def _rotary(x, theta):
    return positions.rotate_forward(x, Rotary(theta=theta))


def _rotary_backward(dy, cache):
    return {"dx": positions.rotate_backward(dy, cache)}


def qk_norm_forward(x, weight, eps, theta):
    """RMS norm over the D channels of each head, then the rotation by place: Qwen 3 and Gemma 3 do it to query and key.

    normed = x / √(mean(x²) + eps) · weight
    y = normed, whose pairs i and i + D/2 are turned by t · theta^(-2i/D)
    """
    inverse_rms = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    normal = x * inverse_rms
    normed = normal * weight
    T, D = x.shape[-2:]
    angle = np.arange(T)[:, None] * theta ** (-np.arange(0, D, 2) / D)
    cosine, sine = np.cos(angle), np.sin(angle)
    first, second = np.split(normed, 2, axis=-1)
    y = np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return y, (normal, inverse_rms, weight, cosine, sine)


def _qk_norm(x, weight, eps, theta):
    normed, norm_cache = norms.rms_norm_forward(x, weight, eps)
    y, rotation_cache = _rotary(normed, theta)
    return y, (norm_cache, rotation_cache)


def _qk_norm_backward(dy, cache):
    norm_cache, rotation_cache = cache
    dx, dweight = norms.rms_norm_backward(positions.rotate_backward(dy, rotation_cache), norm_cache)
    return {"dx": dx, "dweight": dweight}


def swiglu_forward(x, gate, up, down):
    """A feed-forward layer whose hidden channels are let through as far as their gates are open.

    y = (silu(x gateᵀ) · (x upᵀ)) downᵀ,   silu(a) = a σ(a),   σ(a) = 1 / (1 + exp(-a))
    """
    a, gate_cache = linear_forward(x, gate, None)
    b, up_cache = linear_forward(x, up, None)
    sigmoid = 1 / (1 + np.exp(-a))
    y, down_cache = linear_forward(a * sigmoid * b, down, None)
    return y, (gate_cache, up_cache, down_cache, a, b, sigmoid)


def _swiglu(x, gate, up, down):
    a, gate_cache = layers.linear_forward(x, gate, None)
    active, silu_cache = feed_forward.silu_forward(a)
    b, up_cache = layers.linear_forward(x, up, None)
    gated, product_cache = feed_forward.gate_forward(active, b)
    y, down_cache = layers.linear_forward(gated, down, None)
    return y, (gate_cache, silu_cache, up_cache, product_cache, down_cache)


def _swiglu_backward(dy, cache):
    gate_cache, silu_cache, up_cache, product_cache, down_cache = cache
    dgated, ddown, _ = layers.linear_backward(dy, down_cache)
    dactive, db = feed_forward.gate_backward(dgated, product_cache)
    dx_up, dup, _ = layers.linear_backward(db, up_cache)
    dx_gate, dgate, _ = layers.linear_backward(feed_forward.silu_backward(dactive, silu_cache), gate_cache)
    return {"dx": dx_up + dx_gate, "dgate": dgate, "dup": dup, "ddown": ddown}


def grouped_queries_forward(query, key, value):
    """Causal attention in which a group of query heads shares one key and one value head.

    keys, values = each head of key and value, as often as there are query heads for it: 0 0 1 1, not 0 1 0 1
    y = softmax(query keysᵀ / √D + mask) values
    """
    T, D = query.shape[-2:]
    group = query.shape[1] // key.shape[1]
    keys, values = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = query @ keys.swapaxes(-1, -2) / np.sqrt(D)
    scores += np.triu(np.full((T, T), -np.inf), k=1)
    probabilities, softmax_cache = softmax_forward(scores)
    return probabilities @ values, (query, keys, values, probabilities, softmax_cache, group)


def _grouped_queries(query, key, value):
    scores, scores_cache = attend.scores_forward(query, key, query.shape[-1] ** -0.5)
    probabilities, softmax_cache = attend.masked_softmax_forward(scores)
    y, sum_cache = attend.weighted_sum_forward(probabilities, value)
    return y, (scores_cache, softmax_cache, sum_cache)


def _grouped_queries_backward(dy, cache):
    scores_cache, softmax_cache, sum_cache = cache
    dprobabilities, dvalue = attend.weighted_sum_backward(dy, sum_cache)
    dscores = attend.masked_softmax_backward(dprobabilities, softmax_cache)
    dquery, dkey = attend.scores_backward(dscores, scores_cache)
    return {"dquery": dquery, "dkey": dkey, "dvalue": dvalue}


def dropout_forward(x, kept, rate):
    """Zero what is not kept; scale up the others, so that the mean stays. kept: 1 or 0, drawn with `rate` of zeros.

    y = x · kept / (1 - rate)
    """
    return x * kept / (1 - rate), (kept, rate)


def _dropout_backward(dy, cache):
    kept, rate = cache
    return {"dx": layers.dropout_backward(dy, layers.DropoutCache(kept / (1 - rate)))}


def modern_block_forward(x, weights, n_head, n_kv_head, head_size):
    """A block as Qwen 3 has it: RMS norm, grouped queries that are normed and turned, and SwiGLU.

    middle = x + attention(norm_1(x))
    y = middle + (silu(n W_gateᵀ) · (n W_upᵀ)) W_downᵀ,   n = norm_2(middle)
    """
    _, T, C = x.shape
    config = ModelConfig(
        vocab_size=1, context_length=T, n_layer=1, n_head=n_head, n_kv_head=n_kv_head, head_size=head_size, d_model=C,
        d_ff=1, activation="silu", position="rotary", query_key_norm="head", norm="rms_norm", bias=False,
    )  # fmt: skip
    turned = Layer(rotary=Rotary())
    normed, norm_1_cache = rms_norm_forward(x, weights["norm_1.weight"], 1e-5)
    branch, attention_cache = attention.attention_forward(normed, weights, "attention", config, turned)
    middle = x + branch
    normed, norm_2_cache = rms_norm_forward(middle, weights["norm_2.weight"], 1e-5)
    gate, gate_cache = linear_forward(normed, weights["feed_forward.gate.weight"], None)
    active, silu_cache = silu_forward(gate)
    up, up_cache = linear_forward(normed, weights["feed_forward.up.weight"], None)
    branch, down_cache = linear_forward(active * up, weights["feed_forward.down.weight"], None)
    feed_forward_caches = (gate_cache, silu_cache, active, up, up_cache, down_cache)
    return middle + branch, (norm_1_cache, attention_cache, norm_2_cache, feed_forward_caches)


def _modern(x, n_head, n_kv_head, head_size):
    return modern_config(x.shape[1], x.shape[2], 1, n_head, n_kv_head, head_size)


# A mistake's name in course.toml -> the function that it is made in, and what it makes of it.
MISTAKES = {
    "up_path_lost": (
        layers.linear_backward,
        lambda dys, right: (right[0] * (len(dys) != 2), *right[1:]),
    ),
    "gate_path_lost": (
        layers.linear_backward,
        lambda dys, right: (right[0] * (len(dys) != 3), *right[1:]),
    ),
    "silu_skipped": (feed_forward.silu_backward, lambda dys, right: dys[-1]),
}

CODE = {
    "rotary": {"forward": _rotary, "backward": _rotary_backward, "given": rotary_forward},
    "qk-norm": {"forward": _qk_norm, "backward": _qk_norm_backward, "given": qk_norm_forward},
    "swiglu": {"forward": _swiglu, "backward": _swiglu_backward, "given": swiglu_forward},
    "grouped-queries": {
        "forward": _grouped_queries,
        "backward": _grouped_queries_backward,
        "given": grouped_queries_forward,
    },
    "dropout": {"forward": dropout_forward, "backward": _dropout_backward},
    "modern-block": layer_of(block, "block", "blocks.0", _modern, Layer(rotary=Rotary()))
    | {"given": modern_block_forward},
}
