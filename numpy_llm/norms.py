"""Norms: what keeps each token's channels on one scale.

The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from contract.components import weight_roles
from contract.trace import NO_TRACE
from numpy_llm.layers import sum_rows


class LayerNormCache(NamedTuple):
    normal: np.ndarray  # x with mean 0 and variance 1
    inverse_deviation: np.ndarray  # (..., 1)
    weight: np.ndarray
    has_bias: bool


def layer_norm_forward(x, weight, bias, eps):
    """Give each token's channels mean 0 and variance 1, then scale and shift them.

        normal = (x - mean(x)) / √(var(x) + eps),   y = normal · weight + bias

    Mean and (biased) variance run over the C channels of one token.

    x: float (..., C); weight: float (C,); bias: float (C,) or None; eps: float, inside the root
    returns: y (..., C), cache
    Source: Ba et al. 2016, section 3, equation 4. Twin: torch_llm.norms.layer_norm
    """
    normal = x - _mean_channels(x)
    inverse_deviation = 1 / np.sqrt(_mean_channels(normal, normal) + eps)
    normal *= inverse_deviation
    y = normal * weight
    if bias is not None:
        y += bias
    return y, LayerNormCache(normal, inverse_deviation, weight, bias is not None)


def layer_norm_backward(dy, cache):
    """Differentiate through the scaling, the mean and the variance.

    With n = normal, s = inverse_deviation and m the mean over channels:

        y = n · weight + bias     =>   dn = dy · weight,  dweight = Σ dy · n,  dbias = Σ dy  (over B, T)
        n = (x - m(x)) s          =>   a step in x[j] moves every n[i] of its token, in three ways:
                                       ∂n[i]/∂x[j] = s (δ[i, j]  -  1/C  -  n[i] n[j] / C)
                                            the value itself,  through m(x),  through s

    Multiplying by dn[i] and summing over i gives dx = s (dn - m(dn) - n · m(dn · n)).

    returns: dx (..., C), dweight (C,), dbias (C,) or None
    """
    normal, inverse_deviation, weight = cache.normal, cache.inverse_deviation, cache.weight
    C = weight.shape[0]
    dweight = np.einsum("nc,nc->c", dy.reshape(-1, C), normal.reshape(-1, C))
    dbias = sum_rows(dy.reshape(-1, C)) if cache.has_bias else None
    dx = dy * weight  # this is dn; the next lines turn it into dx in place
    through_deviation = normal * _mean_channels(dx, normal)
    dx -= _mean_channels(dx)
    dx -= through_deviation
    dx *= inverse_deviation
    return dx, dweight, dbias


class RMSNormCache(NamedTuple):
    normal: np.ndarray  # x with root mean square 1
    inverse_rms: np.ndarray  # (..., 1)
    weight: np.ndarray


def rms_norm_forward(x, weight, eps):
    """Give each token's channels root mean square 1, then scale them; the mean is left as it is.

        normal = x / √(mean(x²) + eps),   y = normal · weight

    The mean runs over the C channels of one token.

    x: float (..., C); weight: float (C,); eps: float, inside the root
    returns: y (..., C), cache
    Source: Zhang & Sennrich 2019, section 3, equation 4. Twin: torch_llm.norms.rms_norm
    """
    inverse_rms = 1 / np.sqrt(_mean_channels(x, x) + eps)
    normal = x * inverse_rms
    return normal * weight, RMSNormCache(normal, inverse_rms, weight)


def rms_norm_backward(dy, cache):
    """Differentiate through the scaling and the root mean square.

    With n = normal, s = inverse_rms and m the mean over channels:

        y = n · weight            =>   dn = dy · weight,  dweight = Σ dy · n  (over B, T)
        n = x s,  s = 1 / √(m(x²) + eps)
                                  =>   a step in x[j] moves every n[i] of its token, in two ways:
                                       ∂n[i]/∂x[j] = s (δ[i, j]  -  n[i] n[j] / C)
                                            the value itself,  through s

    Multiplying by dn[i] and summing over i gives dx = s (dn - n · m(dn · n)).

    returns: dx (..., C), dweight (C,)
    """
    normal, C = cache.normal, cache.weight.shape[0]
    dweight = np.einsum("nc,nc->c", dy.reshape(-1, C), normal.reshape(-1, C))
    dx = dy * cache.weight  # this is dn; the next lines turn it into dx in place
    dx -= normal * _mean_channels(dx, normal)
    dx *= cache.inverse_rms
    return dx, dweight


def rms_norm_plus_one_forward(x, weight, eps):
    """RMS norm whose weight is the distance of the factor from 1.

        normal = x / √(mean(x²) + eps),   y = normal · (1 + weight)

    Stored in 16 bits, a weight near 0 is rounded less than a factor near 1.

    x: float (..., C); weight: float (C,); eps: float, inside the root
    returns: y (..., C), cache
    Source: Gemma Team 2024, section 2, and its published code. Twin: torch_llm.norms.rms_norm_plus_one
    """
    return rms_norm_forward(x, 1 + weight, eps)


def rms_norm_plus_one_backward(dy, cache):
    """The slope of 1 + weight is 1, so the gradients are those of RMS norm with the factor 1 + weight.

    returns: dx (..., C), dweight (C,)
    """
    return rms_norm_backward(dy, cache)


def _mean_channels(x, other=None):
    """The mean over channels of x, or of x · other, kept as (..., 1): one pass, nothing stored between."""
    total = np.einsum("...c->...", x) if other is None else np.einsum("...c,...c->...", x, other)
    return (total / x.shape[-1])[..., None]


NORMS = {
    "layer_norm": (layer_norm_forward, layer_norm_backward),
    "rms_norm": (rms_norm_forward, rms_norm_backward),
    "rms_norm_plus_one": (rms_norm_plus_one_forward, rms_norm_plus_one_backward),
}


class NormCache(NamedTuple):
    names: list[str]  # of its weights, in the order of the pair's arguments
    name: str
    backward: Callable
    cache: NamedTuple


def norm_forward(x, weights, name, config, trace=NO_TRACE):
    """The norm called `name`, of the kind that the configuration names.

    x: float (..., C); weights: mapping that holds this norm's under `name`, such as "blocks.0.norm_1"
    returns: y (..., C), cache
    Twin: torch_llm.norms.Norm
    """
    forward, backward = NORMS[config.norm]
    names = [f"{name}.{role}" for role in weight_roles("norm", config.norm)]
    arguments = x, *map(weights.get, names), config.norm_eps
    y, cache = forward(*arguments)
    trace.record(name, y, config.norm, *arguments)
    return y, NormCache(names, name, backward, cache)


def norm_backward(dy, cache, trace=NO_TRACE):
    """The forward pass reversed. returns: dx (..., C), gradients by weight name"""
    trace.record_gradient(cache.name, dy)
    dx, *gradients = cache.backward(dy, cache.cache)
    return dx, dict(zip(cache.names, gradients, strict=True))
