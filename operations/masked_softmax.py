"""Masked softmax: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.attend import (
    SoftmaxCache,
    causal_mask,
    masked_softmax_backward,
    masked_softmax_forward,
    softmax_backward,
    softmax_forward,
)
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _band(scores, window, offset=0):
    """What query t sees of the S keys: the window's up to its own place, S - T + t, and `offset` more."""
    T, S = scores.shape[-2:]
    seen = np.tril(np.ones((T, S), bool), k=S - T + offset)
    return seen if window is None else np.triu(seen, k=S - T + 1 - window)


def _softmax(scores, visible, axis=-1):
    """Softmax over what is visible; a row that sees nothing is even, as a mask of -1e10 leaves it."""
    masked = np.where(visible, scores, -1e10)
    masked = np.exp(masked - masked.max(axis=axis, keepdims=True))
    return masked / masked.sum(axis=axis, keepdims=True)


def _largest_visible(scores, window):
    """The largest score that each query sees."""
    return (scores + causal_mask(*scores.shape[-2:], window)).max(axis=-1, keepdims=True)


@wrong_forward("the causal mask is missing: every token sees the future")
def mask_missing(scores, window=None):
    return _softmax(scores, True)


@wrong_forward("the mask is off by one: a token sees the one after it, or does not see itself")
def mask_off_by_one(scores, window=None):
    strict = _softmax(scores, _band(scores, window, -1))
    blank = strict.copy()
    blank[..., 0, :] = 0.0
    return [_softmax(scores, _band(scores, window, 1)), strict, blank]


@wrong_forward(
    "the mask does not count cached tokens: the query at t stands at place S - T + t of the S keys"
)
def mask_without_cached(scores, window=None):
    T, S = scores.shape[-2:]
    return _softmax(scores, np.tril(np.ones((T, S), bool))) if S > T else None


@wrong_forward("the window is ignored: a query sees all tokens before it")
def window_missing(scores, window=None):
    return None if window is None else masked_softmax_forward(scores)[0]


@wrong_forward("the window is off by one: a query sees W tokens, its own included")
def window_off_by_one(scores, window=None):
    if window is None:
        return None
    return [masked_softmax_forward(scores, other)[0] for other in (window + 1, window - 1) if other]


@wrong_forward("the mask hides the past instead of the future")
def mask_reversed(scores, window=None):
    T, S = scores.shape[-2:]
    return _softmax(scores, np.triu(np.ones((T, S), bool), k=S - T)) if window is None else None


@wrong_forward("the mask writes 0 instead of -inf into the scores, which softmax turns into exp(0)")
def mask_of_zero(scores, window=None):
    return softmax_forward(np.where(_band(scores, window), scores, 0.0))[0]


@wrong_forward("the mask is applied after the softmax, so that the rows no longer sum to 1")
def mask_after_softmax(scores, window=None):
    return softmax_forward(scores)[0] * _band(scores, window)


@wrong_forward("softmax runs over the wrong axis; wanted: over the keys, the last one")
def softmax_wrong_axis(scores, window=None):
    visible = _band(scores, window)
    exponentials = np.where(visible, np.exp(scores - _largest_visible(scores, window)), 0.0)
    over_queries = exponentials / exponentials.sum(axis=-2, keepdims=True)
    return [over_queries, *(_softmax(scores, visible, axis=axis) for axis in (-2, 1))]


@wrong_forward("softmax without the sum: the exponentials are not divided by their total")
def softmax_without_sum(scores, window=None):
    shifted = np.exp(scores + causal_mask(*scores.shape[-2:], window) - _largest_visible(scores, window))
    return [np.exp(scores) * _band(scores, window), shifted]


@wrong_forward("the scores are scaled by 1/√D a second time before the softmax")
def softmax_scaled_again(scores, window=None, *, scale=None):
    return None if scale is None else masked_softmax_forward(scores * scale, window)[0]


# Backward: dx = y (dy - Σ dy · y), of softmax itself as much as of the masked one; x and y are any (..., S)


@wrong_backward(
    "the softmax is skipped: this is the gradient of the probabilities, with or without the masked places",
    "the softmax is skipped on the way back: bring the gradient of the probabilities to the scores with "
    "softmax_backward",
)
def dsoftmax_skipped(dy, cache):
    return [{"scores": dy}, {"scores": dy * (cache.y > 0)}]


@wrong_backward(
    "softmax's Jacobian is more than its diagonal p (1 - p): the other scores of the row move p too",
    "y (1 - y) is how a score moves its own probability alone; it moves the others of its row too, through the sum",
)
def dsoftmax_diagonal(dy, cache):
    return {"scores": cache.y * (1 - cache.y) * dy}


@wrong_backward(
    "the sum Σ dp · p is missing: dscores = p · (dp - Σ dp · p)",
    "the path through the sum is missing: each score moves the other probabilities of its row too",
)
def dsoftmax_without_sum(dy, cache):
    return {"scores": cache.y * dy}


@wrong_backward(
    "the sum Σ dp · p runs over the wrong axis; wanted: over the keys",
    "Σ dy · y runs along another axis or over the whole array; softmax runs along the last one, so each row has its "
    "own sum: axis=-1, keepdims=True",
)
def dsoftmax_axis(dy, cache):
    axes = [*range(dy.ndim - 2, -1, -1), None]
    return [{"scores": cache.y * (dy - (dy * cache.y).sum(axis=axis, keepdims=True))} for axis in axes]


@wrong_backward(
    "the sum is Σ dp without p, or a mean",
    "you subtract Σ dy or a mean; it is the sum of dy · y, each dy[i] weighted by its y[i]",
)
def dsoftmax_plain_sum(dy, cache):
    subtracted = (
        dy.sum(axis=-1, keepdims=True),
        dy.mean(axis=-1, keepdims=True),
        (dy * cache.y).mean(axis=-1, keepdims=True),
    )
    return [{"scores": cache.y * (dy - each)} for each in subtracted]


@wrong_backward("1/√D is already in it: the pack has the gradient of the scaled scores")
def dsoftmax_scaled(dy, cache, *, scale=None):
    return None if scale is None else {"scores": softmax_backward(dy, cache) * scale}


@wrong_backward(
    "not multiplied by the probabilities: dscores = p · (dp - Σ dp · p)",
    "a factor y is missing: dx = y · (dy - Σ dy · y)",
)
def dsoftmax_without_p(dy, cache):
    return {"scores": dy - (dy * cache.y).sum(axis=-1, keepdims=True)}


MASKED_SOFTMAX = Operation(
    "masked_softmax",
    masked_softmax_forward,
    masked_softmax_backward,
    "softmax over the keys; a query at t sees keys 0 to t, or the last W of them",
    {
        "scores": Gradient(
            "dscores = p · (dp - Σ dp · p over the keys), p = probabilities; 0 where masked", ("y",)
        )
    },
    (
        mask_missing, mask_off_by_one, mask_without_cached, window_missing, window_off_by_one, mask_reversed,
        mask_of_zero, mask_after_softmax,
        softmax_wrong_axis, softmax_without_sum, softmax_scaled_again, dsoftmax_skipped, dsoftmax_diagonal,
        dsoftmax_without_sum, dsoftmax_axis, dsoftmax_plain_sum, dsoftmax_scaled, dsoftmax_without_p,
    ),
    SoftmaxCache,
)  # fmt: skip
