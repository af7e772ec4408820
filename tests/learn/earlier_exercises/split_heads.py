# ruff: noqa
"""Exercise split-heads: the columns of a token become query, key and value, each with H heads of D channels.

    y[i, b, h, t, d] = qkv[b, t, (i H + h) D + d]   with i = 0 for query, 1 for key, 2 for value

Write `split_heads_backward`.
"""

import numpy as np

EXERCISE = "split-heads"
SEED = 3


def split_heads_forward(qkv, n_head):
    """Given. returns: y, and the cache that split_heads_backward gets."""
    B, T, columns = qkv.shape
    D = columns // (3 * n_head)
    y = qkv.reshape(B, T, 3, n_head, D).transpose(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> (3, B, H, T, D)
    return y, (B, T, n_head, D)


def split_heads_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dqkv"""
    B, T, n_head, D = cache
    return dy.transpose(1, 3, 0, 2, 4).reshape(B, T, -1)
