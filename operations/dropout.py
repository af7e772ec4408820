"""Dropout: its equations and what people get wrong in it."""

from numpy_llm.layers import dropout_backward, dropout_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _unscaled(x, rate, key, site):
    return x * (dropout_forward(x, rate, key, site)[0] != 0) if key is not None and rate else None


DROPOUT = Operation(
    "dropout", dropout_forward, dropout_backward, "y = x · mask; x itself in evaluation, and in golden packs",
    {"x": Gradient("dx = dy · mask; dy itself without a mask")},
    (
        wrong_forward("dropout_unscaled", _unscaled, "kept values are not scaled up by 1 / (1 - rate)"),
        wrong_backward("ddropout_without_mask", lambda dy, cache: None if cache.mask is None else {"x": dy},
            "the mask is not applied on the way back"),
        wrong_backward("ddropout_unscaled",
            lambda dy, cache: None if cache.mask is None else {"x": dy * (cache.mask > 0)},
            "the gradients of kept values are not scaled up by 1 / (1 - rate)"),
    ),
)  # fmt: skip
