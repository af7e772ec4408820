"""Exercise gelu: a smooth ReLU, in the tanh form that GPT-2 was trained with.

    y = x/2 · (1 + tanh(u)),   u = √(2/π) (x + 0.044715 x³)

@SHAPES@

Write `gelu_backward`.
"""

import numpy as np

EXERCISE = "gelu"
SEED = 0


def gelu_forward(x):
    """Given. returns: y, and the cache that gelu_backward gets."""
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    tanh = np.tanh(u)
    y = x / 2 * (1 + tanh)
    return y, (x, tanh)


def gelu_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dx, of x's shape"""
    x, tanh = cache
    raise NotImplementedError("write this function")
