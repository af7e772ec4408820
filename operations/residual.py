"""Residual connection: its equations and what people get wrong in it."""

from numpy_llm.layers import residual_backward, residual_forward
from operations.operation import Gradient, Operation, wrong_forward

RESIDUAL = Operation(
    "residual", residual_forward, residual_backward, "y = x + branch",
    {"x": Gradient("dx = dy"), "branch": Gradient("dbranch = dy")},
    (
        wrong_forward("residual_missing", lambda x, branch: branch,
            "the residual connection is missing: only the branch is passed on"),
        wrong_forward("residual_of_norm", lambda x, branch, *, normed=None: None if normed is None else normed + branch,
            "the branch is added to the normed copy; add it to the stream that the norm read"),
    ),
)  # fmt: skip
