"""Exercise merge-heads: the heads of a token side by side again.

    y[b, t, h D + d] = heads[b, h, t, d]

@SHAPES@

Write `merge_heads_backward`.
"""

import numpy as np

EXERCISE = "merge-heads"
SEED = 0


def merge_heads_forward(heads):
    """Given. returns: y, and the cache that merge_heads_backward gets."""
    B, H, T, D = heads.shape
    y = heads.swapaxes(1, 2).reshape(B, T, H * D)  # (B, H, T, D) -> (B, T, H, D) -> (B, T, C)
    return y, (B, H, T, D)


def merge_heads_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dheads"""
    B, H, T, D = cache
    raise NotImplementedError("write this function")
