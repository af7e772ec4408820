"""ReLU: its equations and what people get wrong in it."""

from numpy_llm.feed_forward import relu_backward, relu_forward
from operations.operation import Gradient, Operation

RELU = Operation(
    "relu",
    relu_forward,
    relu_backward,
    "y = max(x, 0)",
    {"x": Gradient("dx = dy where x > 0, else 0", ("x",))},
    (),
)
