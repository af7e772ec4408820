"""Exercise layer-norm: each token's channels get mean 0 and variance 1, then a scale and a shift.

    normal = (x - mean(x)) · inverse_deviation,   inverse_deviation = 1 / √(var(x) + eps)
    y = normal · weight + bias

Mean and variance run over the C channels of one token.

@SHAPES@

Write `layer_norm_backward`.
"""

import numpy as np

EXERCISE = "layer-norm"
SEED = 0


def layer_norm_forward(x, weight, bias, eps):
    """Given. returns: y, and the cache that layer_norm_backward gets."""
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse_deviation = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    normal = centred * inverse_deviation
    y = normal * weight + bias
    return y, (normal, inverse_deviation, weight)


def layer_norm_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dx, dweight, dbias"""
    normal, inverse_deviation, weight = cache
    raise NotImplementedError("write this function")
