"""Exercise linear: an affine map of the channels.

    y = x weightᵀ + bias,   that is   y[b, t, o] = Σ_i x[b, t, i] weight[o, i] + bias[o]

@SHAPES@

Write `linear_backward`.
"""

import numpy as np

EXERCISE = "linear"
SEED = 0


def linear_forward(x, weight, bias):
    """Given. returns: y, and the cache that linear_backward gets."""
    y = x @ weight.T + bias
    return y, (x, weight)


def linear_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dx, dweight, dbias"""
    x, weight = cache
    raise NotImplementedError("write this function")
