"""Soft cap: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.layers import soft_cap_backward, soft_cap_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

SOFT_CAP = Operation(
    "soft_cap", soft_cap_forward, soft_cap_backward, "y = cap · tanh(x / cap)",
    {"x": Gradient("dx = dy · (1 - tanh²(x / cap))", ("x",))},
    (
        wrong_forward("cap_missing", lambda x, cap: x, "the soft cap is missing"),
        wrong_forward("cap_times_x", lambda x, cap: x * np.tanh(x / cap),
            "x · tanh(x / cap); wanted cap · tanh(x / cap)"),
        wrong_forward("cap_half", lambda x, cap: [np.tanh(x / cap), cap * np.tanh(x)],
            "one of the two factors is missing: divide by cap before the tanh, multiply by it after"),
        wrong_forward("cap_hard", lambda x, cap: np.clip(x, -cap, cap), "a hard limit; wanted: cap · tanh(x / cap)"),
        wrong_backward("dcap_missing", lambda dy, cache: {"x": dy},
            "the soft cap is missing on the way back: its slope is 1 - tanh²(x / cap)"),
        wrong_backward("dcap_scaled",
            lambda dy, cache: [{"x": dy * (1 - cache.tanh**2) * by} for by in (cache.cap, 1 / cache.cap)],
            "the factors cap and 1 / cap cancel: dx = dy · (1 - tanh²(x / cap))"),
        wrong_backward("dcap_unsquared", lambda dy, cache: {"x": dy * (1 - cache.tanh)},
            "the slope of tanh is 1 - tanh², with a square"),
        wrong_backward("dcap_of_y", lambda dy, cache: {"x": dy * (1 - (cache.tanh * cache.cap) ** 2)},
            "1 - y² where 1 - (y / cap)² is meant"),
    ),
)  # fmt: skip
