"""The feed-forward layer and its activations, forward and backward.

The dimension letters are explained in `contract/config.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from contract.trace import NO_TRACE
from numpy_llm.projection import ProjectionCache, projection_backward, projection_forward
from numpy_llm.threads import in_pieces


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


@in_pieces(GELUCache)
def gelu_tanh_forward(x):
    """The tanh form of the Gaussian error linear unit: y = x g, g = (1 + tanh(u)) / 2, u = √(2/π) (x + 0.044715 x³).

    Fused: the derivative is computed here, while g is at hand, and kept instead of x and g. As the slope of tanh is
    1 - tanh², that of g is dg/du = (1 - tanh²(u)) / 2 = 2 g (1 - g), and

        dy/dx = g + x dg/dx = g + y (1 - g) · 2 du/dx,   du/dx = √(2/π) (1 + 3 · 0.044715 x²)

    x: float, any shape; returns: y of the same shape, cache
    Source: Hendrycks & Gimpel 2016, section 2; the form that GPT-2 was trained with, not the exact erf.
    Twin: torch_llm.feed_forward.gelu_tanh
    """
    x_squared = x * x
    gate = x_squared * (_GELU_SLOPE * _GELU_CUBIC)
    gate += _GELU_SLOPE
    gate *= x  # this is u; the next lines turn it into g in place
    np.tanh(gate, out=gate)
    gate *= 0.5
    gate += 0.5
    y = x * gate
    slope = x_squared
    slope *= 6 * _GELU_SLOPE * _GELU_CUBIC
    slope += 2 * _GELU_SLOPE  # this is 2 du/dx
    slope *= y
    slope *= 1 - gate
    slope += gate
    return y, GELUCache(slope)


def gelu_tanh_backward(dy, cache):
    """dx = dy · dy/dx, the slope that the forward pass kept."""
    return dy * cache.slope


class SiLUCache(NamedTuple):
    slope: np.ndarray  # dy/dx


@in_pieces(SiLUCache)
def silu_forward(x):
    """The sigmoid linear unit, also called swish: y = x σ, σ = 1 / (1 + exp(-x)).

    Fused: the derivative is computed here, while σ is at hand, and kept instead of x and σ.

        dy/dx = σ + x σ (1 - σ) = σ + y (1 - σ)

    x: float, any shape; returns: y of the same shape, cache
    Source: Hendrycks & Gimpel 2016, section 2. Twin: torch_llm.feed_forward.silu
    """
    sigmoid = 0.5 * x
    np.tanh(sigmoid, out=sigmoid)  # σ(x) = (1 + tanh(x / 2)) / 2, which cannot overflow
    sigmoid += 1
    sigmoid *= 0.5
    y = x * sigmoid
    return y, SiLUCache(sigmoid + y * (1 - sigmoid))


def silu_backward(dy, cache):
    """dx = dy · dy/dx, the slope that the forward pass kept."""
    return dy * cache.slope


ACTIVATIONS = {
    "relu": (relu_forward, relu_backward),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "silu": (silu_forward, silu_backward),
}


class GateCache(NamedTuple):
    active: np.ndarray
    up: np.ndarray


def gate_forward(active, up):
    """Let each hidden channel through as far as its gate is open: y = active · up.

    active: float (B, T, F), the activation of the gate; up: float (B, T, F)
    returns: y (B, T, F), cache
    Source: Shazeer 2020, equation 6. Twin: torch_llm.feed_forward.gate
    """
    return active * up, GateCache(active, up)


def gate_backward(dy, cache):
    """The product rule: dactive = dy · up, dup = dy · active; returns: dactive, dup (B, T, F)"""
    return dy * cache.up, dy * cache.active


class TwoLayersCache(NamedTuple):
    name: str
    up: ProjectionCache
    activation_backward: Callable
    activation: NamedTuple
    down: ProjectionCache


def two_layers_forward(x, weights, name, config, trace=NO_TRACE):
    """Widen each token to F channels, apply the activation, and narrow it to C again.

        y = activation(x W_upᵀ + b_up) W_downᵀ + b_down

    x: float (B, T, C); weights: mapping that holds this layer's under `name`, such as "blocks.0.feed_forward"
    returns: y (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.3. Twin: torch_llm.feed_forward.TwoLayers
    """
    activation_forward, activation_backward = ACTIVATIONS[config.activation]
    hidden, up_cache = projection_forward(x, weights, f"{name}.up", config, trace)
    active, activation_cache = activation_forward(hidden)
    trace.record(f"{name}.activation", active, config.activation, hidden)
    y, down_cache = projection_forward(active, weights, f"{name}.down", config, trace)
    return y, TwoLayersCache(name, up_cache, activation_backward, activation_cache, down_cache)


def two_layers_backward(dy, cache, trace=NO_TRACE, later=False):
    """The forward pass reversed. later: as in `linear_backward`; returns: dx (B, T, C), gradients by weight name"""
    name = cache.name
    dactive, down_gradients = projection_backward(dy, cache.down, trace, later)
    trace.record_gradient(f"{name}.activation", dactive)
    dhidden = cache.activation_backward(dactive, cache.activation)
    dx, up_gradients = projection_backward(dhidden, cache.up, trace, later)
    return dx, up_gradients | down_gradients


class GatedCache(NamedTuple):
    name: str
    gate: ProjectionCache
    activation_backward: Callable
    activation: NamedTuple
    up: ProjectionCache
    product: GateCache
    down: ProjectionCache


def gated_forward(x, weights, name, config, trace=NO_TRACE):
    """Widen each token to F channels, let each through as far as its gate is open, and narrow it to C again.

        y = (activation(x W_gateᵀ + b_gate) · (x W_upᵀ + b_up)) W_downᵀ + b_down

    With "silu" this is SwiGLU, with "gelu_tanh" GeGLU.

    x: float (B, T, C); weights: mapping that holds this layer's under `name`, such as "blocks.0.feed_forward"
    returns: y (B, T, C), cache
    Source: Shazeer 2020, equation 6. Twin: torch_llm.feed_forward.Gated
    """
    activation_forward, activation_backward = ACTIVATIONS[config.activation]
    hidden, gate_cache = projection_forward(x, weights, f"{name}.gate", config, trace)
    active, activation_cache = activation_forward(hidden)
    trace.record(f"{name}.activation", active, config.activation, hidden)
    up, up_cache = projection_forward(x, weights, f"{name}.up", config, trace)
    gated, product_cache = gate_forward(active, up)
    trace.record(f"{name}.gated", gated, "gate", active, up)
    y, down_cache = projection_forward(gated, weights, f"{name}.down", config, trace)
    return y, GatedCache(
        name, gate_cache, activation_backward, activation_cache, up_cache, product_cache, down_cache
    )


def gated_backward(dy, cache, trace=NO_TRACE, later=False):
    """The forward pass reversed; both layers read x, so their gradients of it are added.

    later: as in `linear_backward`
    returns: dx (B, T, C), gradients by weight name
    """
    name = cache.name
    dgated, down_gradients = projection_backward(dy, cache.down, trace, later)
    trace.record_gradient(f"{name}.gated", dgated)
    dactive, dup = gate_backward(dgated, cache.product)
    dx, up_gradients = projection_backward(dup, cache.up, trace, later)
    trace.record_gradient(f"{name}.activation", dactive)
    dhidden = cache.activation_backward(dactive, cache.activation)
    dx_gate, gate_gradients = projection_backward(dhidden, cache.gate, trace, later)
    dx += dx_gate
    return dx, gate_gradients | up_gradients | down_gradients


FEED_FORWARDS = {
    "two_layers": (two_layers_forward, two_layers_backward),
    "gated": (gated_forward, gated_backward),
}
