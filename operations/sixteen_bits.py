"""What a program in bfloat16 or float16 must not round, as mistakes: what it rounds to 16 bits all the same."""

from collections.abc import Callable
from functools import partial

import numpy as np

from contract.numbers import SIXTEEN_BITS, rounded
from operations.operation import Mistake


def rounding(name: str, compute: Callable, text: str, *, backward: bool = False) -> Mistake:
    """A mistake that has a form for each type in 16 bits.

    compute: (round, *arguments), the arguments of the right function and a tensor -> the tensor in 16 bits
    """

    def forms(*arguments) -> list:
        return [compute(partial(rounded, precision=each), *arguments) for each in SIXTEEN_BITS]

    return Mistake(f"{name}_in_16_bits", text, "", backward, forms)


def running_sum(round: Callable, terms) -> np.ndarray:
    """The sum of arrays, one after the other, in an accumulator of 16 bits."""
    total = 0.0
    for term in terms:
        total = round(total + term)
    return total


def rows(tensor: np.ndarray) -> np.ndarray:
    """(..., C) -> (N, C)"""
    return tensor.reshape(-1, tensor.shape[-1])
