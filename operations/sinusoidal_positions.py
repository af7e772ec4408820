"""Sinusoidal positions: their equation and what people get wrong in it."""

from numpy_llm.positions import sinusoidal_positions
from operations.operation import Operation


def _forward(context_length, d_model, dtype):
    return sinusoidal_positions(context_length, d_model, dtype), None


SINUSOIDAL_POSITIONS = Operation(
    "sinusoidal_positions",
    _forward,
    None,
    "table[t, 2i] = sin(t / 10000^(2i/C)), table[t, 2i+1] = cos(the same)",
    {},
    (),
)
