"""Positions: what tells a token its place in the sequence.

The dimension letters are explained in `contract/config.py`.
"""

import torch


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


# The table of encodings of each choice of `position`, from the configuration and the weights.
POSITIONS = {
    "sinusoidal": lambda config, weights: sinusoidal_positions(
        config.context_length, config.d_model, weights["token_embedding.weight"].dtype
    ),
    "learned": lambda config, weights: weights["position_embedding.weight"],
}
