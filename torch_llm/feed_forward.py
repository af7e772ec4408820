"""The feed-forward layer and its activations.

The dimension letters are explained in `contract/config.py`.
"""

import torch.nn.functional as F
from torch import nn

from contract.trace import NO_TRACE
from torch_llm.layers import linear


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


ACTIVATIONS = {"relu": relu, "gelu_tanh": gelu_tanh}


class FeedForward(nn.Module):
    """Widen each token to F channels, apply the activation, and narrow it to C again.

        y = activation(x W_upᵀ + b_up) W_downᵀ + b_down

    name: the layer's place in the model, such as "blocks.0.feed_forward"
    Source: Vaswani et al. 2017, section 3.3.
    Twin: numpy_llm.feed_forward.feed_forward_forward and feed_forward_backward
    """

    def __init__(self, name, config):
        super().__init__()
        self.name, self.config = name, config
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x, trace=NO_TRACE):
        """x: float (B, T, C); returns: y (B, T, C)"""
        name, activation = self.name, ACTIVATIONS[self.config.activation]
        hidden = linear(x, self.up.weight, self.up.bias)
        trace.record(f"{name}.up", hidden)
        active = activation(hidden)
        trace.record(f"{name}.activation", active)
        y = linear(active, self.down.weight, self.down.bias)
        trace.record(f"{name}.down", y)
        return y
