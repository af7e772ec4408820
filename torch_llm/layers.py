"""The model's layers: the functions of `numpy_llm.layers` as PyTorch has them, differentiated by autograd.

The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

import torch
import torch.nn.functional as F

from contract.randomness import DropoutKey, dropout_mask


def embedding(tokens, weight):
    """Look up a row per token: y[b, t] = weight[tokens[b, t]].

    tokens: int (B, T); weight: float (V, C)
    returns: y float (B, T, C)
    Source: Vaswani et al. 2017, section 3.4 (without its factor √C).
    Twin: numpy_llm.layers.embedding_forward and embedding_backward
    """
    return F.embedding(tokens, weight)


def sinusoidal_positions(context_length, d_model, dtype):
    """The fixed table of position encodings: a sine and a cosine for each of C/2 wavelengths.

        table[t, 2i] = sin(t / 10000^(2i/C)),   table[t, 2i+1] = cos(t / 10000^(2i/C))

    returns: dtype (context_length, d_model)
    Source: Vaswani et al. 2017, section 3.5. Twin: numpy_llm.layers.sinusoidal_positions
    """
    t = torch.arange(context_length, dtype=torch.float64)[:, None]
    angle = t / 10000 ** (torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(context_length, d_model).to(dtype)


def position(x, table, start=0):
    """Add to each token the encoding of its place: y[b, t] = x[b, t] + table[start + t].

    x: float (B, T, C); table: float (context_length, C), fixed or learned; start: place of the first token
    returns: y (B, T, C)
    Source: Vaswani et al. 2017, section 3.5. Twin: numpy_llm.layers.position_forward and position_backward
    """
    T = x.shape[1]
    return x + table[start : start + T]


def linear(x, weight, bias):
    """An affine map of the channels: y = x weightᵀ + bias.

    x: float (..., in); weight: float (out, in); bias: float (out,) or None
    returns: y (..., out)
    Twin: numpy_llm.layers.linear_forward and linear_backward
    """
    return F.linear(x, weight, bias)


def layer_norm(x, weight, bias, eps):
    """Give each token's channels mean 0 and variance 1, then scale and shift them.

        normal = (x - mean(x)) / √(var(x) + eps),   y = normal · weight + bias

    Mean and (biased) variance run over the C channels of one token.

    x: float (..., C); weight: float (C,); bias: float (C,) or None; eps: float, inside the root
    returns: y (..., C)
    Source: Ba et al. 2016, section 3, equation 4.
    Twin: numpy_llm.layers.layer_norm_forward and layer_norm_backward
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def relu(x):
    """y = max(x, 0).

    x: float, any shape; returns: y of the same shape
    Source: Vaswani et al. 2017, equation 2. Twin: numpy_llm.layers.relu_forward and relu_backward
    """
    return F.relu(x)


def gelu(x):
    """The tanh form of the Gaussian error linear unit: y = x/2 · (1 + tanh(u)), u = √(2/π) (x + 0.044715 x³).

    x: float, any shape; returns: y of the same shape
    Source: Hendrycks & Gimpel 2016, section 2; the form that GPT-2 was trained with, not the exact erf.
    Twin: numpy_llm.layers.gelu_forward and gelu_backward
    """
    return F.gelu(x, approximate="tanh")


def dropout(x, rate, key: DropoutKey | None, site):
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate): y = x · mask.

    Not `F.dropout`: its generator draws other masks on every device, and none that NumPy could draw.

    x: float (B, ...); key: what the mask is drawn from, None to leave x as it is (evaluation)
    site: the dotted name of this place in the model
    returns: y of the same shape
    Source: Srivastava et al. 2014, section 4. Twin: numpy_llm.layers.dropout_forward and dropout_backward
    """
    if key is None or rate == 0:
        return x
    return x * _dropout_mask_like(x, rate, key, site)


def cross_entropy(logits, targets):
    """The mean over all tokens of -log softmax(logits)[target], in nats per token.

    logits: float (B, T, V); targets: int (B, T)
    returns: loss float ()
    Twin: numpy_llm.layers.cross_entropy_forward and cross_entropy_backward
    """
    V = logits.shape[-1]
    return F.cross_entropy(logits.reshape(-1, V), targets.reshape(-1))


@torch.compiler.disable  # the draws are NumPy's: a compiler that rewrote them would draw other masks
def _dropout_mask_like(x, rate, key, site):
    dtype = str(x.dtype).removeprefix("torch.")
    return torch.from_numpy(dropout_mask(key, site, tuple(x.shape), rate, dtype)).to(x.device)
