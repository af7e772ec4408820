"""Dropout: its equations and what people get wrong in it."""

from numpy_llm.layers import dropout_backward, dropout_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


@wrong_forward("kept values are not scaled up by 1 / (1 - rate)")
def dropout_unscaled(x, rate, key, site):
    return x * (dropout_forward(x, rate, key, site)[0] != 0) if key is not None and rate else None


@wrong_backward("the mask is not applied on the way back")
def ddropout_without_mask(dy, cache):
    return None if cache.mask is None else {"x": dy}


@wrong_backward("the gradients of kept values are not scaled up by 1 / (1 - rate)")
def ddropout_unscaled(dy, cache):
    return None if cache.mask is None else {"x": dy * (cache.mask > 0)}


DROPOUT = Operation(
    "dropout",
    dropout_forward,
    dropout_backward,
    "y = x · mask; x itself in evaluation, and in golden packs",
    {"x": Gradient("dx = dy · mask; dy itself without a mask")},
    (dropout_unscaled, ddropout_without_mask, ddropout_unscaled),
)
