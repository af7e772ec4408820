"""Mistakes of a backward pass. Each function is an operation of `parity/recompute.py` with one thing wrong."""

from math import erf

import numpy as np

from numpy_llm.layers import layer_norm_forward
from parity.explanations import mistake
from parity.recompute import (
    KINDS,
    cross_entropy_back,
    embedding_back,
    join,
    layer_norm_back,
    linear_weight_back,
    merge,
    split,
)

_LOSS, _NORM, _SOFTMAX = "cross-entropy backward", "layer norm backward", "softmax backward"
_TABLES = ("embedding backward", "tied embedding backward")


# Loss


@mistake("not divided by B·T: this is the gradient of the sum, the loss is the mean", _LOSS)
def dloss_of_sum(config, logits, targets):
    return cross_entropy_back(config, logits, targets) * targets.size


@mistake("divided by B or by T alone; divide by B·T", _LOSS)
def dloss_half_mean(config, logits, targets):
    return [cross_entropy_back(config, logits, targets) * size for size in targets.shape]


@mistake("the 1 of the target is not subtracted: these are the probabilities alone, or with it added", _LOSS)
def dloss_without_target(config, logits, targets):
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    target = np.eye(config.vocab_size)[targets]
    return [probabilities / targets.size, probabilities, (probabilities + target) / targets.size]


@mistake("the mean is taken before the 1 of the target is subtracted: divide both by B·T", _LOSS)
def dloss_target_undivided(config, logits, targets):
    onehot = np.eye(config.vocab_size)[targets]
    return cross_entropy_back(config, logits, targets) + onehot / targets.size - onehot


@mistake("the targets are shifted by one place", _LOSS)
def dloss_shifted(config, logits, targets):
    return [cross_entropy_back(config, logits, np.roll(targets, step, axis=1)) for step in (1, -1)]


# Linear


@mistake(
    "multiplied by the weight's transpose: dx = dy weight, with the weight as (out, in)", "linear backward"
)
def dlinear_transposed(config, dy, weight):
    return dy @ weight.reshape(-1, dy.shape[-1]).T


@mistake("multiplied by the weight's transpose: dheads = split_heads(dy weight)", "attention output backward")
def doutput_transposed(config, dy, weight):
    return split(dy @ weight.T, config)


@mistake("x and dy are swapped: dweight = dyᵀ x has shape (out, in)", "linear backward to weight")
def dweight_transposed(config, dy, x):
    other = linear_weight_back(config, x, dy)
    return [other, other.reshape(other.shape[::-1])]


@mistake(
    "only the last sequence's or the last token's part: add up over batch and time",
    "linear backward to weight",
)
def dweight_of_last(config, dy, x):
    return [linear_weight_back(config, dy[-1:], x[-1:]), linear_weight_back(config, dy[:, -1:], x[:, -1:])]


@mistake(
    "the bias's gradient is a mean over batch or time, or the last one's; wanted: the sum", "backward to bias"
)
def dbias_mean(config, dy):
    rows = dy.reshape(-1, dy.shape[-1])
    return [
        rows.mean(axis=0),
        dy.mean(axis=0).sum(axis=0),
        dy.mean(axis=1).sum(axis=0),
        rows[-1],
        dy[-1].sum(axis=0),
    ]


# Layer norm


def _norm_parts(config, x):
    return layer_norm_forward(x, np.ones(x.shape[-1]), None, config.norm_eps)[1][:2]


def _mean(x):
    return x.mean(axis=-1, keepdims=True)


@mistake("the path through the mean is missing: subtract mean(dn)", _NORM)
def dnorm_without_mean(config, dy, x, weight, skip=0, **_):
    n, inverse = _norm_parts(config, x)
    dn = dy * weight
    return (dn - n * _mean(dn * n)) * inverse + skip


@mistake("the path through the variance is missing: subtract n · mean(dn · n)", _NORM)
def dnorm_without_variance(config, dy, x, weight, skip=0, **_):
    _, inverse = _norm_parts(config, x)
    dn = dy * weight
    return (dn - _mean(dn)) * inverse + skip


@mistake("mean and variance are taken for constants: both paths through them are missing", _NORM)
def dnorm_without_both(config, dy, x, weight, skip=0, **_):
    return dy * weight * _norm_parts(config, x)[1] + skip


@mistake("the path through the variance has the wrong sign", _NORM)
def dnorm_variance_sign(config, dy, x, weight, skip=0, **_):
    n, inverse = _norm_parts(config, x)
    dn = dy * weight
    return (dn - _mean(dn) + n * _mean(dn * n)) * inverse + skip


@mistake("dy is not multiplied by the layer norm's weight: dn = dy · weight", _NORM)
def dnorm_without_weight(config, dy, x, weight, skip=0, **_):
    return layer_norm_back(config, dy, x, np.ones_like(weight), skip)


@mistake("not divided by the deviation √(variance + eps)", _NORM)
def dnorm_without_deviation(config, dy, x, weight, skip=0, **_):
    return layer_norm_back(config, dy, x, weight) / _norm_parts(config, x)[1] + skip


@mistake("the residual's gradient is lost: add that of the stream to that of the branch", _NORM)
def dresidual_missing(config, dy, x, weight, skip=None, **_):
    return None if skip is None else layer_norm_back(config, dy, x, weight)


@mistake("only the residual's gradient: that of the branch is not added", _NORM)
def dbranch_missing(config, dy, x, weight, skip=None, **_):
    return skip


@mistake("multiplied by the layer norm's weight last; dn = dy · weight comes before both means", _NORM)
def dnorm_weight_last(config, dy, x, weight, skip=0, **_):
    return layer_norm_back(config, dy, x, np.ones_like(weight)) * weight + skip


@mistake("the term n · mean(dn · n) is divided by C - 1; a mean over channels divides by C", _NORM)
def dnorm_unbiased(config, dy, x, weight, skip=0, **_):
    n, inverse = _norm_parts(config, x)
    dn, C = dy * weight, x.shape[-1]
    return (dn - _mean(dn) - n * _mean(dn * n) * C / max(C - 1, 1)) * inverse + skip


@mistake(
    "the residual's gradient is another stream's: add that of the sum that this norm's branch ends in", _NORM
)
def dresidual_other(config, dy, x, weight, skip=None, other=None):
    branch = None if skip is None else layer_norm_back(config, dy, x, weight)
    return None if branch is None else [branch + each for each in (dy, other) if each is not None]


@mistake("multiplied by x or by x - mean; wanted: by the normalised x", "layer norm backward to weight")
def dnorm_weight_unnormalised(config, dy, x):
    rows = (dy * x, dy * (x - _mean(x)))
    return [each.reshape(-1, x.shape[-1]).sum(axis=0) for each in rows]


# Activation


@mistake("the tanh's own slope is missing: this is dy · (1 + tanh u)/2 alone", "gelu_tanh backward")
def dgelu_without_slope(config, dy, x):
    return dy * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


@mistake(
    "the 3 of the derivative of x³ is missing: du/dx = √(2/π) (1 + 3 · 0.044715 x²)", "gelu_tanh backward"
)
def dgelu_without_three(config, dy, x):
    root = (2 / np.pi) ** 0.5
    tanh = np.tanh(root * (x + 0.044715 * x**3))
    return dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * root * (1 + 0.044715 * x**2))


@mistake(
    "this is the derivative of the exact GELU with erf; the forward pass has the tanh form",
    "gelu_tanh backward",
)
def dgelu_erf(config, dy, x):
    density = np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5
    return dy * (0.5 * (1 + np.vectorize(erf)(x / 2**0.5)) + x * density)


@mistake("the activation's derivative is missing or is another one's", "gelu_tanh backward", "relu backward")
def dactivation_other(config, dy, x):
    others = {"relu backward", "gelu_tanh backward"} - {f"{config.activation} backward"}
    return [dy, *(KINDS[name].compute(config, dy, x) for name in others), dy * np.maximum(x, 0), dy * x]


@mistake("the slope of tanh is 1 - tanh², squared", "gelu_tanh backward")
def dgelu_unsquared(config, dy, x):
    root = (2 / np.pi) ** 0.5
    tanh = np.tanh(root * (x + 0.044715 * x**3))
    return dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh) * root * (1 + 3 * 0.044715 * x**2))


# Attention


@mistake("the sum Σ dp · p is missing: softmax's Jacobian is more than its diagonal", _SOFTMAX)
def dsoftmax_diagonal(config, dy, probabilities):
    p = probabilities
    return [p * dy, p * (1 - p) * dy]


@mistake("the sum Σ dp · p runs over the wrong axis; wanted: over the keys", _SOFTMAX)
def dsoftmax_axis(config, dy, probabilities):
    p = probabilities
    return [p * (dy - (dy * p).sum(axis=axis, keepdims=True)) for axis in (-2, 1, 0)]


@mistake("the sum is Σ dp without p, or a mean", _SOFTMAX)
def dsoftmax_plain_sum(config, dy, probabilities):
    p = probabilities
    return [p * (dy - dy.sum(axis=-1, keepdims=True)), p * (dy - _mean(dy)), p * (dy - _mean(dy * p))]


@mistake("1/√D is already in it: the pack has the gradient of the scaled scores", _SOFTMAX)
def dsoftmax_scaled(config, dy, probabilities):
    return KINDS[_SOFTMAX].compute(config, dy, probabilities) * config.head_size**-0.5


@mistake("1/√D is missing", "scores backward to query", "scores backward to key")
def dscores_without_scale(config, dscores, key=None, query=None, **_):
    return dscores @ key if query is None else dscores.swapaxes(-1, -2) @ query


@mistake("dscores is transposed where it should not be, or not where it should", "scores backward to query",
         "scores backward to key")  # fmt: skip
def dscores_transposed(config, dscores, key=None, query=None, **_):
    result = dscores.swapaxes(-1, -2) @ key if query is None else dscores @ query
    return result * config.head_size**-0.5


@mistake("the probabilities are not transposed: dvalue = probabilitiesᵀ dheads", "heads backward to value")
def dvalue_transposed(config, dheads, probabilities):
    return probabilities @ dheads


@mistake("the gradients of query, key and value are joined in another order", "projection backward",
         "projection backward to weight", "projection backward to bias")  # fmt: skip
def djoin_order(config, dquery, dkey, dvalue, weight=None, x=None):
    orders = ((dkey, dquery, dvalue), (dvalue, dkey, dquery), (dquery, dvalue, dkey), (dkey, dvalue, dquery))
    return [_of_join(join(*order), weight, x) for order in orders]


@mistake("one of the three gradients is lost: query, key and value all flow into x", "projection backward",
         "projection backward to weight", "projection backward to bias")  # fmt: skip
def djoin_part(config, dquery, dkey, dvalue, weight=None, x=None):
    parts, none = (dquery, dkey, dvalue), np.zeros_like(dquery)
    left_out = [[none if at == out else part for at, part in enumerate(parts)] for out in range(3)]
    alone = [[part if at == only else none for at, part in enumerate(parts)] for only in range(3)]
    return [_of_join(join(*each), weight, x) for each in left_out + alone]


@mistake("the heads' gradients are merged without swapping time and heads first", "projection backward",
         "projection backward to weight", "projection backward to bias")  # fmt: skip
def djoin_without_swap(config, dquery, dkey, dvalue, weight=None, x=None):
    B, H, T, D = dquery.shape
    joined = np.concatenate([each.reshape(B, T, H * D) for each in (dquery, dkey, dvalue)], axis=-1)
    return _of_join(joined, weight, x)


def _of_join(joined, weight, x):
    if weight is not None:
        return joined @ weight
    return (
        joined.reshape(-1, joined.shape[-1]).sum(axis=0) if x is None else linear_weight_back(None, joined, x)
    )


@mistake("the heads are merged without swapping time and heads first", "attention output backward to weight")
def doutput_weight_merge(config, dy, heads):
    return linear_weight_back(config, dy, heads.reshape(dy.shape[0], dy.shape[1], -1))


@mistake("x and dy are swapped: dweight = dyᵀ x has shape (out, in)", "attention output backward to weight")
def doutput_weight_transposed(config, dy, heads):
    return linear_weight_back(config, merge(heads), dy)


@mistake("not multiplied by the probabilities: dscores = p · (dp - Σ dp · p)", _SOFTMAX)
def dsoftmax_without_p(config, dy, probabilities):
    return dy - (dy * probabilities).sum(axis=-1, keepdims=True)


@mistake("multiplied by the queries for the keys, or the keys for the queries", "scores backward to query",
         "scores backward to key")  # fmt: skip
def dscores_other_factor(config, dscores, key=None, query=None, other=None):
    back = dscores if query is None else dscores.swapaxes(-1, -2)
    return back @ other * config.head_size**-0.5


# Embedding


def _overwritten(config, dy, tokens, place):
    """The gradient of one place of each token alone: the last, or the first."""
    dweight = np.zeros((config.vocab_size, config.d_model))
    rows, places = dy.reshape(-1, dy.shape[-1]), tokens.reshape(-1)
    order = range(len(places)) if place == "last" else range(len(places) - 1, -1, -1)
    for each in order:
        dweight[places[each]] = rows[each]
    return dweight


@mistake("repeated tokens overwrite each other: add up the gradients of all places of a token", *_TABLES)
def dtable_overwritten(config, dy, tokens, dlogits=None, x=None):
    output = 0 if x is None else linear_weight_back(config, dlogits, x)
    return [_overwritten(config, dy, tokens, place) + output for place in ("last", "first")]


@mistake("the tied matrix's gradient is counted once: add that of the output and that of the embedding",
         "tied embedding backward")  # fmt: skip
def dtied_once(config, dy, tokens, dlogits, x):
    return [linear_weight_back(config, dlogits, x), embedding_back(config, dy, tokens)]


@mistake("the tied matrix's two gradients are averaged; wanted: their sum", "tied embedding backward")
def dtied_mean(config, dy, tokens, dlogits, x):
    return (linear_weight_back(config, dlogits, x) + embedding_back(config, dy, tokens)) / 2


@mistake("a token's gradient is the mean over its places; wanted: the sum", *_TABLES)
def dtable_mean(config, dy, tokens, dlogits=None, x=None):
    counts = np.maximum(np.bincount(tokens.reshape(-1), minlength=config.vocab_size), 1)[:, None]
    return embedding_back(config, dy, tokens) / counts + (
        0 if x is None else linear_weight_back(config, dlogits, x)
    )


@mistake("the position's gradient is the batch's mean; wanted: the sum", "position backward")
def dposition_mean(config, dy):
    return KINDS["position backward"].compute(config, dy) / len(dy)


@mistake("the position's gradient is the last sequence's alone; wanted: the batch's sum", "position backward")
def dposition_of_last(config, dy):
    return KINDS["position backward"].compute(config, dy[-1:])
