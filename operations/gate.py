"""Gate: its equations and what people get wrong in it."""

from numpy_llm.feed_forward import gate_backward, gate_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

GATE = Operation(
    "gate", gate_forward, gate_backward, "y = active · up",
    {"active": Gradient("dactive = dy · up", ("up",)), "up": Gradient("dup = dy · active", ("active",))},
    (
        wrong_forward("gate_added", lambda active, up: active + up, "added, not multiplied: y = active · up"),
        wrong_forward("gate_one_side", lambda active, up: [active, up], "one of the two factors is left out"),
        wrong_backward("dgate_exchanged",
            lambda dy, cache: {"active": dy * cache.active, "up": dy * cache.up},
            "each factor's gradient is dy times the other factor; yours is dy times the factor itself"),
        wrong_backward("dgate_passed", lambda dy, cache: [{"active": dy, "up": dy}, {"active": dy}, {"up": dy}],
            "dy passes unchanged: each factor's gradient is dy times the other factor"),
        wrong_backward("dgate_lost", lambda dy, cache: [{"active": 0 * dy}, {"up": 0 * dy}],
            "the gradient of one factor is dropped"),
    ),
)  # fmt: skip
