"""ReLU: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.feed_forward import gelu_tanh_backward, gelu_tanh_forward, relu_backward, relu_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

RELU = Operation(
    "relu", relu_forward, relu_backward, "y = max(x, 0)",
    {"x": Gradient("dx = dy where x > 0, else 0", ("x",))},
    (
        wrong_forward("activation_leaks", lambda x: [x, np.where(x > 0, x, 0.01 * x)],
            "another activation than ReLU: it leaks, or is missing"),
        wrong_forward("relu_is_gelu", lambda x: gelu_tanh_forward(x)[0],
            "this is GELU; the configuration asks for ReLU"),
        wrong_backward("drelu_gate_of_dy", lambda dy, cache: {"x": np.maximum(dy, 0)},
            "dy passes where dy is positive; it passes where x was positive",
            "you let dy through where dy is positive; the gate is open where x was positive"),
        wrong_backward("drelu_slope_alone", lambda dy, cache: {"x": (cache.y > 0).astype(dy.dtype)},
            "this is the slope alone; the chain rule multiplies it by dy"),
        wrong_backward("drelu_times_y", lambda dy, cache: {"x": dy * cache.y},
            "multiplied by max(x, 0): the slope of ReLU is 1 where x > 0",
            "you multiply dy by max(x, 0); the slope of max(x, 0) is 1 where x > 0, not x"),
        wrong_backward("drelu_upside_down", lambda dy, cache: {"x": dy * (cache.y == 0)},
            "the gate is upside down: the gradient passes where x > 0"),
        wrong_backward("drelu_missing", lambda dy, cache: {"x": dy},
            "the activation's derivative is missing: dy passes everywhere",
            "dy passes everywhere; where x was below 0 the output did not move, and nothing comes back"),
        wrong_backward("drelu_of_other",
            lambda dy, cache: [{"x": gelu_tanh_backward(dy, gelu_tanh_forward(cache.x)[1])}, {"x": dy * cache.x}],
            "the activation's derivative is another one's: GELU's, or x"),
    ),
)  # fmt: skip
