"""The projections of a block: a linear layer, and beside it a low-rank pair where the configuration has one.

The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

from typing import NamedTuple

import numpy as np

from contract.trace import NO_TRACE
from numpy_llm.layers import (
    LinearCache,
    LinearGradient,
    linear_backward,
    linear_forward,
    linear_weight_gradient,
)
from numpy_llm.threads import product


class LowRankCache(NamedTuple):
    rows: np.ndarray  # x as (N, in)
    a: np.ndarray
    b: np.ndarray
    narrow: np.ndarray  # (N, R)
    scale: float


def low_rank_forward(base, x, a, b, scale):
    """Add to what a linear layer made of x a second path, through R channels: y = base + scale · (x aᵀ) bᵀ.

    Two thin products in the place of one with the matrix scale · b a, whose rank is R.

    base: float (..., out); x: float (..., in); a: float (R, in); b: float (out, R); scale: alpha / R
    returns: y (..., out), cache
    Source: Hu et al. 2021, equation 3 and section 4.1. Twin: torch_llm.projection.low_rank
    """
    rows = x.reshape(-1, x.shape[-1])
    narrow = product(rows, a.T)  # (N, in) @ (in, R) -> (N, R)
    narrow *= scale  # here it takes R numbers a token, elsewhere as many as x or y has
    y = product(narrow, b.T)  # (N, R) @ (R, out) -> (N, out)
    y += base.reshape(y.shape)
    return y.reshape(base.shape), LowRankCache(rows, a, b, narrow, scale)


def low_rank_backward(dy, cache, later=False):
    """Differentiate narrow = scale · x aᵀ and y = base + narrow bᵀ.

        dbase   = dy
        db      = dyᵀ narrow
        dnarrow = dy b
        da      = scale · dnarrowᵀ x
        dx      = scale · dnarrow a

    later: as in `linear_backward`
    returns: dbase (..., out), dx (..., in), da (R, in), db (out, R)
    """
    drows = dy.reshape(-1, dy.shape[-1])
    dnarrow = product(drows, cache.b)  # (N, out) @ (out, R) -> (N, R)
    dnarrow *= cache.scale  # narrow = scale · x aᵀ: a factor of da and dx alike
    dx = product(dnarrow, cache.a)  # (N, R) @ (R, in) -> (N, in)
    gradients = LinearGradient(dnarrow, cache.rows), LinearGradient(drows, cache.narrow)
    da, db = gradients if later else (linear_weight_gradient(*each) for each in gradients)
    return dy, dx.reshape(*dy.shape[:-1], -1), da, db


class ProjectionCache(NamedTuple):
    name: str
    linear: LinearCache
    low_rank: LowRankCache | None


def projection_forward(x, weights, name, config, trace=NO_TRACE, *, traced=True):
    """The linear layer called `name`, and the low-rank pair beside it where the configuration has one.

        y = x Wᵀ + bias                                 without a pair
        y = x Wᵀ + bias + (alpha / R) · (x Aᵀ) Bᵀ       with one

    x: float (..., in); weights: mapping that holds this layer's under `name`, such as "blocks.0.feed_forward.up"
    traced: whether a trace keeps y, under `name`
    returns: y (..., out), cache
    Source: Hu et al. 2021, section 4.1. Twin: torch_llm.projection.Projection
    """
    parameters = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    record = trace.record if traced else trace.note
    y, linear_cache = linear_forward(x, *parameters)
    if (a := weights.get(f"{name}.lora_a")) is None:
        record(name, y, "linear", x, *parameters)
        return y, ProjectionCache(name, linear_cache, None)
    trace.note(f"{name}.base", y, "linear", x, *parameters)
    pair = a, weights[f"{name}.lora_b"], config.lora_scale
    adapted, low_rank_cache = low_rank_forward(y, x, *pair)
    record(name, adapted, "low_rank", y, x, *pair)
    return adapted, ProjectionCache(name, linear_cache, low_rank_cache)


def projection_backward(dy, cache, trace=NO_TRACE, later=False, *, traced=True):
    """Both paths read x, so their gradients of it are added.

    later: as in `linear_backward`
    returns: dx (..., in), gradients by weight name (None for an absent bias)
    """
    name, gradients = cache.name, {}
    if traced:
        trace.record_gradient(name, dy)
    if cache.low_rank is not None:
        dy, dx_low_rank, da, db = low_rank_backward(dy, cache.low_rank, later=later)
        gradients = {f"{name}.lora_a": da, f"{name}.lora_b": db}
    dx, dweight, dbias = linear_backward(dy, cache.linear, later=later)
    if cache.low_rank is not None:
        dx += dx_low_rank
    return dx, {f"{name}.weight": dweight, f"{name}.bias": dbias} | gradients
