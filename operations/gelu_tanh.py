"""GELU, tanh form: its equations and what people get wrong in it."""

from numpy_llm.feed_forward import gelu_tanh_backward, gelu_tanh_forward
from operations.operation import Gradient, Operation

GELU_TANH = Operation(
    "gelu_tanh",
    gelu_tanh_forward,
    gelu_tanh_backward,
    "y = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))",
    {
        "x": Gradient(
            "dx = dy · ((1 + tanh u) / 2 + x/2 · (1 - tanh² u) · √(2/π) (1 + 3 · 0.044715 x²))", ("x",)
        )
    },
    (),
)
