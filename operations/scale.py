"""Scale: its equations and what people get wrong in it."""

from numpy_llm.layers import scale_backward, scale_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

SCALE = Operation(
    "scale", scale_forward, scale_backward, "y = x · factor",
    {"x": Gradient("dx = dy · factor")},
    (
        wrong_forward("embedding_unscaled", lambda x, factor: x, "not scaled: y = x · factor, √C in Gemma"),
        wrong_forward("embedding_scaled_twice", lambda x, factor: [x * factor**2, x * factor**0.5],
            "scaled twice, or by the root of the factor"),
        wrong_backward("dembedding_unscaled", lambda dy, cache: {"x": dy}, "the factor counts on the way back too"),
        wrong_backward("dembedding_divided", lambda dy, cache: {"x": dy / cache.factor},
            "divided by the factor; dx = dy · factor"),
    ),
)  # fmt: skip
