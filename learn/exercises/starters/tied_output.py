"""Exercise tied-output: one matrix reads the tokens and writes the logits, with a linear map between.

    x = weight[tokens],   hidden = x mixᵀ,   y = hidden weightᵀ

@SHAPES@

Write `tied_output_backward`.
"""

import numpy as np

from numpy_llm.layers import (  # earlier steps, if you like
    EmbeddingCache,
    LinearCache,
    embedding_backward,
    linear_backward,
)

EXERCISE = "tied-output"
SEED = 0


def tied_output_forward(tokens, weight, mix):
    """Given. returns: y, and the cache that tied_output_backward gets."""
    x = weight[tokens]
    hidden = x @ mix.T
    y = hidden @ weight.T
    return y, (tokens, x, hidden, weight, mix)


def tied_output_backward(dy, cache):
    """dy: the gradient of the loss with respect to y. returns: dweight, dmix

    linear_backward(dy, LinearCache(rows, weight, False)) returns dx, dweight, None; its rows are (B·T, in).
    embedding_backward(dy, EmbeddingCache(tokens, weight.shape)) returns dweight.
    """
    tokens, x, hidden, weight, mix = cache
    raise NotImplementedError("write this function")
