"""Exercise adam: one step along the running mean of the gradients, with decoupled weight decay (AdamW).

    m = beta1 · m + (1 - beta1) · gradient
    v = beta2 · v + (1 - beta2) · gradient²
    weight = weight - learning_rate · weight_decay · weight
                    - learning_rate · (m / (1 - beta1^step)) / (√(v / (1 - beta2^step)) + eps)

The decay takes the old weight. step counts this update: the first is 1.

@SHAPES@

Write `adam`. Return new arrays; leave the arguments as they are.
"""

import numpy as np

EXERCISE = "adam"
SEED = 0


def adam(weight, gradient, m, v, step, learning_rate, beta1, beta2, eps, weight_decay):
    """returns: the new weight, m and v"""
    raise NotImplementedError("write this function")
