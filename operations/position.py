"""Position: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.positions import position_backward, position_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


@wrong_forward("positions are counted from 1, not from 0")
def position_from_one(x, table, start):
    return x + np.roll(table, -1, axis=0)[start : start + x.shape[1]]


@wrong_forward("the position is not added")
def position_missing(x, table, start):
    return x


@wrong_forward("positions are counted backwards: from the last place, or from the end of the table")
def position_reversed(x, table, start):
    T = x.shape[1]
    return [x + table[start : start + T][::-1], x + table[::-1][start : start + T]]


@wrong_forward("the position is the sequence's number in the batch; wanted: the token's place in time")
def position_by_batch(x, table, start):
    return x + table[: len(x), None] if len(x) <= len(table) else None


@wrong_forward(
    "positions are counted from the first of the new tokens; wanted: from the start of the sequence"
)
def position_of_window(x, table, start):
    return x + table[: x.shape[1]] if start else None


@wrong_backward("the position's gradient is the batch's mean; wanted: the sum")
def dposition_mean(dy, cache):
    return {"table": position_backward(dy, cache)[1] / len(dy)}


@wrong_backward(
    "the position's gradient is the last sequence's alone; wanted: the batch's sum",
    "only the last sequence of the batch is left: each one overwrites the one before; sum over B",
)
def dposition_of_last(dy, cache):
    return {"table": position_backward(dy[-1:], cache)[1]}


@wrong_backward(
    "the position's gradient begins at row 0; it belongs to the rows that were added",
    "the sums are right but begin at row 0; token t used row start + t: dtable[start : start + T]",
)
def dposition_from_zero(dy, cache):
    return {"table": position_backward(dy, cache._replace(start=0))[1]}


POSITION = Operation(
    "position",
    position_forward,
    position_backward,
    "y[b, t] = x[b, t] + table[t]",
    {
        "x": Gradient("dx = dy"),
        "table": Gradient("dtable[t] = Σ dy[b, t] over B, 0 beyond T"),
    },
    (
        position_from_one, position_missing, position_reversed, position_by_batch, position_of_window,
        dposition_from_zero, dposition_of_last, dposition_mean,
    ),
)  # fmt: skip
