"""Position: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.positions import PositionCache, position_backward, position_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _reversed(x, table, start):
    T = x.shape[1]
    return [x + table[start : start + T][::-1], x + table[::-1][start : start + T]]


POSITION = Operation(
    "position", position_forward, position_backward, "y[b, t] = x[b, t] + table[t]",
    {"x": Gradient("dx = dy"), "table": Gradient("dtable[t] = Σ dy[b, t] over B, 0 beyond T")},
    (
        wrong_forward("position_from_one",
            lambda x, table, start: x + np.roll(table, -1, axis=0)[start : start + x.shape[1]],
            "positions are counted from 1, not from 0"),
        wrong_forward("position_missing", lambda x, table, start: x, "the position is not added"),
        wrong_forward("position_reversed", _reversed,
            "positions are counted backwards: from the last place, or from the end of the table"),
        wrong_forward("position_by_batch",
            lambda x, table, start: x + table[: len(x), None] if len(x) <= len(table) else None,
            "the position is the sequence's number in the batch; wanted: the token's place in time"),
        wrong_forward("position_of_window", lambda x, table, start: x + table[: x.shape[1]] if start else None,
            "positions are counted from the first of the new tokens; wanted: from the start of the sequence"),
        wrong_backward("dposition_from_zero",
            lambda dy, cache: {"table": position_backward(dy, PositionCache(cache.T, 0, cache.shape))[1]},
            "the sums are right but begin at row 0; token t used row start + t: dtable[start : start + T]"),
        wrong_backward("dposition_of_last", lambda dy, cache: {"table": position_backward(dy[-1:], cache)[1]},
            "the position's gradient is the last sequence's alone; wanted: the batch's sum",
            "only the last sequence of the batch is left: each one overwrites the one before; sum over B: "
            "in a loop, += and not ="),
        wrong_backward("dposition_mean", lambda dy, cache: {"table": position_backward(dy, cache)[1] / len(dy)},
            "the position's gradient is the batch's mean; wanted: the sum"),
    ),
)  # fmt: skip
