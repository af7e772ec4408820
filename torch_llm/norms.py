"""Norms: what keeps each token's channels on one scale.

The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

import torch.nn.functional as F
from torch import nn

from contract.trace import NO_TRACE


def layer_norm(x, weight, bias, eps):
    """Give each token's channels mean 0 and variance 1, then scale and shift them.

        normal = (x - mean(x)) / √(var(x) + eps),   y = normal · weight + bias

    Mean and (biased) variance run over the C channels of one token.

    x: float (..., C); weight: float (C,); bias: float (C,) or None; eps: float, inside the root
    returns: y (..., C)
    Source: Ba et al. 2016, section 3, equation 4.
    Twin: numpy_llm.norms.layer_norm_forward and layer_norm_backward
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)


NORMS = {"layer_norm": layer_norm}


class Norm(nn.LayerNorm):
    """The norm called `name`. Twin: numpy_llm.norms.norm_forward and norm_backward"""

    def __init__(self, name, config):
        super().__init__(config.d_model, config.norm_eps, bias=config.bias)
        self.name = name

    def forward(self, x, trace=NO_TRACE):
        """x: float (B, T, C); returns: y (B, T, C)"""
        y = NORMS["layer_norm"](x, self.weight, self.bias, self.eps)
        trace.record(self.name, y)
        return y
