"""Norms: what keeps each token's channels on one scale.

The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

import torch
import torch.nn.functional as F
from torch import nn

from contract.components import weight_roles
from contract.trace import NO_TRACE
from torch_llm.precision import full_precision


def layer_norm(x, weight, bias, eps):
    """Give each token's channels mean 0 and variance 1, then scale and shift them.

        normal = (x - mean(x)) / √(var(x) + eps),   y = normal · weight + bias

    Mean and (biased) variance run over the C channels of one token.

    x: float (..., C); weight: float (C,); bias: float (C,) or None; eps: float, inside the root
    returns: y (..., C)
    Source: Ba et al. 2016, section 3, equation 4.
    Twin: numpy_llm.norms.layer_norm_forward and layer_norm_backward
    """
    return F.layer_norm(full_precision(x), weight.shape, weight, bias, eps)


def rms_norm(x, weight, eps):
    """Give each token's channels root mean square 1, then scale them; the mean is left as it is.

        normal = x / √(mean(x²) + eps),   y = normal · weight

    The mean runs over the C channels of one token.

    x: float (..., C); weight: float (C,); eps: float, inside the root
    returns: y (..., C)
    Source: Zhang & Sennrich 2019, section 3, equation 4.
    Twin: numpy_llm.norms.rms_norm_forward and rms_norm_backward
    """
    return F.rms_norm(full_precision(x), weight.shape, weight, eps)


def rms_norm_plus_one(x, weight, eps):
    """RMS norm whose weight is the distance of the factor from 1.

        normal = x / √(mean(x²) + eps),   y = normal · (1 + weight)

    x: float (..., C); weight: float (C,); eps: float, inside the root
    returns: y (..., C)
    Source: Gemma Team 2024, section 2, and its published code.
    Twin: numpy_llm.norms.rms_norm_plus_one_forward and rms_norm_plus_one_backward
    """
    return rms_norm(x, 1 + weight, eps)


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm, "rms_norm_plus_one": rms_norm_plus_one}


class Norm(nn.Module):
    """The norm called `name`, of the kind that the configuration names.

    Twin: numpy_llm.norms.norm_forward and norm_backward
    """

    def __init__(self, name, config, width=None):
        """width: of what it works on, None for C"""
        super().__init__()
        self.name, self.config, self.roles = name, config, weight_roles("norm", config.norm)
        for role in self.roles:
            absent = role == "bias" and not config.bias
            self.register_parameter(
                role, None if absent else nn.Parameter(torch.empty(width or config.d_model))
            )

    def forward(self, x, trace=NO_TRACE):
        """x: float (..., width); returns: y of the same shape"""
        weights = (getattr(self, role) for role in self.roles)
        y = NORMS[self.config.norm](x, *weights, self.config.norm_eps)
        trace.record(self.name, y)
        return y
