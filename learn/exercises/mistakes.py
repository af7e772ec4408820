"""Mistakes that only an exercise can see: its instances hold what a model's own numbers do not, such as a kink."""

import numpy as np

from operations.operation import wrong_backward

# Operation -> its mistakes.
SEEN_HERE = {
    "relu": (
        wrong_backward("drelu_at_kink",
            lambda dy, cache: [{"x": dy * np.heaviside(cache.x, slope)} for slope in (1.0, 0.5)],
            "at the kink, x = 0, the slope is 0: the gate opens where x > 0, not where x >= 0"),
    ),
    "dropout": (
        wrong_backward("ddropout_scaled_twice", lambda dy, cache: {"x": dy * cache.mask**2},
            "the factor 1 / (1 - rate) counts twice: kept is 1 or 0, the factor comes to it once"),
        wrong_backward("ddropout_scaled_down", lambda dy, cache: {"x": dy * (cache.mask > 0) / cache.mask.max()},
            "divided by 1 / (1 - rate): the forward pass divides by 1 - rate, and so does the backward pass"),
        wrong_backward("ddropout_inverted", lambda dy, cache: {"x": dy * (cache.mask == 0) * cache.mask.max()},
            "what was dropped gets the gradient: kept is 1 where x went through"),
    ),
}  # fmt: skip
