"""GELU in its tanh form: its equations and what people get wrong in it."""

from math import erf
from typing import NamedTuple

import numpy as np

from numpy_llm.feed_forward import gelu_tanh_backward, gelu_tanh_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

_ROOT, _CUBIC = (2 / np.pi) ** 0.5, 0.044715


class _Cache(NamedTuple):
    slope: np.ndarray
    x: np.ndarray


def _with_x(x):
    """The forward pass, which keeps x as well: most mistakes of the backward pass are made with it."""
    y, cache = gelu_tanh_forward(x)
    return y, _Cache(cache.slope, x)


@wrong_forward("this is the exact GELU with erf; the configuration asks for the tanh form")
def gelu_erf(x):
    slope = np.exp(-(x.real**2) / 2) * (2 / np.pi) ** 0.5
    integral = np.vectorize(erf)(x.real / 2**0.5) + 1j * x.imag * slope  # by complex steps, too
    return x * 0.5 * (1 + (integral if np.iscomplexobj(x) else integral.real))


@wrong_forward("this is the sigmoid approximation x·σ(1.702 x), or SiLU; wanted: the tanh form of GELU")
def gelu_sigmoid(x):
    return [x / (1 + np.exp(-slope * x)) for slope in (1.702, 1.0)]


@wrong_forward("a constant of GELU is wrong: √(2/π) and 0.044715, on x³")
def gelu_constants(x):
    forms = (
        (_ROOT, 0.0447, 3),
        (_ROOT, 0.44715, 3),
        (2 / np.pi, _CUBIC, 3),
        (_ROOT, _CUBIC, 2),
        (1.0, _CUBIC, 3),
    )
    return [0.5 * x * (1 + np.tanh(slope * (x + cubic * x**power))) for slope, cubic, power in forms]


@wrong_forward("√(2/π) is typed with few digits: compute it, or write 0.7978845608028654")
def gelu_root_digits(x):
    roots = (0.8, 0.798, 0.7979, 0.7978, 0.79788, 0.797884, 0.797885, 0.7978845, 0.7978846, 0.79788456)
    return [0.5 * x * (1 + np.tanh(root * (x + _CUBIC * x**3))) for root in roots]


@wrong_forward("another activation than the configuration's: ReLU, or none")
def activation_other(x):
    return [np.maximum(x, 0), x, np.where(x > 0, x, 0.01 * x)]


# Backward: dx = dy · ((1 + tanh) / 2 + x/2 · (slope of tanh) · du)


def _slope(x, slope_of_tanh=None, du=None):
    """The derivative with another slope of tanh or another du/dx."""
    tanh = np.tanh(_ROOT * (x + _CUBIC * x**3))
    inner = 1 - tanh**2 if slope_of_tanh is None else slope_of_tanh(tanh)
    return 0.5 * (1 + tanh) + 0.5 * x * inner * (_ROOT * (1 + 3 * _CUBIC * x**2) if du is None else du)


@wrong_backward("the tanh's own slope is missing: this is dy · (1 + tanh u)/2 alone")
def dgelu_without_slope(dy, cache):
    return {"x": dy * _slope(cache.x, du=0.0)}


@wrong_backward(
    "the 3 of the derivative of x³ is missing: du/dx = √(2/π) (1 + 3 · 0.044715 x²)",
    "the 3 of the cube is lost: x³ has the slope 3x², so du/dx = √(2/π) (1 + 3 · 0.044715 x²)",
)
def dgelu_without_three(dy, cache):
    return {"x": dy * _slope(cache.x, du=_ROOT * (1 + _CUBIC * cache.x**2))}


@wrong_backward(
    "du/dx is missing: tanh(u) changes by (1 - tanh² u) · du/dx",
    "du/dx is missing: tanh(u) changes by (1 - tanh²(u)) · du/dx when x changes",
)
def dgelu_without_du(dy, cache):
    return {"x": dy * _slope(cache.x, du=1.0)}


@wrong_backward(
    "du/dx lacks the cubic term: √(2/π) (1 + 3 · 0.044715 x²)",
    "du/dx lacks the cubic term: u = √(2/π) (x + 0.044715 x³) has a slope that depends on x",
)
def dgelu_without_cubic(dy, cache):
    return {"x": dy * _slope(cache.x, du=_ROOT)}


@wrong_backward(
    "the slope of tanh is 1 - tanh², squared",
    "the slope of tanh is 1 - tanh², with a square; yours is 1 - tanh",
)
def dgelu_unsquared(dy, cache):
    return {"x": dy * _slope(cache.x, slope_of_tanh=lambda tanh: 1 - tanh)}


@wrong_backward(
    "this is the derivative of the exact GELU with erf; the forward pass has the tanh form",
    "this is the derivative of the exact GELU with erf; the forward pass is its tanh form, another function",
)
def dgelu_erf(dy, cache):
    x = cache.x
    density = np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5
    return {"x": dy * (0.5 * (1 + np.vectorize(erf)(x / 2**0.5)) + x * density)}


@wrong_backward("the activation's derivative is missing or is another one's")
def dactivation_other(dy, cache):
    return [{"x": each} for each in (dy, dy * (cache.x > 0), dy * np.maximum(cache.x, 0), dy * cache.x)]


GELU_TANH = Operation(
    "gelu_tanh",
    gelu_tanh_forward,
    gelu_tanh_backward,
    "y = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))",
    {
        "x": Gradient(
            "dx = dy · ((1 + tanh u) / 2 + x/2 · (1 - tanh² u) · √(2/π) (1 + 3 · 0.044715 x²))", ("x",)
        )
    },
    (
        gelu_erf, gelu_sigmoid, gelu_constants, gelu_root_digits, activation_other, dgelu_without_slope,
        dgelu_without_three, dgelu_without_du, dgelu_without_cubic, dgelu_unsquared, dgelu_erf, dactivation_other,
    ),
    rich=_with_x,
)  # fmt: skip
