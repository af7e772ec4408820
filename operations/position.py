"""Position: its equations and what people get wrong in it."""

from numpy_llm.positions import position_backward, position_forward
from operations.operation import Gradient, Operation

POSITION = Operation(
    "position",
    position_forward,
    position_backward,
    "y[b, t] = x[b, t] + table[t]",
    {"x": Gradient("dx = dy"), "table": Gradient("dtable[t] = Σ dy[b, t] over B, 0 beyond T")},
    (),
)
