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
}  # fmt: skip
