"""Linear: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.layers import linear_backward, linear_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward
from operations.sixteen_bits import rounding, rows, running_sum


def _transposed(x, weight, bias):
    y = x @ weight.reshape(weight.shape[::-1])
    return y if bias is None else y + bias


def _with_bias(times):
    """A linear map that adds its bias that often."""
    return lambda x, weight, bias: None if bias is None else linear_forward(x, weight, times * bias)[0]


def _dx_transposed(dy, cache):
    out, into = cache.weight.shape
    square = [dy @ cache.weight.T] if out == into else []
    return [{"x": dx} for dx in (*square, dy @ cache.weight.reshape(into, out).T)]


def _dweight_transposed(dy, cache):
    other = cache.rows.T @ dy.reshape(-1, dy.shape[-1])
    return [{"weight": other.reshape(other.shape[::-1])}, {"weight": other}]


def _dweight_of_part(dy, cache):
    """Of the first or the last sequence, or of the last token."""
    x = cache.rows.reshape(*dy.shape[:-1], -1)
    if dy.ndim != 3:
        return None
    parts = ((dy[0], x[0]), (dy[-1], x[-1]), (dy[:, -1], x[:, -1]))
    return [{"weight": dpart.T @ part} for dpart, part in parts]


def wrong_sums(dy):
    """What people take for Σ dy over B and T, the gradient of what is added to every token."""
    B, T, _ = dy.shape
    total = dy.sum(axis=(0, 1))
    return [total / (B * T), total / B, total / T, dy[-1, -1], dy[-1].sum(axis=0)]


def _dweight_in_16_bits(round, dy, cache):
    return {
        "weight": running_sum(round, (np.outer(*each) for each in zip(rows(dy), cache.rows, strict=True)))
    }


def _dbias_in_16_bits(round, dy, cache):
    return {"bias": running_sum(round, rows(dy))} if cache.bias is not None else None


LINEAR = Operation(
    "linear", linear_forward, linear_backward, "y = x weightᵀ + bias",
    {
        "x": Gradient("dx = dy weight", ("weight",)),
        "weight": Gradient("dweight = dyᵀ x, summed over B and T", ("x",)),
        "bias": Gradient("dbias = Σ dy over B and T"),
    },
    (
        wrong_forward("weight_transposed", _transposed,
            "the weight is used as (in, out): transpose it, it is stored as (out, in)"),
        wrong_forward("bias_missing", _with_bias(0), "the bias is not added"),
        wrong_forward("bias_twice", _with_bias(2), "the bias is added twice"),
        wrong_backward("dlinear_transposed", _dx_transposed,
            "weight is transposed on the way back: forward is x weightᵀ, so backward is dy weight"),
        wrong_backward("dweight_transposed", _dweight_transposed,
            "x and dy are swapped: y = x weightᵀ with weight as (out, in), so dweight is dyᵀ x, not xᵀ dy"),
        wrong_backward("dweight_of_last", _dweight_of_part,
            "only the first or the last sequence's part, or the last token's: add up over batch and time",
            "only the first or the last sequence counts, or the last token; all rows use it: sum over B and T; "
            "in a loop, += and not ="),
        wrong_backward("dbias_mean",
            lambda dy, cache: [{"bias": each} for each in wrong_sums(dy)] if dy.ndim == 3 else None,
            "the bias's gradient is a mean over batch or time, or the last one's; wanted: the sum",
            "dbias is a mean, or the last row's; bias meets every row, so its gradient is the sum over all rows; "
            "in a loop, += and not ="),
        wrong_backward("dbias_one", lambda dy, cache: {"bias": np.ones(dy.shape[-1], dy.dtype)},
            "1 is the slope of y by its bias; multiply by dy and sum over all rows that the bias was added to"),
    ),
    roundings=(
        rounding("dweight", _dweight_in_16_bits,
            "the weight's gradient is added up over B and T in 16 bits: add up in float32", backward=True),
        rounding("dbias", _dbias_in_16_bits,
            "the bias's gradient is added up over B and T in 16 bits: add up in float32", backward=True),
    ),
)  # fmt: skip
