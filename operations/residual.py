"""Residual connection: its equations and what people get wrong in it."""

from numpy_llm.layers import residual_backward, residual_forward
from operations.operation import Gradient, Operation

RESIDUAL = Operation(
    "residual",
    residual_forward,
    residual_backward,
    "y = x + branch",
    {"x": Gradient("dx = dy"), "branch": Gradient("dbranch = dy")},
    (),
)
