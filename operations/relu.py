"""ReLU: its equations and what people get wrong in it."""

from typing import NamedTuple

import numpy as np

from numpy_llm.feed_forward import gelu_tanh_backward, gelu_tanh_forward, relu_backward, relu_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


class _Cache(NamedTuple):
    y: np.ndarray
    x: np.ndarray


def _with_x(x):
    """The forward pass, which keeps x as well: another activation's derivative is made with it."""
    y, _ = relu_forward(x)
    return y, _Cache(y, x)


@wrong_forward("another activation than ReLU: it leaks, or is missing")
def activation_leaks(x):
    return [x, np.where(x > 0, x, 0.01 * x)]


@wrong_forward("this is GELU; the configuration asks for ReLU")
def relu_is_gelu(x):
    return gelu_tanh_forward(x)[0]


@wrong_backward(
    "the activation's derivative is missing: dy passes everywhere",
    "dy passes everywhere; where x was below 0 the output did not move, and nothing comes back",
)
def drelu_missing(dy, cache):
    return {"x": dy}


@wrong_backward(
    "multiplied by max(x, 0): the slope of ReLU is 1 where x > 0",
    "you multiply dy by max(x, 0); the slope of max(x, 0) is 1 where x > 0, not x",
)
def drelu_times_y(dy, cache):
    return {"x": dy * cache.y}


@wrong_backward(
    "dy passes where dy is positive; it passes where x was positive",
    "you let dy through where dy is positive; the gate is open where x was positive",
)
def drelu_gate_of_dy(dy, cache):
    return {"x": np.maximum(dy, 0)}


@wrong_backward(
    "this is the slope alone: multiply it by dy",
    "this is the slope alone; the chain rule multiplies it by dy",
)
def drelu_slope_alone(dy, cache):
    return {"x": (cache.y > 0).astype(dy.dtype)}


@wrong_backward(
    "the gradient passes where x < 0; it passes where x > 0",
    "the gate is upside down: the gradient passes where x > 0",
)
def drelu_upside_down(dy, cache):
    return {"x": dy * (cache.y == 0)}


@wrong_backward("the activation's derivative is another one's: GELU's, or x")
def drelu_of_other(dy, cache):
    gelu = gelu_tanh_backward(dy, gelu_tanh_forward(cache.x)[1])
    return [{"x": gelu}, {"x": dy * cache.x}]


RELU = Operation(
    "relu",
    relu_forward,
    relu_backward,
    "y = max(x, 0)",
    {"x": Gradient("dx = dy where x > 0, else 0", ("x",))},
    (
        activation_leaks, relu_is_gelu, drelu_gate_of_dy, drelu_slope_alone, drelu_times_y, drelu_upside_down,
        drelu_missing, drelu_of_other,
    ),
    rich=_with_x,
)  # fmt: skip
