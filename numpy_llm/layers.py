"""The model's layers: each forward pass with its backward pass below it.

`y, cache = foo_forward(x, ...)` keeps in `cache` what the backward pass needs and no more.
`dx, dweight, ... = foo_backward(dy, cache)` applies the chain rule: `dy` is the gradient of the loss with
respect to `y`, and each result has the shape of what it is the gradient of. Nothing writes to its arguments.
The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

import numpy as np

from contract.randomness import DropoutKey, dropout_mask


def embedding_forward(tokens, weight):
    """Look up a row per token: y[b, t] = weight[tokens[b, t]].

    tokens: int (B, T); weight: float (V, C)
    returns: y float (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.4 (without its factor √C). Twin: torch_llm.layers.embedding
    """
    return weight[tokens], (tokens, weight.shape)


def embedding_backward(dy, cache):
    """A row's gradient is the sum over all places where its token stands.

        y[b, t] = weight[tokens[b, t]]   =>   dweight[v] = Σ dy[b, t] over all b, t with tokens[b, t] = v

    Assigning `dweight[tokens] = dy` would keep only the last place of a repeated token. Sorting brings equal
    tokens together, so that one `reduceat` sums each run.

    returns: dweight (V, C)
    """
    tokens, shape = cache
    dweight = np.zeros(shape, dy.dtype)
    order = np.argsort(tokens, axis=None, kind="stable")
    ordered = tokens.reshape(-1)[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    dweight[ordered[starts]] = np.add.reduceat(dy.reshape(-1, shape[1])[order], starts, axis=0)
    return dweight


def sinusoidal_positions(context_length, d_model, dtype):
    """The fixed table of position encodings: a sine and a cosine for each of C/2 wavelengths.

        table[t, 2i] = sin(t / 10000^(2i/C)),   table[t, 2i+1] = cos(t / 10000^(2i/C))

    returns: dtype (context_length, d_model)
    Source: Vaswani et al. 2017, section 3.5. Twin: torch_llm.layers.sinusoidal_positions
    """
    t = np.arange(context_length)[:, None]
    angle = t / 10000 ** (np.arange(0, d_model, 2) / d_model)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(context_length, d_model).astype(dtype)


def position_forward(x, table, start=0):
    """Add to each token the encoding of its place: y[b, t] = x[b, t] + table[start + t].

    x: float (B, T, C); table: float (context_length, C), fixed or learned; start: place of the first token
    returns: y (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.5. Twin: torch_llm.layers.position
    """
    T = x.shape[1]
    return x + table[start : start + T], (T, start, table.shape)


def position_backward(dy, cache):
    """Every sequence of the batch adds the same row, so the row's gradient sums over the batch.

        y[b, t] = x[b, t] + table[start + t]   =>   dx = dy,   dtable[start + t] = Σ_b dy[b, t]

    returns: dx (B, T, C), dtable (context_length, C)
    """
    T, start, shape = cache
    dtable = np.zeros(shape, dy.dtype)
    dtable[start : start + T] = dy.sum(axis=0)
    return dy, dtable


def linear_forward(x, weight, bias):
    """An affine map of the channels: y = x weightᵀ + bias.

    x: float (..., in); weight: float (out, in); bias: float (out,) or None
    returns: y (..., out), cache
    Twin: torch_llm.layers.linear
    """
    rows = x.reshape(-1, x.shape[-1])  # one large matrix product instead of B small ones
    y = rows @ weight.T  # (B·T, in) @ (in, out) -> (B·T, out)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], -1), (rows, weight, bias is not None)


def linear_backward(dy, cache):
    """Differentiate y[n, o] = Σ_i x[n, i] weight[o, i] + bias[o].

        dx[n, i]      = Σ_o dy[n, o] weight[o, i]     =>   dx = dy weight
        dweight[o, i] = Σ_n dy[n, o] x[n, i]          =>   dweight = dyᵀ x
        dbias[o]      = Σ_n dy[n, o]

    returns: dx (..., in), dweight (out, in), dbias (out,) or None
    """
    rows, weight, has_bias = cache
    drows = dy.reshape(-1, dy.shape[-1])
    dx = drows @ weight  # (B·T, out) @ (out, in) -> (B·T, in)
    dweight = drows.T @ rows  # (out, B·T) @ (B·T, in) -> (out, in)
    dbias = _sum_rows(drows) if has_bias else None
    return dx.reshape(*dy.shape[:-1], -1), dweight, dbias


def layer_norm_forward(x, weight, bias, eps):
    """Give each token's channels mean 0 and variance 1, then scale and shift them.

        normal = (x - mean(x)) / √(var(x) + eps),   y = normal · weight + bias

    Mean and (biased) variance run over the C channels of one token.

    x: float (..., C); weight: float (C,); bias: float (C,) or None; eps: float, inside the root
    returns: y (..., C), cache
    Source: Ba et al. 2016, section 3, equation 4. Twin: torch_llm.layers.layer_norm
    """
    normal = x - _mean_channels(x)
    inverse_deviation = 1 / np.sqrt(_mean_channels(normal, normal) + eps)
    normal *= inverse_deviation
    y = normal * weight
    if bias is not None:
        y += bias
    return y, (normal, inverse_deviation, weight, bias is not None)


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
    normal, inverse_deviation, weight, has_bias = cache
    C = weight.shape[0]
    dweight = np.einsum("nc,nc->c", dy.reshape(-1, C), normal.reshape(-1, C))
    dbias = _sum_rows(dy.reshape(-1, C)) if has_bias else None
    dx = dy * weight  # this is dn; the next lines turn it into dx in place
    through_deviation = normal * _mean_channels(dx, normal)
    dx -= _mean_channels(dx)
    dx -= through_deviation
    dx *= inverse_deviation
    return dx, dweight, dbias


def relu_forward(x):
    """y = max(x, 0).

    x: float, any shape; returns: y of the same shape, cache
    Source: Vaswani et al. 2017, equation 2. Twin: torch_llm.layers.relu
    """
    y = np.maximum(x, 0)
    return y, y


def relu_backward(dy, cache):
    """dx = dy where x > 0, else 0; at the kink the slope 0 is taken, as PyTorch does."""
    return dy * (cache > 0)


_GELU_SLOPE = (2 / np.pi) ** 0.5
_GELU_CUBIC = 0.044715


def gelu_forward(x):
    """The tanh form of the Gaussian error linear unit: y = x/2 · (1 + tanh(u)), u = √(2/π) (x + 0.044715 x³).

    Fused: the derivative is computed here, while tanh(u) is at hand, and kept instead of x and tanh(u).

        dy/dx = (1 + tanh(u)) / 2  +  x/2 · (1 - tanh²(u)) · du/dx,   du/dx = √(2/π) (1 + 3 · 0.044715 x²)

    x: float, any shape; returns: y of the same shape, cache
    Source: Hendrycks & Gimpel 2016, section 2; the form that GPT-2 was trained with, not the exact erf.
    Twin: torch_llm.layers.gelu
    """
    x_squared = x * x
    tanh = np.tanh(_GELU_SLOPE * x * (1 + _GELU_CUBIC * x_squared))
    du = _GELU_SLOPE * (1 + 3 * _GELU_CUBIC * x_squared)
    half_x = 0.5 * x
    slope = 0.5 * (1 + tanh) + half_x * (1 - tanh * tanh) * du
    return half_x * (1 + tanh), slope


def gelu_backward(dy, cache):
    """dx = dy · dy/dx, the slope that the forward pass kept."""
    return dy * cache


def dropout_forward(x, rate, key: DropoutKey | None, site):
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate): y = x · mask.

    x: float (B, ...); key: what the mask is drawn from, None to leave x as it is (evaluation)
    site: the dotted name of this place in the model
    returns: y of the same shape, cache
    Source: Srivastava et al. 2014, section 4. Twin: torch_llm.layers.dropout
    """
    if key is None or rate == 0:
        return x, None
    mask = dropout_mask(key, site, x.shape, rate, x.dtype)
    return x * mask, mask


def dropout_backward(dy, cache):
    """dx = dy · mask; without a mask, dx = dy."""
    return dy if cache is None else dy * cache


def cross_entropy_forward(logits, targets):
    """The mean over all tokens of -log softmax(logits)[target], in nats per token.

    Fused with the softmax: its logarithm is taken as logits - log Σ exp(logits), which cannot overflow once
    each row's maximum is subtracted, and the backward pass becomes a single subtraction.

    logits: float (B, T, V); targets: int (B, T)
    returns: loss float (), cache
    Twin: torch_llm.layers.cross_entropy
    """
    V = logits.shape[-1]
    rows, columns = logits.reshape(-1, V), targets.reshape(-1)
    probabilities, losses = np.empty_like(rows), np.empty(len(rows), rows.dtype)
    for block in _row_blocks(rows):
        shifted = rows[block] - rows[block].max(axis=1, keepdims=True)
        picked = shifted[np.arange(len(shifted)), columns[block]]
        exponentials = np.exp(shifted, out=shifted)
        totals = exponentials.sum(axis=1, keepdims=True)
        losses[block] = np.log(totals[:, 0]) - picked
        np.divide(exponentials, totals, out=probabilities[block])
    return losses.mean(), (probabilities.reshape(logits.shape), columns)


def cross_entropy_backward(dloss, cache):
    """Differentiate loss = mean of (log Σ_v exp(z[v]) - z[target]).

        ∂ log Σ_v exp(z[v]) / ∂z[v] = softmax(z)[v]   =>   dz = (softmax(z) - onehot(target)) · dloss / (B·T)

    dloss: float (), 1 for the loss itself, or a part's share of a larger batch
    returns: dlogits (B, T, V)
    """
    probabilities, columns = cache
    scale = dloss / columns.size
    dlogits = probabilities * scale
    dlogits.reshape(columns.size, -1)[np.arange(columns.size), columns] -= scale
    return dlogits


def _row_blocks(rows):
    """Slices of rows, each of about as many numbers as a core's cache holds while several passes go over them.

    At GPT-2's vocabulary that takes a twentieth off the cross-entropy; at small ones it is a single block.
    """
    height = max(1, (1 << 16) // rows.shape[1])
    return (slice(start, start + height) for start in range(0, len(rows), height))


def _sum_rows(x):
    """Σ over the rows of (N, C), as a product with ones: BLAS adds faster than a reduction does."""
    return np.ones(x.shape[0], x.dtype) @ x


def _mean_channels(x, other=None):
    """The mean over channels of x, or of x · other, kept as (..., 1): one pass, nothing stored between."""
    total = np.einsum("...c->...", x) if other is None else np.einsum("...c,...c->...", x, other)
    return (total / x.shape[-1])[..., None]
