"""Dropout: its equations and what people get wrong in it."""

from numpy_llm.layers import dropout_backward, dropout_forward
from operations.operation import Gradient, Operation

DROPOUT = Operation(
    "dropout",
    dropout_forward,
    dropout_backward,
    "y = x · mask; x itself in evaluation, and in golden packs",
    {"x": Gradient("dx = dy · mask; dy itself without a mask")},
    (),
)
