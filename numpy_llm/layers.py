"""The layers that the model's parts are made of: each forward pass with its backward pass below it.

`y, cache = foo_forward(x, ...)` keeps in `cache`, a NamedTuple, what the backward pass needs and no more.
`dx, dweight, ... = foo_backward(dy, cache)` applies the chain rule: `dy` is the gradient of the loss with
respect to `y`, and each result has the shape of what it is the gradient of. Nothing writes to its arguments
but where it is told to. The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

from typing import NamedTuple

import numpy as np

from contract.randomness import DropoutKey, dropout_mask

# BLAS multiplies so few rows faster as columns. At GPT-2's shapes the products of a step take, in milliseconds on two
# cores: 40 instead of 65 for 4 rows, 52 for 74 at 16, 64 for 83 at 32, 81 for 95 at 48; at 64 small matrices lose.
# A single row takes 19 as it is.
FEW_ROWS = 48
_BLOCK = 1024  # columns of y computed at once, which the cache holds while they are turned


class EmbeddingCache(NamedTuple):
    tokens: np.ndarray
    shape: tuple[int, int]  # of the weight


def embedding_forward(tokens, weight):
    """Look up a row per token: y[b, t] = weight[tokens[b, t]].

    tokens: int (B, T); weight: float (V, C)
    returns: y float (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.4 (without its factor √C). Twin: torch_llm.layers.embedding
    """
    return weight[tokens], EmbeddingCache(tokens, weight.shape)


def embedding_backward(dy, cache):
    """A row's gradient is the sum over all places where its token stands.

        y[b, t] = weight[tokens[b, t]]   =>   dweight[v] = Σ dy[b, t] over all b, t with tokens[b, t] = v

    Assigning `dweight[tokens] = dy` would keep only the last place of a repeated token. Sorting brings equal
    tokens together, so that one `reduceat` sums each run.

    returns: dweight (V, C)
    """
    tokens, shape = cache.tokens, cache.shape
    dweight = np.zeros(shape, dy.dtype)
    order = np.argsort(tokens, axis=None, kind="stable")
    ordered = tokens.reshape(-1)[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    dweight[ordered[starts]] = np.add.reduceat(dy.reshape(-1, shape[1])[order], starts, axis=0)
    return dweight


class LinearCache(NamedTuple):
    rows: np.ndarray  # x as (N, in)
    weight: np.ndarray
    has_bias: bool


def linear_forward(x, weight, bias):
    """An affine map of the channels: y = x weightᵀ + bias.

    x: float (..., in); weight: float (out, in); bias: float (out,) or None
    returns: y (..., out), cache
    Twin: torch_llm.layers.linear
    """
    rows = x.reshape(-1, x.shape[-1])  # one large matrix product instead of B small ones
    few = 1 < len(rows) <= FEW_ROWS
    y = _few_rows(rows, weight) if few else rows @ weight.T  # (B·T, in) @ (in, out) -> (B·T, out)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], -1), LinearCache(rows, weight, bias is not None)


def _few_rows(rows, weight):
    """rows @ weightᵀ as (weight @ rowsᵀ)ᵀ, block by block. returns: y (N, out)"""
    y = np.empty((len(rows), len(weight)), np.result_type(rows, weight))
    for first in range(0, len(weight), _BLOCK):
        block = slice(first, first + _BLOCK)
        y[:, block] = (weight[block] @ rows.T).T  # (out, in) @ (in, N) -> (out, N)
    return y


def linear_backward(dy, cache):
    """Differentiate y[n, o] = Σ_i x[n, i] weight[o, i] + bias[o].

        dx[n, i]      = Σ_o dy[n, o] weight[o, i]     =>   dx = dy weight
        dweight[o, i] = Σ_n dy[n, o] x[n, i]          =>   dweight = dyᵀ x
        dbias[o]      = Σ_n dy[n, o]

    returns: dx (..., in), dweight (out, in), dbias (out,) or None
    """
    drows = dy.reshape(-1, dy.shape[-1])
    dx = drows @ cache.weight  # (B·T, out) @ (out, in) -> (B·T, in)
    dweight = drows.T @ cache.rows  # (out, B·T) @ (B·T, in) -> (out, in)
    dbias = sum_rows(drows) if cache.has_bias else None
    return dx.reshape(*dy.shape[:-1], -1), dweight, dbias


class DropoutCache(NamedTuple):
    mask: np.ndarray | None


def dropout_forward(x, rate, key: DropoutKey | None, site):
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate): y = x · mask.

    x: float (B, ...); key: what the mask is drawn from, None to leave x as it is (evaluation)
    site: the dotted name of this place in the model
    returns: y of the same shape, cache
    Source: Srivastava et al. 2014, section 4. Twin: torch_llm.layers.dropout
    """
    if key is None or rate == 0:
        return x, DropoutCache(None)
    mask = dropout_mask(key, site, x.shape, rate, x.dtype)
    return x * mask, DropoutCache(mask)


def dropout_backward(dy, cache):
    """dx = dy · mask; without a mask, dx = dy."""
    return dy if cache.mask is None else dy * cache.mask


def residual_forward(x, branch):
    """Add what a branch computed to the stream that it read: y = x + branch.

    x, branch: float (B, T, C); returns: y (B, T, C), cache
    Source: He et al. 2016, section 3.2. Twin: torch_llm.layers.residual
    """
    return x + branch, None


def residual_backward(dy, cache):
    """A sum passes its gradient to both: dx = dy, dbranch = dy; returns: dx, dbranch (B, T, C)"""
    return dy, dy


class ScaleCache(NamedTuple):
    factor: float


def scale_forward(x, factor):
    """Multiply by a constant: y = x · factor, as Gemma does with token embeddings, by √C.

    x: float, any shape; returns: y of the same shape, cache
    Source: Vaswani et al. 2017, section 3.4. Twin: torch_llm.layers.scale
    """
    return x * factor, ScaleCache(factor)


def scale_backward(dy, cache):
    """dx = dy · factor"""
    return dy * cache.factor


class SoftCapCache(NamedTuple):
    tanh: np.ndarray


def soft_cap_forward(x, cap):
    """Keep x between -cap and cap, smoothly: y = cap · tanh(x / cap).

    x: float, any shape; cap: float above 0; returns: y of the same shape, cache
    Source: Gemma Team 2024 (Gemma 2), section 2. Twin: torch_llm.layers.soft_cap
    """
    tanh = np.tanh(x / cap)
    return tanh * cap, SoftCapCache(tanh)


def soft_cap_backward(dy, cache):
    """The slope of tanh is 1 - tanh², and the two factors cap and 1 / cap cancel: dx = dy (1 - tanh²(x / cap))."""
    return dy * (1 - cache.tanh * cache.tanh)


def sum_rows(x):
    """Σ over the rows of (N, C), as a product with ones: BLAS adds faster than a reduction does."""
    return np.ones(x.shape[0], x.dtype) @ x
