"""The projections of a block: a linear layer, and beside it a low-rank pair where the configuration has one.

The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

import torch
from torch import nn

from contract.components import rows, shape
from contract.trace import NO_TRACE
from torch_llm.layers import linear


def low_rank(base, x, a, b, scale):
    """Add to what a linear layer made of x a second path, through R channels: y = base + scale · (x aᵀ) bᵀ.

    Two thin products in the place of one with the matrix scale · b a, whose rank is R.

    base: float (..., out); x: float (..., in); a: float (R, in); b: float (out, R); scale: alpha / R
    returns: y (..., out)
    Source: Hu et al. 2021, equation 3 and section 4.1.
    Twin: numpy_llm.projection.low_rank_forward and low_rank_backward
    """
    return base + linear(linear(x, a, None) * scale, b, None)


class Projection(nn.Module):
    """The linear layer called `name`, and the low-rank pair beside it where the configuration has one.

        y = x Wᵀ + bias                                 without a pair
        y = x Wᵀ + bias + (alpha / R) · (x Aᵀ) Bᵀ       with one

    name: the layer's place in the model, such as "blocks.0.feed_forward.up"
    Source: Hu et al. 2021, section 4.1. Twin: numpy_llm.projection.projection_forward and projection_backward
    """

    def __init__(self, name, config):
        super().__init__()
        self.name, self.config = name, config
        for role in ("weight", "bias", "lora_a", "lora_b"):
            weight = f"{name}.{role}"
            here = weight in rows(config)
            self.register_parameter(role, nn.Parameter(torch.empty(shape(config, weight))) if here else None)

    def forward(self, x, trace=NO_TRACE, *, traced=True):
        """x: float (..., in); traced: whether a trace keeps y, under `name`; returns: y (..., out)"""
        y = linear(x, self.weight, self.bias)
        if self.lora_a is not None:
            y = low_rank(y, x, self.lora_a, self.lora_b, self.config.lora_scale)
        if traced:
            trace.record(self.name, y)
        return y
