"""The feed-forward layer and its activations.

The dimension letters are explained in `contract/config.py`.
"""

import torch.nn.functional as F
from torch import nn

from contract.trace import NO_TRACE
from torch_llm.projection import Projection


def relu(x):
    """y = max(x, 0).

    x: float, any shape; returns: y of the same shape
    Source: Vaswani et al. 2017, equation 2. Twin: numpy_llm.feed_forward.relu_forward and relu_backward
    """
    return F.relu(x)


def gelu_tanh(x):
    """The tanh form of the Gaussian error linear unit: y = x/2 · (1 + tanh(u)), u = √(2/π) (x + 0.044715 x³).

    x: float, any shape; returns: y of the same shape
    Source: Hendrycks & Gimpel 2016, section 2; the form that GPT-2 was trained with, not the exact erf.
    Twin: numpy_llm.feed_forward.gelu_tanh_forward and gelu_tanh_backward
    """
    return F.gelu(x, approximate="tanh")


def silu(x):
    """The sigmoid linear unit, also called swish: y = x σ, σ = 1 / (1 + exp(-x)).

    x: float, any shape; returns: y of the same shape
    Source: Hendrycks & Gimpel 2016, section 2. Twin: numpy_llm.feed_forward.silu_forward and silu_backward
    """
    return F.silu(x)


ACTIVATIONS = {"relu": relu, "gelu_tanh": gelu_tanh, "silu": silu}


def gate(active, up):
    """Let each hidden channel through as far as its gate is open: y = active · up.

    active: float (B, T, F), the activation of the gate; up: float (B, T, F)
    returns: y (B, T, F)
    Source: Shazeer 2020, equation 6. Twin: numpy_llm.feed_forward.gate_forward and gate_backward
    """
    return active * up


class TwoLayers(nn.Module):
    """Widen each token to F channels, apply the activation, and narrow it to C again.

        y = activation(x W_upᵀ + b_up) W_downᵀ + b_down

    name: the layer's place in the model, such as "blocks.0.feed_forward"
    Source: Vaswani et al. 2017, section 3.3.
    Twin: numpy_llm.feed_forward.two_layers_forward and two_layers_backward
    """

    def __init__(self, name, config):
        super().__init__()
        self.name, self.config = name, config
        self.up = Projection(f"{name}.up", config)
        self.down = Projection(f"{name}.down", config)

    def forward(self, x, trace=NO_TRACE):
        """x: float (B, T, C); returns: y (B, T, C)"""
        name, activation = self.name, ACTIVATIONS[self.config.activation]
        hidden = self.up(x, trace)
        active = activation(hidden)
        trace.record(f"{name}.activation", active)
        return self.down(active, trace)


class Gated(nn.Module):
    """Widen each token to F channels, let each through as far as its gate is open, and narrow it to C again.

        y = (activation(x W_gateᵀ + b_gate) · (x W_upᵀ + b_up)) W_downᵀ + b_down

    With "silu" this is SwiGLU, with "gelu_tanh" GeGLU.

    name: the layer's place in the model, such as "blocks.0.feed_forward"
    Source: Shazeer 2020, equation 6. Twin: numpy_llm.feed_forward.gated_forward and gated_backward
    """

    def __init__(self, name, config):
        super().__init__()
        self.name, self.config = name, config
        self.gate = Projection(f"{name}.gate", config)
        self.up = Projection(f"{name}.up", config)
        self.down = Projection(f"{name}.down", config)

    def forward(self, x, trace=NO_TRACE):
        """x: float (B, T, C); returns: y (B, T, C)"""
        name, activation = self.name, ACTIVATIONS[self.config.activation]
        hidden = self.gate(x, trace)
        active = activation(hidden)
        trace.record(f"{name}.activation", active)
        gated = gate(active, self.up(x, trace))
        trace.record(f"{name}.gated", gated)
        return self.down(gated, trace)


FEED_FORWARDS = {"two_layers": TwoLayers, "gated": Gated}
