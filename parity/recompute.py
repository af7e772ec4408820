"""Every operation of a golden pack on its own: from the arrays of its inputs to its result.

A function takes the configuration and the inputs by role, as `parity/operations.py` names them. So an
operation can be repeated from anybody's inputs, and a mistake (`parity/mistakes_*.py`) is a function of the
same arguments with another result.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from contract.weights import Weights, weight_table
from numpy_llm.attention import causal_mask, softmax_backward, softmax_forward
from numpy_llm.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
    gelu_backward,
    gelu_forward,
    layer_norm_backward,
    layer_norm_forward,
    linear_backward,
    linear_forward,
    position_backward,
    position_forward,
    relu_forward,
    sinusoidal_positions,
)
from numpy_llm.model import GPT


class Kind(NamedTuple):
    """equation: what the operation computes, in a line; compute: config and inputs by role -> array"""

    equation: str
    compute: Callable | None


KINDS: dict[str, Kind] = {
    "logits of a continuation": Kind("the model on prompt and tokens so far, the last context_length", None),
    "greedy choice": Kind("the id of the largest logit, the lowest on a tie", None),
    "sampling": Kind(
        "divide by the temperature, keep the top k by falling logit, take the first token at which the running "
        "sum of the probabilities exceeds draw · total",
        None,
    ),
}


def _kind(name: str, equation: str):
    def register(compute):
        KINDS[name] = Kind(equation, compute)
        return compute

    return register


# Forward


@_kind("sinusoidal positions", "table[t, 2i] = sin(t / 10000^(2i/C)), table[t, 2i+1] = cos(the same)")
def positions(config):
    return sinusoidal_positions(config.context_length, config.d_model, "float64")


@_kind("embedding", "y[b, t] = weight[tokens[b, t]]")
def embedding(config, tokens, weight):
    return weight[tokens]


@_kind("position", "y[b, t] = x[b, t] + table[t]")
def position(config, x, table):
    return position_forward(x, table)[0]


@_kind("dropout", "a copy: packs are made without dropout")
def dropout(config, x):
    return x


@_kind("layer norm", "y = (x - mean) / √(variance + norm_eps) · weight + bias, variance divided by C")
def layer_norm(config, x, weight, bias=None):
    return layer_norm_forward(x, weight, bias, config.norm_eps)[0]


@_kind("projection", "split_heads of the query, key or value third of x weightᵀ + bias")
def projection(config, x, weight, part, bias=None):
    qkv = linear_forward(x, weight, bias)[0]
    return qkv.reshape(*x.shape[:2], 3, config.n_head, config.head_size).transpose(2, 0, 3, 1, 4)[part]


@_kind("scores", "query keyᵀ / √D, before the mask")
def scores(config, query, key):
    return query @ key.swapaxes(-1, -2) * config.head_size**-0.5


@_kind("masked softmax", "softmax over the keys; a query at t sees keys 0 to t")
def masked_softmax(config, scores):
    return softmax_forward(scores + causal_mask(scores.shape[-1], scores.shape[-1]))[0]


@_kind("heads", "probabilities value")
def heads(config, probabilities, value):
    return probabilities @ value


@_kind("attention output", "merge_heads(heads) weightᵀ + bias, head h in channels h·D to (h+1)·D")
def attention_output(config, heads, weight, bias=None):
    return linear_forward(merge(heads), weight, bias)[0]


def merge(heads):
    """(B, H, T, D) -> (B, T, C), head after head in the channels."""
    B, H, T, D = heads.shape
    return heads.swapaxes(1, 2).reshape(B, T, H * D)


def split(merged, config):
    """(B, T, C) -> (B, H, T, D), the inverse of `merge`."""
    return merged.reshape(*merged.shape[:2], config.n_head, config.head_size).swapaxes(1, 2)


@_kind("residual", "y = x + branch")
def residual(config, x, branch):
    return x + branch


@_kind("linear", "y = x weightᵀ + bias")
def linear(config, x, weight, bias=None):
    return linear_forward(x, weight, bias)[0]


@_kind("relu", "y = max(x, 0)")
def relu(config, x):
    return relu_forward(x)[0]


@_kind("gelu_tanh", "y = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))")
def gelu(config, x):
    return gelu_forward(x)[0]


@_kind("cross-entropy", "the mean over all B·T tokens of -log softmax(logits)[target], natural logarithm")
def cross_entropy(config, logits, targets):
    return cross_entropy_forward(logits, targets)[0]


# Backward


@_kind("start of the backward pass", "1")
def start(config):
    return np.ones(())


@_kind("cross-entropy backward", "(softmax(logits) - onehot(targets)) / (B·T)")
def cross_entropy_back(config, logits, targets):
    return cross_entropy_backward(1.0, cross_entropy_forward(logits, targets)[1])


@_kind("linear backward", "dx = dy weight")
def linear_back(config, dy, weight):
    return dy @ weight


@_kind("linear backward to weight", "dweight = dyᵀ x, summed over B and T")
def linear_weight_back(config, dy, x):
    rows = x.reshape(-1, x.shape[-1])
    return linear_backward(dy, (rows, np.zeros((dy.shape[-1], rows.shape[1])), False))[1]


@_kind("backward to bias", "dbias = Σ dy over B and T")
def bias_back(config, dy):
    return dy.reshape(-1, dy.shape[-1]).sum(axis=0)


@_kind(
    "layer norm backward",
    "dx = (dn - mean(dn) - n · mean(dn · n)) / √(variance + norm_eps) [+ skip], n = normalised x, dn = dy · weight",
)
def layer_norm_back(config, dy, x, weight, skip=0):
    return layer_norm_backward(dy, layer_norm_forward(x, weight, None, config.norm_eps)[1])[0] + skip


@_kind("layer norm backward to weight", "dweight = Σ dy · n over B and T, n = normalised x")
def layer_norm_weight_back(config, dy, x):
    cache = layer_norm_forward(x, np.ones(x.shape[-1]), None, config.norm_eps)[1]
    return layer_norm_backward(dy, cache)[1]


@_kind("relu backward", "dx = dy where x > 0, else 0")
def relu_back(config, dy, x):
    return dy * (x > 0)


@_kind(
    "gelu_tanh backward", "dx = dy · ((1 + tanh u) / 2 + x/2 · (1 - tanh² u) · √(2/π) (1 + 3 · 0.044715 x²))"
)
def gelu_back(config, dy, x):
    return gelu_backward(dy, gelu_forward(x)[1])


@_kind("attention output backward", "dheads = split_heads(dy weight)")
def attention_output_back(config, dy, weight):
    return split(dy @ weight, config)


@_kind("attention output backward to weight", "dweight = dyᵀ merge_heads(heads), summed over B and T")
def attention_output_weight_back(config, dy, heads):
    return linear_weight_back(config, dy, merge(heads))


@_kind("heads backward to probabilities", "dprobabilities = dheads valueᵀ")
def probabilities_back(config, dheads, value):
    return dheads @ value.swapaxes(-1, -2)


@_kind("heads backward to value", "dvalue = probabilitiesᵀ dheads")
def value_back(config, dheads, probabilities):
    return probabilities.swapaxes(-1, -2) @ dheads


@_kind("softmax backward", "dscores = p · (dp - Σ dp · p over the keys), p = probabilities; 0 where masked")
def softmax_back(config, dy, probabilities):
    return softmax_backward(dy, probabilities)


@_kind("scores backward to key", "dkey = dscoresᵀ query / √D")
def key_back(config, dscores, query):
    return dscores.swapaxes(-1, -2) @ query * config.head_size**-0.5


@_kind("scores backward to query", "dquery = dscores key / √D")
def query_back(config, dscores, key):
    return dscores @ key * config.head_size**-0.5


def join(dquery, dkey, dvalue):
    """Three times (B, H, T, D) -> (B, T, 3·C), as the weight's rows stand."""
    return np.concatenate([merge(each) for each in (dquery, dkey, dvalue)], axis=-1)


@_kind("projection backward", "dx = join(dquery, dkey, dvalue) weight")
def projection_back(config, dquery, dkey, dvalue, weight):
    return join(dquery, dkey, dvalue) @ weight


@_kind("projection backward to weight", "dweight = join(dquery, dkey, dvalue)ᵀ x, summed over B and T")
def projection_weight_back(config, dquery, dkey, dvalue, x):
    return linear_weight_back(config, join(dquery, dkey, dvalue), x)


@_kind("projection backward to bias", "dbias = Σ join(dquery, dkey, dvalue) over B and T")
def projection_bias_back(config, dquery, dkey, dvalue):
    return bias_back(config, join(dquery, dkey, dvalue))


@_kind("position backward", "dtable[t] = Σ dy[b, t] over B, 0 beyond T")
def position_back(config, dy):
    return position_backward(dy, (dy.shape[1], 0, (config.context_length, config.d_model)))[1]


@_kind("embedding backward", "dweight[v] = Σ dy[b, t] over all places whose token is v")
def embedding_back(config, dy, tokens):
    return embedding_backward(dy, (tokens, (config.vocab_size, config.d_model)))


@_kind("tied embedding backward", "dweight = dlogitsᵀ x  +  Σ dy over the places of each token")
def tied_embedding_back(config, dy, tokens, dlogits, x):
    return embedding_back(config, dy, tokens) + linear_weight_back(config, dlogits, x)


# The whole model


def _model(config, weights):
    """A model with a copy of `weights`, which are given by name."""
    model = GPT(config, Weights.zeros(config, "float64"))
    for name in weight_table(config):
        model.weights[name][...] = weights[name]
    return model


@_kind("logits of a new token", KINDS["logits of a continuation"].equation)
def next_logits(config, prompt, **inputs):
    """inputs: the weights by name and, in their order, the new tokens so far"""
    weights = {name: inputs.pop(name) for name in weight_table(config)}
    window = np.array([*prompt, *inputs.values()])[-config.context_length :]
    return _model(config, weights).forward(window[None])[0][0, -1]


@_kind("greedy token", KINDS["greedy choice"].equation)
def greedy_token(config, logits):
    return logits.argmax()


@_kind("sampled token", KINDS["sampling"].equation)
def sampled_token(config, logits, draw, temperature, top_k):
    order = np.argsort(-logits, kind="stable")[:top_k]
    sums = np.cumsum(np.exp((logits[order] - logits[order[0]]) / temperature))
    return order[np.searchsorted(sums[:-1], draw * sums[-1], side="right")]


# AdamW


def pass_of_step(config, tokens, targets, weights):
    """returns: loss, and the gradients of `weights`, which are given by name"""
    model = _model(config, weights)
    _, loss, cache = model.forward(tokens, targets)
    return loss, model.backward(cache)


@_kind("loss of a step", "the loss with the weights before the step")
def step_loss(config, tokens, targets, **weights):
    return np.asarray(pass_of_step(config, tokens, targets, weights)[0])


@_kind("gradient norm of a step", "√(Σ gradient²) over all weights together, before clipping")
def step_norm(config, tokens, targets, max_norm, **weights):
    return np.sqrt(np.sum(pass_of_step(config, tokens, targets, weights)[1].flat ** 2))


def clipped(gradient, norm, adamw):
    """The gradient scaled by max_norm / norm where the norm exceeds max_norm."""
    return gradient * (adamw["max_norm"] / float(norm)) if norm > adamw["max_norm"] else gradient


@_kind("AdamW mean", "m = beta1 · m + (1 - beta1) · g, g = gradient clipped by the joint norm")
def adamw_mean(config, gradient, norm, adamw, step, decays, m=0.0):
    return adamw["beta1"] * m + (1 - adamw["beta1"]) * clipped(gradient, norm, adamw)


@_kind("AdamW mean square", "v = beta2 · v + (1 - beta2) · g², g = gradient clipped by the joint norm")
def adamw_square(config, gradient, norm, adamw, step, decays, v=0.0):
    return adamw["beta2"] * v + (1 - adamw["beta2"]) * clipped(gradient, norm, adamw) ** 2


@_kind(
    "AdamW weight",
    "weight -= rate · weight_decay · weight (matrices only), "
    "then weight -= rate · (m / (1 - beta1^t)) / (√(v / (1 - beta2^t)) + eps), t counted from 1",
)
def adamw_weight(config, weight, m, v, rate, adamw, step, decays):
    kept = weight * (1 - rate * adamw["weight_decay"] * decays)
    return kept - rate * adam_direction(m, v, step, adamw)


def adam_direction(m, v, step, adamw):
    """The direction of a step: the corrected mean over the root of the corrected mean square."""
    m, v = m / (1 - adamw["beta1"] ** step), v / (1 - adamw["beta2"] ** step)
    return m / (np.sqrt(v) + adamw["eps"])
