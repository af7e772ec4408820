"""Mistakes of a forward pass. Each function is an operation of `parity/recompute.py` with one thing wrong."""

from math import erf

import numpy as np

from numpy_llm.attention import causal_mask, softmax_forward
from numpy_llm.layers import linear_forward
from parity.explanations import mistake
from parity.recompute import KINDS, cross_entropy, layer_norm, masked_softmax, merge, projection, scores

_QKV, _LINEAR = "projection", ("linear", "attention output")


# Embedding and positions


@mistake("the embedding is multiplied by √C, as in the first transformer; GPT-2 does not", "embedding")
def embedding_scaled(config, tokens, weight):
    return weight[tokens] * config.d_model**0.5


@mistake("token ids are counted from 1: the row before or after is taken", "embedding")
def embedding_from_one(config, tokens, weight):
    return [weight[(tokens + step) % config.vocab_size] for step in (1, -1)]


@mistake("all sines stand before all cosines; wanted: sine and cosine in turn", "sinusoidal positions")
def sinusoids_in_halves(config):
    table = KINDS["sinusoidal positions"].compute(config)
    return np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1)


@mistake("sine and cosine are swapped", "sinusoidal positions")
def sinusoids_swapped(config):
    table = KINDS["sinusoidal positions"].compute(config)
    return table.reshape(len(table), -1, 2)[..., ::-1].reshape(table.shape)


@mistake("the wavelengths are wrong: 10000^(2i/C) for the i-th pair", "sinusoidal positions")
def sinusoids_wavelengths(config):
    t, pair, C = np.arange(config.context_length)[:, None], np.arange(config.d_model // 2), config.d_model
    exponents = (2 * pair / C, pair / C, 4 * pair / C, 2 * pair / max(C - 2, 1))
    angles = [t / 1000 ** exponents[0], *(t / 10000**each for each in exponents[1:])]
    return [np.stack([np.sin(each), np.cos(each)], axis=-1).reshape(len(t), C) for each in angles]


@mistake("positions are counted from 1, not from 0", "position")
def position_from_one(config, x, table):
    return x + np.concatenate([table, table[:1]])[1 : 1 + x.shape[1]]


@mistake("the position is not added", "position")
def position_missing(config, x, table):
    return x


@mistake("positions are counted backwards: from the last place, or from the end of the table", "position")
def position_reversed(config, x, table):
    T = x.shape[1]
    return [x + table[:T][::-1], x + table[::-1][:T]]


@mistake("the position is the sequence's number in the batch; wanted: the token's place in time", "position")
def position_by_batch(config, x, table):
    return x + table[: len(x), None] if len(x) <= len(table) else None


# Layer norm


def _norm(config, x, weight, bias, *, mean=True, variance=None, axis=-1, eps=None, outside=False):
    """A layer norm with its parts exchanged; variance: (squares' mean, C) -> what is taken for it"""
    centred = x - x.mean(axis=axis, keepdims=True)
    spread = (centred**2).mean(axis=axis, keepdims=True)
    spread = variance(spread, x.shape[axis]) if variance else spread
    eps = config.norm_eps if eps is None else eps
    deviation = np.sqrt(spread) + eps if outside else np.sqrt(spread + eps)
    return (centred if mean else x) / deviation * weight + (0 if bias is None else bias)


@mistake("norm_eps stands outside the root: √variance + eps; wanted √(variance + eps)", "layer norm")
def norm_eps_outside(config, x, weight, bias=None):
    return _norm(config, x, weight, bias, outside=True)


@mistake("norm_eps is missing, or another value than the configuration's", "layer norm")
def norm_eps_other(config, x, weight, bias=None):
    values = (0, 1e-5, 1e-6, 1e-12, 1e-8, 1e-3)
    return [_norm(config, x, weight, bias, eps=eps) for eps in values if eps != config.norm_eps]


@mistake("the variance is divided by C - 1 (unbiased); layer norm divides by C", "layer norm")
def norm_unbiased(config, x, weight, bias=None):
    return _norm(config, x, weight, bias, variance=lambda spread, C: spread * C / max(C - 1, 1))


@mistake("the variance is used without its root", "layer norm")
def norm_without_root(config, x, weight, bias=None):
    return _norm(config, x, weight, bias, variance=lambda spread, C: (spread + config.norm_eps) ** 2, eps=0.0)


@mistake("the mean is not subtracted: this is RMS norm or half of it", "layer norm")
def norm_without_mean(config, x, weight, bias=None):
    rms = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_eps)
    rms = rms * weight + (0 if bias is None else bias)
    return [rms, _norm(config, x, weight, bias, mean=False)]


@mistake("mean and variance run over time; wanted: over the channels of each token", "layer norm")
def norm_over_time(config, x, weight, bias=None):
    return _norm(config, x, weight, bias, axis=1)


@mistake("the layer norm's weight is not applied", "layer norm")
def norm_without_weight(config, x, weight, bias=None):
    return layer_norm(config, x, np.ones_like(weight), bias)


@mistake("the bias is not added", "layer norm", "projection", *_LINEAR)
def bias_missing(config, weight, x=None, heads=None, bias=None, part=None):
    if bias is None:
        return None
    if part is not None:
        return projection(config, x, weight, part)
    if weight.ndim == 1:
        return layer_norm(config, x, weight)
    return linear_forward(x if heads is None else merge(heads), weight, None)[0]


@mistake("the layer norm's weight is used as 1 + weight; the pack's weight is the whole factor", "layer norm")
def norm_weight_plus_one(config, x, weight, bias=None):
    return layer_norm(config, x, 1 + weight, bias)


# Linear layers and attention


@mistake("the weight is used as (in, out): transpose it, it is stored as (out, in)", *_LINEAR)
def weight_transposed(config, weight, x=None, heads=None, bias=None):
    x = merge(heads) if x is None else x
    return x @ weight.reshape(x.shape[-1], -1) + (0 if bias is None else bias)


@mistake("the query-key-value weight is used as (in, out): transpose it, it is stored as (out, in)", _QKV)
def qkv_transposed(config, x, weight, part, bias=None):
    return projection(config, x, weight.reshape(weight.shape[::-1]).T, part, bias)


@mistake(
    "query, key and value are taken in another order; the rows of the weight are query, key, value", _QKV
)
def qkv_order(config, x, weight, part, bias=None):
    return [projection(config, x, weight, other, bias) for other in range(3) if other != part]


@mistake("query, key and value are interleaved head by head; all queries come first, then all keys", _QKV)
def qkv_interleaved(config, x, weight, part, bias=None):
    qkv = linear_forward(x, weight, bias)[0]
    by_head = qkv.reshape(*x.shape[:2], config.n_head, 3, config.head_size)[:, :, :, part].swapaxes(1, 2)
    by_channel = qkv.reshape(*x.shape[:2], config.n_head, config.head_size, 3)[..., part].swapaxes(1, 2)
    outer = qkv.reshape(*x.shape[:2], config.head_size, 3, config.n_head)[:, :, :, part].transpose(0, 3, 1, 2)
    return [by_head, by_channel, outer]


@mistake("the heads are in another order: reversed, or moved by one", _QKV)
def heads_order(config, x, weight, part, bias=None):
    right = projection(config, x, weight, part, bias)
    return [right[:, ::-1], np.roll(right, 1, axis=1), np.roll(right, -1, axis=1)]


@mistake("heads are interleaved: head h has channels h·D to (h+1)·D, not every H-th", _QKV)
def heads_interleaved(config, x, weight, part, bias=None):
    third = np.split(linear_forward(x, weight, bias)[0], 3, axis=-1)[part]
    return third.reshape(*x.shape[:2], config.head_size, config.n_head).transpose(0, 3, 1, 2)


@mistake(
    "heads are split by a reshape to (B, H, T, D) alone; reshape to (B, T, H, D), then swap T and H", _QKV
)
def heads_split_without_swap(config, x, weight, part, bias=None):
    third = np.split(linear_forward(x, weight, bias)[0], 3, axis=-1)[part]
    return third.reshape(x.shape[0], config.n_head, x.shape[1], config.head_size)


@mistake("the scores are not divided by √D", "scores")
def scale_missing(config, query, key):
    return query @ key.swapaxes(-1, -2)


@mistake("the scores are scaled by something other than 1/√D: by 1/√C, 1/D, or 1/√D twice", "scores")
def scale_other(config, query, key):
    raw, D = query @ key.swapaxes(-1, -2), config.head_size
    return [raw / config.d_model**0.5, raw / D, raw * D**0.5, raw / config.n_head**0.5]


@mistake("queries and keys are swapped: scores[query, key], not scores[key, query]", "scores")
def scores_swapped(config, query, key):
    return scores(config, key, query)


@mistake("the mask is added before the scores are dumped; the pack has them before the mask", "scores")
def scores_masked(config, query, key):
    right, T = scores(config, query, key), query.shape[2]
    hidden = np.triu(np.ones((T, T), bool), k=1)
    return [np.where(hidden, value, right) for value in (-1e4, -1e9, -1e10, 0.0)]


def _softmax(x, visible, axis=-1):
    """Softmax over what is visible; a row that sees nothing is even, as a mask of -1e10 leaves it."""
    masked = np.where(visible, x, -1e10)
    masked = np.exp(masked - masked.max(axis=axis, keepdims=True))
    return masked / masked.sum(axis=axis, keepdims=True)


def _band(x, offset):
    return np.tril(np.ones(x.shape[-2:], bool), k=offset)


@mistake("the causal mask is missing: every token sees the future", "masked softmax")
def mask_missing(config, scores):
    return _softmax(scores, True)


@mistake("the mask is off by one: a token sees the one after it, or does not see itself", "masked softmax")
def mask_off_by_one(config, scores):
    strict = _softmax(scores, _band(scores, -1))
    blank = strict.copy()
    blank[..., 0, :] = 0.0
    return [_softmax(scores, _band(scores, 1)), strict, blank]


@mistake("the mask hides the past instead of the future", "masked softmax")
def mask_reversed(config, scores):
    return _softmax(scores, _band(scores, 0).T)


@mistake(
    "the mask writes 0 instead of -inf into the scores, which softmax turns into exp(0)", "masked softmax"
)
def mask_of_zero(config, scores):
    return softmax_forward(np.where(_band(scores, 0), scores, 0.0))[0]


@mistake("the mask is applied after the softmax, so that the rows no longer sum to 1", "masked softmax")
def mask_after_softmax(config, scores):
    return softmax_forward(scores)[0] * _band(scores, 0)


@mistake("softmax runs over the wrong axis; wanted: over the keys, the last one", "masked softmax")
def softmax_wrong_axis(config, scores):
    visible = _band(scores, 0)
    exponentials = np.where(visible, np.exp(scores - masked_maximum(scores)), 0.0)
    over_queries = exponentials / exponentials.sum(axis=-2, keepdims=True)
    return [over_queries, *(_softmax(scores, visible, axis=axis) for axis in (-2, 1))]


@mistake("softmax without the sum: the exponentials are not divided by their total", "masked softmax")
def softmax_without_sum(config, scores):
    exponentials = np.exp(scores) * _band(scores, 0)
    shifted = np.exp(scores + causal_mask(*scores.shape[-2:]) - masked_maximum(scores))
    return [exponentials, shifted]


def masked_maximum(scores):
    """The largest visible score of each query."""
    return (scores + causal_mask(*scores.shape[-2:])).max(axis=-1, keepdims=True)


@mistake("the scores are scaled by 1/√D a second time before the softmax", "masked softmax")
def softmax_scaled_again(config, scores):
    return masked_softmax(config, scores * config.head_size**-0.5)


@mistake("the probabilities are transposed before they weigh the values", "heads")
def heads_transposed(config, probabilities, value):
    return probabilities.swapaxes(-1, -2) @ value


@mistake("the values of another head are weighed: their heads are reversed or moved by one", "heads")
def values_order(config, probabilities, value):
    return [
        probabilities @ each for each in (value[:, ::-1], *(np.roll(value, by, axis=1) for by in (1, -1)))
    ]


@mistake(
    "heads are merged by a reshape alone; swap T and H first, then reshape to (B, T, C)", "attention output"
)
def merge_without_swap(config, heads, weight, bias=None):
    B, H, T, D = heads.shape
    return linear_forward(heads.reshape(B, T, H * D), weight, bias)[0]


@mistake("heads are merged interleaved: head h belongs in channels h·D to (h+1)·D", "attention output")
def merge_interleaved(config, heads, weight, bias=None):
    B, H, T, D = heads.shape
    return linear_forward(heads.transpose(0, 2, 3, 1).reshape(B, T, H * D), weight, bias)[0]


# Stream, activation, loss


@mistake("the residual connection is missing: only the branch is passed on", "residual")
def residual_missing(config, x, branch, normed):
    return branch


@mistake("the branch is added to the normed copy; add it to the stream that the norm read", "residual")
def residual_of_norm(config, x, branch, normed):
    return normed + branch


@mistake("this is the exact GELU with erf; the configuration asks for the tanh form", "gelu_tanh")
def gelu_erf(config, x):
    slope = np.exp(-(x.real**2) / 2) * (2 / np.pi) ** 0.5
    integral = np.vectorize(erf)(x.real / 2**0.5) + 1j * x.imag * slope  # by complex steps, too
    return x * 0.5 * (1 + (integral if np.iscomplexobj(x) else integral.real))


@mistake(
    "this is the sigmoid approximation x·σ(1.702 x), or SiLU; wanted: the tanh form of GELU", "gelu_tanh"
)
def gelu_sigmoid(config, x):
    return [x / (1 + np.exp(-slope * x)) for slope in (1.702, 1.0)]


@mistake("a constant of GELU is wrong: √(2/π) and 0.044715, on x³", "gelu_tanh")
def gelu_constants(config, x):
    root = (2 / np.pi) ** 0.5
    forms = (
        (root, 0.0447, 3),
        (root, 0.44715, 3),
        (2 / np.pi, 0.044715, 3),
        (root, 0.044715, 2),
        (1.0, 0.044715, 3),
    )
    return [0.5 * x * (1 + np.tanh(slope * (x + cubic * x**power))) for slope, cubic, power in forms]


@mistake("√(2/π) is typed with few digits: compute it, or write 0.7978845608028654", "gelu_tanh")
def gelu_root_digits(config, x):
    roots = (0.8, 0.798, 0.7979, 0.7978, 0.79788, 0.797884, 0.797885, 0.7978845, 0.7978846, 0.79788456)
    return [0.5 * x * (1 + np.tanh(root * (x + 0.044715 * x**3))) for root in roots]


@mistake("another activation than the configuration's", "gelu_tanh", "relu")
def activation_other(config, x):
    names = {"relu", "gelu_tanh"} - {config.activation}
    return [x, *(KINDS[name].compute(config, x) for name in names), np.where(x > 0, x, 0.01 * x)]


@mistake("the loss is the sum over tokens; wanted: the mean", "cross-entropy")
def loss_sum(config, logits, targets, tokens):
    return cross_entropy(config, logits, targets) * targets.size


@mistake("the loss is averaged over the batch or over time alone; divide by B·T", "cross-entropy")
def loss_half_mean(config, logits, targets, tokens):
    return [cross_entropy(config, logits, targets) * size for size in targets.shape]


@mistake("the loss is in bits (or another base): take the natural logarithm", "cross-entropy")
def loss_in_bits(config, logits, targets, tokens):
    return [cross_entropy(config, logits, targets) / np.log(base) for base in (2, 10)]


@mistake("the target is the token itself, or two places ahead; wanted: the token after", "cross-entropy")
def loss_unshifted(config, logits, targets, tokens):
    others = (tokens, np.roll(targets, -1, axis=1), np.roll(targets, 1, axis=1))
    return [cross_entropy(config, logits, other) for other in others]


@mistake(
    "the logits are shifted a second time: the first T-1 meet the targets from the second on", "cross-entropy"
)
def loss_shifted_twice(config, logits, targets, tokens):
    return cross_entropy(config, logits[:, :-1], targets[:, 1:]) if targets.shape[1] > 1 else None


@mistake("only the last token's loss counts; wanted: the mean over all", "cross-entropy")
def loss_of_last(config, logits, targets, tokens):
    return cross_entropy(config, logits[:, -1:], targets[:, -1:])
