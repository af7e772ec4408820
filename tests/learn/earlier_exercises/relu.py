# ruff: noqa
"""Exercise relu: a gate that is open or shut.

    y = max(x, 0)

Write `relu_backward`; at the kink, x = 0, take the slope 0.
"""

import numpy as np

EXERCISE = "relu"
SEED = 3


def relu_forward(x):
    """Given. returns: y, and the cache that relu_backward gets."""
    y = np.maximum(x, 0)
    return y, x


def relu_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dx, of x's shape"""
    x = cache
    return dy * (x > 0)
