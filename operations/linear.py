"""Linear: its equations and what people get wrong in it."""

from numpy_llm.layers import linear_backward, linear_forward
from operations.operation import Gradient, Operation

LINEAR = Operation(
    "linear",
    linear_forward,
    linear_backward,
    "y = x weightᵀ + bias",
    {
        "x": Gradient("dx = dy weight", ("weight",)),
        "weight": Gradient("dweight = dyᵀ x, summed over B and T", ("x",)),
        "bias": Gradient("dbias = Σ dy over B and T"),
    },
    (),
)
