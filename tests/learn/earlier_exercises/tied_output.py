# ruff: noqa
"""Exercise tied-output: one matrix reads the tokens and writes the logits, with a linear map between.

    x = weight[tokens],   hidden = x mixᵀ,   y = hidden weightᵀ

Write `tied_output_backward`.
"""

import numpy as np

from numpy_llm.layers import embedding_backward, linear_backward  # earlier steps, if you like

EXERCISE = "tied-output"
SEED = 3


def tied_output_forward(tokens, weight, mix):
    """Given. returns: y, and the cache that tied_output_backward gets."""
    x = weight[tokens]
    hidden = x @ mix.T
    y = hidden @ weight.T
    return y, (tokens, x, hidden, weight, mix)


def tied_output_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dweight, dmix

    linear_backward(dy, (rows, weight, False)) returns dx, dweight, None; its rows are (B·T, in).
    embedding_backward(dy, (tokens, weight.shape)) returns dweight.
    """
    tokens, x, hidden, weight, mix = cache
    rows = dy.reshape(-1, dy.shape[-1])
    drows, output, _ = linear_backward(rows, (hidden.reshape(len(rows), -1), weight, False))
    dx, dmix, _ = linear_backward(drows, (x.reshape(len(rows), -1), mix, False))
    return embedding_backward(dx.reshape(x.shape), (tokens, weight.shape)) + output, dmix
