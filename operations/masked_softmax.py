"""Masked softmax: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.attend import (
    SoftmaxCache,
    masked_softmax_backward,
    masked_softmax_forward,
    softmax_backward,
    softmax_forward,
)
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward
from operations.sixteen_bits import rounding, running_sum


def _band(scores, window, offset=0):
    """What query t sees of the S keys: those up to its own place, S - T + t, and `offset` more; W of them at most."""
    T, S = scores.shape[-2:]
    seen = np.tril(np.ones((T, S), bool), k=S - T + offset)
    return seen if window is None else np.triu(seen, k=S - T + 1 - window)


def _exponentials(scores, visible, axis=-1):
    """Of the scores less the largest; in a row that sees nothing 1, as a mask of -1e10 leaves it."""
    masked = np.where(visible, scores, -1e10)
    return np.exp(masked - masked.max(axis=axis, keepdims=True))


def _softmax(scores, visible, axis=-1):
    exponentials = _exponentials(scores, visible, axis)
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def _off_by_one(scores, window=None):
    strict = _softmax(scores, _band(scores, window, -1))
    blank = strict.copy()
    blank[..., 0, :] = 0.0
    return [_softmax(scores, _band(scores, window, 1)), strict, blank]


def _other_windows(scores, window=None):
    others = range(1, scores.shape[-1]) if window is None else [None, window + 1, window - 1]
    return [_softmax(scores, _band(scores, other)) for other in others if other != 0]


def _without_cached(scores, window=None):
    T, S = scores.shape[-2:]
    return _softmax(scores, _band(scores, window, T - S)) if S > T else None


def _over_other_axes(scores, window=None):
    visible = _band(scores, window)
    exponentials = _exponentials(scores, visible)
    over_queries = exponentials / exponentials.sum(axis=-2, keepdims=True)
    return [over_queries, _softmax(scores, visible, -2), _softmax(scores, visible, 1)]


def _without_sum(scores, window=None):
    visible = _band(scores, window)
    return [np.exp(scores) * visible, _exponentials(scores, visible)]


def _scaled_again(scores, window=None, *, scale=None):
    return None if scale is None else masked_softmax_forward(scores * scale, window)[0]


def _in_16_bits(round, scores, window=None):
    visible = _band(scores, window)
    exponentials = round(_exponentials(scores, visible) * visible)
    total = running_sum(round, np.moveaxis(exponentials, -1, 0))
    return exponentials * round(1 / total)[..., None]


# Backward: dx = y (dy - Σ dy · y), of softmax itself as much as of the masked one; x and y are any (..., S)


def _subtracting(sums):
    """The mistake of taking something else for Σ dy · y: one of sums(dy, y)."""
    return lambda dy, cache: [{"scores": cache.y * (dy - each)} for each in sums(dy, cache.y)]


def _sums_elsewhere(dy, y):
    return [(dy * y).sum(axis=axis, keepdims=True) for axis in (*range(dy.ndim - 2, -1, -1), None)]


def _plain_sums(dy, y):
    return [_sum(dy), _sum(dy) / dy.shape[-1], _sum(dy * y) / dy.shape[-1]]


def _sum(x):
    return x.sum(axis=-1, keepdims=True)


def _scaled(dy, cache, *, scale=None):
    return None if scale is None else {"scores": softmax_backward(dy, cache) * scale}


MASKED_SOFTMAX = Operation(
    "masked_softmax", masked_softmax_forward, masked_softmax_backward,
    "softmax over the keys; a query at t sees keys 0 to t, or the last W of them",
    {"scores": Gradient("dscores = p · (dp - Σ dp · p over the keys), p = probabilities; 0 where masked", ("y",))},
    (
        wrong_forward("mask_missing", lambda scores, window=None: _softmax(scores, True),
            "the causal mask is missing: every token sees the future"),
        wrong_forward("mask_off_by_one", _off_by_one,
            "the mask is off by one: a token sees the one after it, or does not see itself"),
        wrong_forward("mask_without_cached", _without_cached,
            "the mask does not count cached tokens: the query at t stands at place S - T + t of the S keys"),
        wrong_forward("mask_reversed", lambda scores, window=None: _softmax(scores, ~_band(scores, None, -1)),
            "the mask hides the past instead of the future"),
        wrong_forward("window_other", _other_windows,
            "the window is ignored or off by one: a query sees W tokens, its own included"),
        wrong_forward("mask_of_zero",
            lambda scores, window=None: softmax_forward(np.where(_band(scores, window), scores, 0.0))[0],
            "the mask writes 0 instead of -inf into the scores, which softmax turns into exp(0)"),
        wrong_forward("mask_after_softmax",
            lambda scores, window=None: softmax_forward(scores)[0] * _band(scores, window),
            "the mask is applied after the softmax, so that the rows no longer sum to 1"),
        wrong_forward("softmax_wrong_axis", _over_other_axes,
            "softmax runs over the wrong axis; wanted: over the keys, the last one"),
        wrong_forward("softmax_without_sum", _without_sum,
            "softmax without the sum: the exponentials are not divided by their total"),
        wrong_forward("softmax_scaled_again", _scaled_again,
            "the scores are scaled by 1/√D a second time before the softmax"),
        wrong_backward("dsoftmax_skipped", lambda dy, cache: [{"scores": dy}, {"scores": dy * (cache.y > 0)}],
            "the softmax is skipped: this is the gradient of the probabilities, with or without the masked places",
            "the softmax is skipped on the way back: bring the gradient of the probabilities to the scores with "
            "softmax_backward"),
        wrong_backward("dsoftmax_diagonal", lambda dy, cache: {"scores": cache.y * (1 - cache.y) * dy},
            "softmax's Jacobian is more than its diagonal p (1 - p): the other scores of the row move p too",
            "y (1 - y) is how a score moves its own probability alone; the sum makes it move those of its row too"),
        wrong_backward("dsoftmax_without_sum", lambda dy, cache: {"scores": cache.y * dy},
            "the sum Σ dp · p is missing: dscores = p · (dp - Σ dp · p)",
            "the path through the sum is missing: each score moves the other probabilities of its row too"),
        wrong_backward("dsoftmax_axis", _subtracting(_sums_elsewhere),
            "the sum Σ dp · p runs over the wrong axis; wanted: over the keys",
            "Σ dy · y runs along another axis or over the whole array; softmax runs along the last one, so each row "
            "has its own sum: axis=-1, keepdims=True"),
        wrong_backward("dsoftmax_plain_sum", _subtracting(_plain_sums),
            "the sum is Σ dp without p, or a mean",
            "you subtract Σ dy or a mean; it is the sum of dy · y, each dy[i] weighted by its y[i]"),
        wrong_backward("dsoftmax_scaled", _scaled,
            "1/√D is already in it: the pack has the gradient of the scaled scores"),
        wrong_backward("dsoftmax_without_p", lambda dy, cache: {"scores": dy - _sum(dy * cache.y)},
            "not multiplied by the probabilities: dscores = p · (dp - Σ dp · p)",
            "a factor y is missing: dx = y · (dy - Σ dy · y)"),
    ),
    SoftmaxCache,
    roundings=(
        rounding("softmax", _in_16_bits,
            "the exponentials are added up in 16 bits: take softmax in float32, and round the result"),
    ),
)  # fmt: skip
