"""Linear: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.layers import linear_backward, linear_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


@wrong_forward("the weight is used as (in, out): transpose it, it is stored as (out, in)")
def weight_transposed(x, weight, bias):
    y = x @ weight.reshape(weight.shape[::-1])
    return y if bias is None else y + bias


@wrong_forward("the bias is not added")
def bias_missing(x, weight, bias):
    return None if bias is None else linear_forward(x, weight, None)[0]


@wrong_forward("the bias is added twice")
def bias_twice(x, weight, bias):
    return None if bias is None else linear_forward(x, weight, bias)[0] + bias


def _rows(dy, cache):
    """dy and x as rows."""
    return dy.reshape(-1, dy.shape[-1]), cache.rows


@wrong_backward(
    "multiplied by the weight's transpose: dx = dy weight, with the weight as (out, in)",
    "weight is transposed on the way back: forward is x weightᵀ, so backward is dy weight",
)
def dlinear_transposed(dy, cache):
    forms = [dy @ cache.weight.reshape(cache.weight.shape[::-1]).T]
    if cache.weight.shape[0] == cache.weight.shape[1]:
        forms.insert(0, dy @ cache.weight.T)
    return [{"x": each} for each in forms]


@wrong_backward(
    "x and dy are swapped: dweight = dyᵀ x has shape (out, in)",
    "x and dy are swapped: y = x weightᵀ with weight as (out, in), so dweight is dyᵀ x, not xᵀ dy",
)
def dweight_transposed(dy, cache):
    drows, rows = _rows(dy, cache)
    other = rows.T @ drows
    return [{"weight": other.reshape(other.shape[::-1])}, {"weight": other}]


@wrong_backward(
    "only the first or the last sequence's part, or the last token's: add up over batch and time",
    "only the first or the last sequence is counted, or the last token; every row used this weight: sum over B and T",
)
def dweight_of_last(dy, cache):
    x = cache.rows.reshape(*dy.shape[:-1], -1)
    if dy.ndim != 3:
        return None
    parts = ((dy[0], x[0]), (dy[-1], x[-1]), (dy[:, -1], x[:, -1]))
    return [{"weight": dpart.T @ part} for dpart, part in parts]


@wrong_backward(
    "the bias's gradient is a mean over batch or time, or the last one's; wanted: the sum",
    "dbias is a mean, or the last row's; bias meets every row, so its gradient is the sum over all rows",
)
def dbias_mean(dy, cache):
    return [{"bias": each} for each in wrong_sums(dy)] if dy.ndim == 3 else None


def wrong_sums(dy):
    """What people take for Σ dy over B and T, the gradient of what is added to every token."""
    B, T, _ = dy.shape
    total = dy.sum(axis=(0, 1))
    return [total / (B * T), total / B, total / T, dy[-1, -1], dy[-1].sum(axis=0)]


@wrong_backward(
    "the bias's gradient is 1: multiply by dy and sum over batch and time",
    "1 is the slope of y by its bias; multiply by dy and sum over all rows that the bias was added to",
)
def dbias_one(dy, cache):
    return {"bias": np.ones(dy.shape[-1], dy.dtype)}


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
    (
        weight_transposed, bias_missing, bias_twice, dlinear_transposed, dweight_transposed, dweight_of_last,
        dbias_mean, dbias_one,
    ),
)  # fmt: skip
