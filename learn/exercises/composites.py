"""The functions of the exercises that are more than one pair of the model, or show another forward pass than its own.

A forward pass here stands in a student's file as it is. The backward passes call the model's own functions through
their modules, where a mistake may stand in their place.
"""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from contract.config import ModelConfig
from learn.exercises.exercise import Trial
from learn.exercises.inputs import config_of
from numpy_llm import adam as optimizers
from numpy_llm import attend, attend_in_blocks, attention, block, layers
from numpy_llm.attend import softmax_forward
from numpy_llm.feed_forward import gelu_tanh_backward, gelu_tanh_forward
from numpy_llm.layers import embedding_forward, linear_forward
from numpy_llm.norms import layer_norm_forward
from operations.adamw import MISTAKES as STEP_MISTAKES


def gelu_forward(x):
    """A smooth ReLU, in the tanh form that GPT-2 was trained with.

    y = x/2 · (1 + tanh(u)),   u = √(2/π) (x + 0.044715 x³)
    """
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    tanh = np.tanh(u)
    y = x / 2 * (1 + tanh)
    return y, (x, tanh)


def cross_entropy_forward(logits, targets):
    """How surprised the model is, in nats per token.

    loss = mean over all tokens of (log Σ_v exp(logits[v]) - logits[target])
    """
    rows, columns = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    shifted = rows - rows.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    picked = shifted[np.arange(len(rows)), columns]
    loss = np.mean(np.log(totals[:, 0]) - picked)
    probabilities = (exponentials / totals).reshape(logits.shape)
    return loss, (probabilities, targets)


def residual_forward(x, weight, bias):
    """A linear branch beside a stream that goes straight on: y = x + (x weightᵀ + bias)."""
    branch, branch_cache = linear_forward(x, weight, bias)
    return x + branch, branch_cache


def _residual_backward(dy, cache):
    dx, dweight, dbias = layers.linear_backward(dy, cache)
    return {"dx": dx + dy, "dweight": dweight, "dbias": dbias}


def _softmax_backward(dy, cache):
    return {"dx": attend.masked_softmax_backward(dy, cache)}


def split_heads_forward(qkv, n_head):
    """The columns of a token become query, key and value, each with H heads of D channels.

    y[i, b, h, t, d] = qkv[b, t, (i H + h) D + d]   with i = 0 for query, 1 for key, 2 for value
    """
    B, T, columns = qkv.shape
    D = columns // (3 * n_head)
    y = qkv.reshape(B, T, 3, n_head, D).transpose(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> (3, B, H, T, D)
    return y, (B, T, n_head, D)


def _split_heads_backward(dy, cache):
    B, T, n_head, D = cache
    split_cache = attention.SplitHeadsCache((B, T, 3 * n_head * D), n_head, n_head)
    return {"dqkv": attention.split_heads_backward(*dy, split_cache)}


def scores_forward(query, key):
    """How much each token attends to each token before it.

    y = softmax(query keyᵀ / √D + mask),   mask[t, s] = -inf where s > t, else 0
    """
    T, D = query.shape[-2:]
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(D)  # (B, H, T, D) @ (B, H, D, T) -> (B, H, T, T)
    scores += np.triu(np.full((T, T), -np.inf), k=1)
    y, softmax_cache = softmax_forward(scores)
    return y, (query, key, softmax_cache)


def _scores_backward(dy, cache):
    query, key, softmax_cache = cache
    dscores = attend.masked_softmax_backward(dy, softmax_cache)
    scores_cache = attend.ScoresCache(query, key, query.shape[-1] ** -0.5)
    dquery, dkey = attend.scores_backward(dscores, scores_cache)
    return {"dquery": dquery, "dkey": dkey}


# Tied output


def tied_output_forward(tokens, weight, mix):
    """One matrix reads the tokens and writes the logits, with a linear map between.

    x = weight[tokens],   hidden = x mixᵀ,   y = hidden weightᵀ
    """
    x, lookup_cache = embedding_forward(tokens, weight)
    hidden, mix_cache = linear_forward(x, mix, None)
    y, output_cache = linear_forward(hidden, weight, None)
    return y, (lookup_cache, mix_cache, output_cache)


def _tied_output_backward(dy, cache):
    lookup_cache, mix_cache, output_cache = cache
    dhidden, doutput, _ = layers.linear_backward(dy, output_cache)
    dx, dmix, _ = layers.linear_backward(dhidden, mix_cache)
    return {"dweight": layers.embedding_backward(dx, lookup_cache) + doutput, "dmix": dmix}


# Adam


def adam(weight, gradient, m, v, step, learning_rate, beta1, beta2, eps, weight_decay):
    """One step along the running mean of the gradients, with decoupled weight decay (AdamW).

        m = beta1 · m + (1 - beta1) · gradient
        v = beta2 · v + (1 - beta2) · gradient²
        weight = weight - learning_rate · weight_decay · weight
                        - learning_rate · (m / (1 - beta1^step)) / (√(v / (1 - beta2^step)) + eps)

    The decay takes the old weight. step counts this update: the first is 1.

    Return new arrays; leave the arguments as they are.
    """
    settings = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "decoupled": True}
    new = {"weight": weight.copy(), "m": m.copy(), "v": v.copy()}
    optimizer = SimpleNamespace(step=step, **settings)
    optimizers.update_piece(optimizer, *new.values(), gradient, learning_rate, decays=True)
    return new


def _adam_terms(trial: Trial, right):
    i = SimpleNamespace(**trial.inputs)
    decayed = i.weight * (1 - i.learning_rate * i.weight_decay)
    gradient_part = "(1 - beta) · gradient"
    # Weight and decay are multiples of one another, so they stand as one term.
    return {
        "weight": {"the decayed weight": decayed, "Adam's step": right["weight"] - decayed},
        "m": {"the old m": i.beta1 * i.m, gradient_part: (1 - i.beta1) * i.gradient},
        "v": {"the old v": i.beta2 * i.v, f"{gradient_part}²": (1 - i.beta2) * i.gradient**2},
    }


# Attention and a block, as the model has them


def layer_of(
    module, stem: str, part: str, config=lambda x, n_head: config_of(*x.shape[1:], n_head, 1), *layer
):
    """The forward and the backward pass of a part of the model, whose weights have their names in it.

    config: from x and the other arguments of the exercise; layer: what the forward pass takes behind it
    """

    def forward(x, weights, **sizes):
        weights = {f"{part}.{name}": value for name, value in weights.items()}
        return getattr(module, f"{stem}_forward")(x, weights, part, config(x, **sizes), *layer)

    def backward(dy, cache):
        dx, gradients = getattr(module, f"{stem}_backward")(dy, cache)
        return {"dx": dx} | {
            f"d{name.removeprefix(f'{part}.')}": each for name, each in gradients.items() if each is not None
        }

    return {"forward": forward, "backward": backward}


def attention_forward(x, weights, n_head):
    """Each token gathers the values of the tokens up to itself.

    query, key, value = split_heads(x W_qkvᵀ + b_qkv)
    y = merge_heads(softmax(query keyᵀ / √D + mask) value) W_outputᵀ + b_output
    """
    B, T, C = x.shape
    D = C // n_head
    qkv, qkv_cache = linear_forward(x, weights["query_key_value.weight"], weights["query_key_value.bias"])
    query, key, value = qkv.reshape(B, T, 3, n_head, D).transpose(2, 0, 3, 1, 4)  # each (B, H, T, D)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(D)
    scores += np.triu(np.full((T, T), -np.inf), k=1)
    probabilities, softmax_cache = softmax_forward(scores)
    heads = probabilities @ value
    merged = heads.swapaxes(1, 2).reshape(B, T, C)
    y, output_cache = linear_forward(merged, weights["output.weight"], weights["output.bias"])
    return y, (qkv_cache, query, key, value, probabilities, softmax_cache, output_cache)


def attention_in_blocks_forward(query, key, value, rows, columns):
    """Causal attention of one head, `rows` queries at a time, against `columns` keys at a time.

    y[t] = Σ exp(scores[t, s]) value[s] / Σ exp(scores[t, s])  over s <= t,   scores = query keyᵀ / √D

    No number is stored for each pair of query and key. While the blocks of keys come, each query keeps the largest
    score so far, m, and with it

        total = Σ exp(scores - m),   gathered = Σ exp(scores - m) value  over the keys so far

    and at the end log_totals[t] = log Σ exp(scores[t, s]), all of this that the backward pass needs.

    returns: y, (query, key, value, y, log_totals, rows, columns)
    """
    heads = (each[None, None] for each in (query, key, value))
    y, kept = attend_in_blocks.attend_in_blocks_forward(*heads, query.shape[-1] ** -0.5)
    y, log_totals = y[0, 0], kept.log_totals[0, 0]
    return y, (query, key, value, y, log_totals, rows, columns)


def _attention_in_blocks_backward(dy, cache):
    *tensors, _, _ = cache
    heads = (each[None, None] for each in tensors)
    kept = attend_in_blocks.AttendInBlocksCache(*heads, dy.shape[-1] ** -0.5, None, None)
    gradients = attend_in_blocks.attend_in_blocks_backward(dy[None, None], kept)
    return {f"d{name}": each[0, 0] for name, each in zip(("query", "key", "value"), gradients, strict=True)}


def block_forward(x, weights, n_head):
    """Attention and a feed-forward layer, each on a normed copy of the stream, each added to it.

    middle = x + attention(norm_1(x))
    y = middle + feed_forward(norm_2(middle)),   feed_forward(x) = gelu(x W_upᵀ + b_up) W_downᵀ + b_down
    """
    sizes = {"n_head": n_head, "d_model": x.shape[2], "context_length": x.shape[1]}
    others = {"vocab_size": 1, "n_layer": 1, "d_ff": 1, "activation": "gelu_tanh", "position": "learned"}
    config = ModelConfig(**sizes, **others)
    normed, norm_1_cache = layer_norm_forward(x, weights["norm_1.weight"], weights["norm_1.bias"], 1e-5)
    branch, attention_cache = attention.attention_forward(normed, weights, "attention", config)
    middle = x + branch
    normed, norm_2_cache = layer_norm_forward(middle, weights["norm_2.weight"], weights["norm_2.bias"], 1e-5)
    up, down = "feed_forward.up", "feed_forward.down"
    hidden, up_cache = linear_forward(normed, weights[f"{up}.weight"], weights[f"{up}.bias"])
    active, gelu_cache = gelu_tanh_forward(hidden)
    branch, down_cache = linear_forward(active, weights[f"{down}.weight"], weights[f"{down}.bias"])
    return middle + branch, (norm_1_cache, attention_cache, norm_2_cache, up_cache, gelu_cache, down_cache)


def _forked(wrong: Callable) -> tuple[Callable, Callable]:
    """A mistake where the block forks. wrong: dy of its forks so far, its last one first -> dshortcut, dbranch"""
    return layers.residual_backward, lambda dys, right: wrong(dys)


# A mistake's name in course.toml -> the function that it is made in, and what it makes of it.
MISTAKES = {
    "branch_lost": (layers.linear_backward, lambda dys, right: (0 * right[0], *right[1:])),
    # dy is taken for what comes back through a weight that keeps the width: the exercise's own, or its last
    "projection_skipped": (
        layers.linear_backward,
        lambda dys, right: (
            dys[0] if len(dys) == 1 and right[0].shape == dys[0].shape else right[0],
            *right[1:],
        ),
    ),
    "lookup_lost": (layers.embedding_backward, lambda dys, right: 0 * right),
    "mix_skipped": (
        layers.linear_backward,
        lambda dys, right: (dys[-1] if len(dys) > 1 else right[0], *right[1:]),
    ),
    "second_shortcut_missing": _forked(lambda dys: (dys[-1] * (len(dys) > 1), dys[-1])),
    "first_shortcut_missing": _forked(lambda dys: (dys[-1] * (len(dys) == 1), dys[-1])),
    "attention_gets_dy": _forked(lambda dys: (dys[-1], dys[0])),
    "first_shortcut_carries_dy": _forked(lambda dys: (dys[0], dys[-1])),
    "both_shortcuts_missing": _forked(lambda dys: (0 * dys[-1], dys[-1])),
    "gelu_skipped": (gelu_tanh_backward, lambda dys, right: dys[-1]),
}


# An exercise's own functions. Where there is a reference for the forward pass but none given, it is given itself.
CODE = {
    "cross-entropy": {"given": cross_entropy_forward},  # without the model's blocks, which are for speed
    "gelu": {"given": gelu_forward},  # the model's keeps the answer in its cache
    "residual": {"forward": residual_forward, "backward": _residual_backward},
    "softmax": {"forward": softmax_forward, "backward": _softmax_backward},
    "split-heads": {"forward": split_heads_forward, "backward": _split_heads_backward},
    "scores": {"forward": scores_forward, "backward": _scores_backward},
    "tied-output": {"forward": tied_output_forward, "backward": _tied_output_backward},
    "adam": {"forward": adam, "backward": None, "decompose": _adam_terms, "step_mistakes": STEP_MISTAKES},
    "attention": layer_of(attention, "attention", "blocks.0.attention") | {"given": attention_forward},
    "attention-in-blocks": {
        "forward": attention_in_blocks_forward,
        "backward": _attention_in_blocks_backward,
    },
    "block": layer_of(block, "block", "blocks.0") | {"given": block_forward},
}
