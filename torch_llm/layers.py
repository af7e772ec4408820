"""The layers that the model's parts are made of, as PyTorch has them, differentiated by autograd.

The dimension letters are explained in `contract/config.py`; "..." stands for B, T.
"""

import torch
import torch.nn.functional as F

from contract.randomness import DropoutKey, dropout_mask
from torch_llm.precision import full_precision


def embedding(tokens, weight):
    """Look up a row per token: y[b, t] = weight[tokens[b, t]].

    tokens: int (B, T); weight: float (V, C)
    returns: y float (B, T, C)
    Source: Vaswani et al. 2017, section 3.4 (without its factor √C).
    Twin: numpy_llm.layers.embedding_forward and embedding_backward
    """
    return F.embedding(tokens, weight)


def linear(x, weight, bias):
    """An affine map of the channels: y = x weightᵀ + bias.

    x: float (..., in); weight: float (out, in); bias: float (out,) or None
    returns: y (..., out)
    Twin: numpy_llm.layers.linear_forward and linear_backward
    """
    return F.linear(x, weight, bias)


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
    x = full_precision(x)
    return x * _dropout_mask_like(x, rate, key, site)


def residual(x, branch):
    """Add what a branch computed to the stream that it read: y = x + branch.

    x, branch: float (B, T, C); returns: y (B, T, C)
    Source: He et al. 2016, section 3.2.
    Twin: numpy_llm.layers.residual_forward and residual_backward
    """
    return x + branch


def scale(x, factor):
    """Multiply by a constant: y = x · factor, as Gemma does with token embeddings, by √C.

    x: float, any shape; returns: y of the same shape
    Source: Vaswani et al. 2017, section 3.4. Twin: numpy_llm.layers.scale_forward and scale_backward
    """
    return x * factor


def soft_cap(x, cap):
    """Keep x between -cap and cap, smoothly: y = cap · tanh(x / cap).

    x: float, any shape; cap: float above 0; returns: y of the same shape
    Source: Gemma Team 2024 (Gemma 2), section 2.
    Twin: numpy_llm.layers.soft_cap_forward and soft_cap_backward
    """
    return torch.tanh(full_precision(x) / cap) * cap


@torch.compiler.disable  # the draws are NumPy's: a compiler that rewrote them would draw other masks
def _dropout_mask_like(x, rate, key, site):
    dtype = str(x.dtype).removeprefix("torch.")
    return torch.from_numpy(dropout_mask(key, site, tuple(x.shape), rate, dtype)).to(
        x.device, non_blocking=x.is_cuda
    )
