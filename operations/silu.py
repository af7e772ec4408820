"""SiLU: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.feed_forward import gelu_tanh_forward, silu_backward, silu_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _slopes(*slopes):
    """The gradient with other slopes, each made of x and σ."""
    return lambda dy, cache: [{"x": dy * slope(cache.x, _sigmoid(cache.x))} for slope in slopes]


SILU = Operation(
    "silu", silu_forward, silu_backward, "y = x σ(x), σ(x) = 1 / (1 + exp(-x))",
    {"x": Gradient("dx = dy · σ (1 + x (1 - σ))", ("x",))},
    (
        wrong_forward("silu_is_gelu", lambda x: [gelu_tanh_forward(x)[0], x * _sigmoid(1.702 * x)],
            "this is GELU, or its approximation x σ(1.702 x); wanted: x σ(x)"),
        wrong_forward("silu_is_sigmoid", _sigmoid, "this is σ(x) alone; SiLU multiplies it by x"),
        wrong_forward("silu_other", lambda x: [np.maximum(x, 0), x], "another activation: ReLU, or none"),
        wrong_forward("silu_of_up", lambda x, *, up=None: None if up is None else silu_forward(up)[0],
            "the activation is that of up; wanted: of gate, and up multiplies it"),
        wrong_backward("dsilu_gate_alone", _slopes(lambda x, s: s),
            "the path through the sigmoid is missing: the slope is σ + x σ (1 - σ)"),
        wrong_backward("dsilu_of_sigmoid", _slopes(lambda x, s: s * (1 - s), lambda x, s: x * s * (1 - s)),
            "this is the sigmoid's slope, or the path through it alone: the slope is σ + x σ (1 - σ)"),
        wrong_backward("dsilu_unsquared", _slopes(lambda x, s: s + x * s, lambda x, s: s + x * (1 - s)),
            "the sigmoid's slope is σ (1 - σ); yours lacks a factor"),
        wrong_backward("dsilu_of_y", _slopes(lambda x, s: s + x * s * (1 - x * s)),
            "1 - y where 1 - σ is meant: the slope is σ + y (1 - σ)"),
        wrong_backward("dsilu_missing", lambda dy, cache: {"x": dy}, "the activation's derivative is missing"),
    ),
)  # fmt: skip
