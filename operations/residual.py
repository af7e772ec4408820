"""Residual connection: its equations and what people get wrong in it."""

from numpy_llm.layers import residual_backward, residual_forward
from operations.operation import Gradient, Operation, wrong_forward


@wrong_forward("the residual connection is missing: only the branch is passed on")
def residual_missing(x, branch):
    return branch


@wrong_forward("the branch is added to the normed copy; add it to the stream that the norm read")
def residual_of_norm(x, branch, *, normed=None):
    return None if normed is None else normed + branch


RESIDUAL = Operation(
    "residual",
    residual_forward,
    residual_backward,
    "y = x + branch",
    {"x": Gradient("dx = dy"), "branch": Gradient("dbranch = dy")},
    (residual_missing, residual_of_norm),
)
