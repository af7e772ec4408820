"""The layers that the model's parts are made of: each forward pass with its backward pass below it.

`y, cache = foo_forward(x, ...)` keeps in `cache`, a NamedTuple, what the backward pass needs and no more.
`dx, dweight, ... = foo_backward(dy, cache)` applies the chain rule: `dy` is the gradient of the loss with
respect to `y`, and each result has the shape of what it is the gradient of. Nothing writes to its arguments
but where it is told to. The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

from typing import NamedTuple

import numpy as np

from contract.randomness import DropoutKey, dropout_mask
from numpy_llm.threads import product


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


class EmbeddingGradient(NamedTuple):
    """The gradient of an embedding's weight before its rows are added up: what `embedding_weight_gradient` takes."""

    dy: np.ndarray  # (N, C)
    tokens: np.ndarray  # (N,)


def embedding_weight_gradient(dy, tokens):
    """Add up the rows of dy whose tokens are equal.

    dy: float (N, C); tokens: int (N,)
    returns: the tokens that occur (n,), their sums (n, C): the gradient's other rows are 0
    """
    order = np.argsort(tokens, kind="stable")
    ordered = tokens[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[starts], np.add.reduceat(dy[order], starts, axis=0)


def embedding_backward(dy, cache, later=False):
    """A row's gradient is the sum over all places where its token stands.

        y[b, t] = weight[tokens[b, t]]   =>   dweight[v] = Σ dy[b, t] over all b, t with tokens[b, t] = v

    Assigning `dweight[tokens] = dy` would keep only the last place of a repeated token. Sorting brings equal
    tokens together, so that one `reduceat` sums each run.

    later: leave the sum to `numpy_llm.gradients`, which takes it for all parts of a batch at once
    returns: dweight (V, C), or what it will be made of
    """
    made_of = EmbeddingGradient(dy.reshape(-1, cache.shape[1]), cache.tokens.reshape(-1))
    if later:
        return made_of
    dweight = np.zeros(cache.shape, dy.dtype)
    rows, sums = embedding_weight_gradient(*made_of)
    dweight[rows] = sums
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
    y = product(rows, weight.T, bias=bias)  # (B·T, in) @ (in, out) -> (B·T, out)
    return y.reshape(*x.shape[:-1], -1), LinearCache(rows, weight, bias is not None)


class LinearGradient(NamedTuple):
    """The gradient of a linear weight before its product is taken: what `linear_weight_gradient` takes."""

    dy: np.ndarray  # (N, out)
    x: np.ndarray  # (N, in)


def linear_weight_gradient(dy, x, out=None):
    """dweight[o, i] = Σ_n dy[n, o] x[n, i]: (out, N) @ (N, in) -> (out, in)"""
    return product(dy.T, x, out=out)


def linear_backward(dy, cache, later=False):
    """Differentiate y[n, o] = Σ_i x[n, i] weight[o, i] + bias[o].

        dx[n, i]      = Σ_o dy[n, o] weight[o, i]     =>   dx = dy weight
        dweight[o, i] = Σ_n dy[n, o] x[n, i]          =>   dweight = dyᵀ x
        dbias[o]      = Σ_n dy[n, o]

    later: leave dweight's product to `numpy_llm.gradients`, which takes it for all parts of a batch
    returns: dx (..., in), dweight (out, in), or what it will be made of, dbias (out,) or None
    """
    drows = dy.reshape(-1, dy.shape[-1])
    dx = product(drows, cache.weight)  # (B·T, out) @ (out, in) -> (B·T, in)
    dweight = LinearGradient(drows, cache.rows) if later else linear_weight_gradient(drows, cache.rows)
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
