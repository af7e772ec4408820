"""Positions: what tells a token its place in the sequence.

The dimension letters are explained in `contract/config.py`.
"""

from functools import lru_cache

import torch

from contract.rotary import Rotary
from torch_llm.precision import full_precision


def sinusoidal_positions(context_length, d_model, dtype):
    """The fixed table of position encodings: a sine and a cosine for each of C/2 wavelengths.

        table[t, 2i] = sin(t / 10000^(2i/C)),   table[t, 2i+1] = cos(t / 10000^(2i/C))

    returns: dtype (context_length, d_model)
    Source: Vaswani et al. 2017, section 3.5. Twin: numpy_llm.positions.sinusoidal_positions
    """
    t = torch.arange(context_length, dtype=torch.float64)[:, None]
    angle = t / 10000 ** (torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(context_length, d_model).to(dtype)


def position(x, table, start=0):
    """Add to each token the encoding of its place: y[b, t] = x[b, t] + table[start + t].

    x: float (B, T, C); table: float (context_length, C), fixed or learned; start: place of the first token
    returns: y (B, T, C)
    Source: Vaswani et al. 2017, section 3.5. Twin: numpy_llm.positions.position_forward and position_backward
    """
    T = x.shape[1]
    return x + table[start : start + T]


def rotary_frequencies(rotary: Rotary, head_size):
    """By how many radians each pair of channels turns per place: theta^(-2i/D), slowed down by the scaling.

    returns: float64 (D/2,)
    Source: Su et al. 2021, section 3.2.2; the scalings as in `contract.rotary`.
    Twin: numpy_llm.positions.rotary_frequencies
    """
    frequency = rotary.theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    if rotary.scaling == "linear":
        return frequency / rotary.factor
    if rotary.scaling == "llama3":
        # A wavelength above the original context divided by `low` is stretched, one below that by `high` is not.
        wavelength = 2 * torch.pi / frequency
        low, high = rotary.low_frequency_factor, rotary.high_frequency_factor
        smooth = (rotary.original_context_length / wavelength - low) / (high - low)
        stretched = frequency / rotary.factor
        return torch.lerp(stretched, frequency, smooth.clamp(0, 1))
    return frequency


@torch.compiler.assume_constant_result  # or a compiled graph would compute the table anew at every call
def rotary_table(rotary: Rotary, head_size, length, dtype, device=None):
    """Cosine and sine of each pair's angle at the places 0 to length - 1, computed in float64.

    returns: dtype (length, D/2) each, not to be changed
    Twin: numpy_llm.positions.rotary_table
    """
    return _rotary_table(rotary, head_size, length, dtype, device)


@lru_cache(maxsize=8)  # beneath the public function: the compiler looks through a cache
@torch.inference_mode(False)  # a table that generation made must serve training too
def _rotary_table(rotary, head_size, length, dtype, device):
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rotary_frequencies(rotary, head_size)
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def rotate(x, rotary, start=0):
    """Turn each pair of channels, i and i + D/2, by an angle that grows with the token's place.

        y[i]       = x[i] cos(a[i]) - x[i + D/2] sin(a[i])
        y[i + D/2] = x[i + D/2] cos(a[i]) + x[i] sin(a[i]),    a[i] = (start + t) · frequency[i]

    x: float (B, H, T, D); start: place of the first token
    returns: y (B, H, T, D)
    Source: Su et al. 2021, section 3.4.2, with the halves paired as in published Llama weights.
    Twin: numpy_llm.positions.rotate_forward and rotate_backward
    """
    x = full_precision(x)
    T, D = x.shape[-2:]
    length = (
        1 << (start + T - 1).bit_length()
    )  # a power of two, so that the table is made anew only as it doubles
    cosine, sine = (table[start : start + T] for table in rotary_table(rotary, D, length, x.dtype, x.device))
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


# What each choice of `position` adds to the embeddings, from the configuration and the weights; rotary adds nothing.
POSITIONS = {
    "sinusoidal": lambda config, weights: sinusoidal_positions(
        config.context_length, config.d_model, weights["token_embedding.weight"].dtype
    ),
    "learned": lambda config, weights: weights["position_embedding.weight"],
    "rotary": lambda config, weights: None,
}
