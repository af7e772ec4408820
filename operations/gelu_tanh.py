"""GELU in its tanh form: its equations and what people get wrong in it."""

from math import erf

import numpy as np

from numpy_llm.feed_forward import gelu_tanh_backward, gelu_tanh_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

_ROOT, _CUBIC = (2 / np.pi) ** 0.5, 0.044715
_FEW_DIGITS = (0.8, 0.798, 0.7979, 0.7978, 0.79788, 0.797884, 0.797885, 0.7978845, 0.7978846, 0.79788456)


def _with(*constants):
    """GELU with other constants, one form for each: √(2/π), 0.044715 and the 3 of x³."""
    return lambda x: [
        0.5 * x * (1 + np.tanh(root * (x + cubic * x**power))) for root, cubic, power in constants
    ]


def _exact(x):
    slope = np.exp(-(x.real**2) / 2) * _ROOT
    integral = np.vectorize(erf)(x.real / 2**0.5) + 1j * x.imag * slope  # by complex steps, too
    return x * 0.5 * (1 + (integral if np.iscomplexobj(x) else integral.real))


# Backward: dx = dy · ((1 + tanh) / 2 + x/2 · (slope of tanh) · du)


def _with_slope(slope=lambda tanh: 1 - tanh**2, du=lambda x: _ROOT * (1 + 3 * _CUBIC * x**2)):
    """The gradient with another slope of tanh, or another du/dx."""

    def compute(dy, cache):
        tanh = np.tanh(_ROOT * (cache.x + _CUBIC * cache.x**3))
        return {"x": dy * (0.5 * (1 + tanh) + 0.5 * cache.x * slope(tanh) * du(cache.x))}

    return compute


def _exact_backward(dy, cache):
    x = cache.x
    density = np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5
    return {"x": dy * (0.5 * (1 + np.vectorize(erf)(x / 2**0.5)) + x * density)}


def _others_backward(dy, cache):
    return [{"x": each} for each in (dy, dy * (cache.x > 0), dy * np.maximum(cache.x, 0), dy * cache.x)]


GELU_TANH = Operation(
    "gelu_tanh", gelu_tanh_forward, gelu_tanh_backward, "y = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))",
    {"x": Gradient("dx = dy · ((1 + tanh u) / 2 + x/2 · (1 - tanh² u) · √(2/π) (1 + 3 · 0.044715 x²))", ("x",))},
    (
        wrong_forward("gelu_erf", _exact, "this is the exact GELU with erf; the configuration asks for the tanh form"),
        wrong_forward("gelu_sigmoid", lambda x: [x / (1 + np.exp(-slope * x)) for slope in (1.702, 1.0)],
            "this is the sigmoid approximation x·σ(1.702 x), or SiLU; wanted: the tanh form of GELU"),
        wrong_forward("gelu_constants",
            _with((_ROOT, 0.0447, 3), (_ROOT, 0.44715, 3), (2 / np.pi, _CUBIC, 3), (_ROOT, _CUBIC, 2), (1, _CUBIC, 3)),
            "a constant of GELU is wrong: √(2/π) and 0.044715, on x³"),
        wrong_forward("gelu_root_digits", _with(*((root, _CUBIC, 3) for root in _FEW_DIGITS)),
            "√(2/π) is typed with few digits: compute it, or write 0.7978845608028654"),
        wrong_forward("activation_other", lambda x: [np.maximum(x, 0), x, np.where(x > 0, x, 0.01 * x)],
            "another activation than the configuration's: ReLU, or none"),
        wrong_forward("gelu_of_up", lambda x, *, up=None: None if up is None else gelu_tanh_forward(up)[0],
            "the activation is that of up; wanted: of gate, and up multiplies it"),
        wrong_backward("dgelu_without_slope", _with_slope(du=lambda x: 0.0),
            "the tanh's own slope is missing: this is dy · (1 + tanh u)/2 alone"),
        wrong_backward("dgelu_without_three", _with_slope(du=lambda x: _ROOT * (1 + _CUBIC * x**2)),
            "the 3 of the cube is lost: x³ has the slope 3x², so du/dx = √(2/π) (1 + 3 · 0.044715 x²)"),
        wrong_backward("dgelu_without_du", _with_slope(du=lambda x: 1.0),
            "du/dx is missing: tanh(u) changes by (1 - tanh²(u)) · du/dx when x changes"),
        wrong_backward("dgelu_without_cubic", _with_slope(du=lambda x: _ROOT),
            "du/dx lacks the cubic term: u = √(2/π) (x + 0.044715 x³) has a slope that depends on x"),
        wrong_backward("dgelu_unsquared", _with_slope(lambda tanh: 1 - tanh),
            "the slope of tanh is 1 - tanh², with a square; yours is 1 - tanh"),
        wrong_backward("dgelu_erf", _exact_backward,
            "this is the derivative of the exact GELU with erf; the forward pass is its tanh form, another function"),
        wrong_backward("dactivation_other", _others_backward,
            "the activation's derivative is missing or is another one's"),
    ),
)  # fmt: skip
