"""The feed-forward layer and its activations, forward and backward.

The dimension letters are explained in `contract/config.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from contract.trace import NO_TRACE
from numpy_llm.layers import LinearCache, linear_backward, linear_forward


class ReLUCache(NamedTuple):
    y: np.ndarray


def relu_forward(x):
    """y = max(x, 0).

    x: float, any shape; returns: y of the same shape, cache
    Source: Vaswani et al. 2017, equation 2. Twin: torch_llm.feed_forward.relu
    """
    y = np.maximum(x, 0)
    return y, ReLUCache(y)


def relu_backward(dy, cache):
    """dx = dy where x > 0, else 0; at the kink the slope 0 is taken, as PyTorch does."""
    return dy * (cache.y > 0)


_GELU_SLOPE = (2 / np.pi) ** 0.5
_GELU_CUBIC = 0.044715


class GELUCache(NamedTuple):
    slope: np.ndarray  # dy/dx


def gelu_tanh_forward(x):
    """The tanh form of the Gaussian error linear unit: y = x/2 · (1 + tanh(u)), u = √(2/π) (x + 0.044715 x³).

    Fused: the derivative is computed here, while tanh(u) is at hand, and kept instead of x and tanh(u).

        dy/dx = (1 + tanh(u)) / 2  +  x/2 · (1 - tanh²(u)) · du/dx,   du/dx = √(2/π) (1 + 3 · 0.044715 x²)

    x: float, any shape; returns: y of the same shape, cache
    Source: Hendrycks & Gimpel 2016, section 2; the form that GPT-2 was trained with, not the exact erf.
    Twin: torch_llm.feed_forward.gelu_tanh
    """
    x_squared = x * x
    tanh = np.tanh(_GELU_SLOPE * x * (1 + _GELU_CUBIC * x_squared))
    du = _GELU_SLOPE * (1 + 3 * _GELU_CUBIC * x_squared)
    half_x = 0.5 * x
    slope = 0.5 * (1 + tanh) + half_x * (1 - tanh * tanh) * du
    return half_x * (1 + tanh), GELUCache(slope)


def gelu_tanh_backward(dy, cache):
    """dx = dy · dy/dx, the slope that the forward pass kept."""
    return dy * cache.slope


ACTIVATIONS = {
    "relu": (relu_forward, relu_backward),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
}


class FeedForwardCache(NamedTuple):
    name: str
    up: LinearCache
    activation_backward: Callable
    activation: NamedTuple
    down: LinearCache


def feed_forward_forward(x, weights, name, config, trace=NO_TRACE):
    """Widen each token to F channels, apply the activation, and narrow it to C again.

        y = activation(x W_upᵀ + b_up) W_downᵀ + b_down

    x: float (B, T, C); weights: mapping that holds this layer's under `name`, such as "blocks.0.feed_forward"
    returns: y (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.3. Twin: torch_llm.feed_forward.FeedForward
    """
    activation_forward, activation_backward = ACTIVATIONS[config.activation]
    up = weights[f"{name}.up.weight"], weights.get(f"{name}.up.bias")
    down = weights[f"{name}.down.weight"], weights.get(f"{name}.down.bias")
    hidden, up_cache = linear_forward(x, *up)
    trace.record(f"{name}.up", hidden, "linear", x, *up)
    active, activation_cache = activation_forward(hidden)
    trace.record(f"{name}.activation", active, config.activation, hidden)
    y, down_cache = linear_forward(active, *down)
    trace.record(f"{name}.down", y, "linear", active, *down)
    return y, FeedForwardCache(name, up_cache, activation_backward, activation_cache, down_cache)


def feed_forward_backward(dy, cache, trace=NO_TRACE):
    """The forward pass reversed. returns: dx (B, T, C), gradients by weight name"""
    name = cache.name
    trace.record_gradient(f"{name}.down", dy)
    dactive, ddown_weight, ddown_bias = linear_backward(dy, cache.down)
    trace.record_gradient(f"{name}.activation", dactive)
    dhidden = cache.activation_backward(dactive, cache.activation)
    trace.record_gradient(f"{name}.up", dhidden)
    dx, dup_weight, dup_bias = linear_backward(dhidden, cache.up)
    return dx, {
        f"{name}.up.weight": dup_weight,
        f"{name}.up.bias": dup_bias,
        f"{name}.down.weight": ddown_weight,
        f"{name}.down.bias": ddown_bias,
    }
