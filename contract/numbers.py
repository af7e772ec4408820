"""How far two tensors are apart, and what a function does when a number is moved: once, for every judge."""

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import numpy as np


def magnitude(tensor: np.ndarray) -> float:
    """The largest absolute value, 0 for an empty tensor."""
    return float(np.abs(tensor).max(initial=0))


def relative_error(found: np.ndarray, reference: np.ndarray, scale: float | None = None) -> float:
    """The largest |found - reference| divided by the largest |reference|, or by `scale` if given.

    returns: inf for shapes that differ, a value that is not finite, or a difference beside a scale of 0;
        0 for empty tensors
    """
    found, reference = np.asarray(found), np.asarray(reference)
    if found.shape != reference.shape or not (np.isfinite(found).all() and np.isfinite(reference).all()):
        return inf
    with np.errstate(over="ignore"):
        worst = magnitude(found.astype(np.float64) - reference.astype(np.float64))
    scale = magnitude(reference) if scale is None else scale
    return worst / scale if scale else (inf if worst else 0.0)


class Binary(NamedTuple):
    """A type of real numbers. digits: significant binary ones; least: the exponent of the smallest number above 0;
    largest: the largest number
    """

    digits: int
    least: int
    largest: float


# The coarser one first.
SIXTEEN_BITS = {
    "bfloat16": Binary(8, -133, (2 - 2.0**-7) * 2.0**127),  # the upper half of a float32
    "float16": Binary(11, -24, 65504.0),
}


def spacing(tensor: np.ndarray, precision: str) -> np.ndarray:
    """How far apart the numbers of a type in 16 bits are around each number of a tensor."""
    digits, least, _ = SIXTEEN_BITS[precision]
    tensor = np.asarray(tensor)
    exponent = np.maximum(np.frexp(tensor)[1] - digits, least)
    return np.ldexp(tensor.dtype.type(1), exponent)


def rounded(tensor: np.ndarray, precision: str, random: np.random.Generator | None = None) -> np.ndarray:
    """A tensor of real numbers as a type in 16 bits holds them, in the tensor's own type.

    random: to one of the two neighbours, the nearer one more often, as in Monte Carlo arithmetic (Parker 1997);
        without it to the nearest, a tie to the even one
    """
    apart = spacing(tensor, precision)
    kept = np.asarray(tensor / apart)
    if random is None:
        np.rint(kept, out=kept)
    else:
        kept += random.random(kept.shape, kept.dtype)
        np.floor(kept, out=kept)
    with np.errstate(over="ignore"):
        kept *= apart
    largest = SIXTEEN_BITS[precision].largest
    return (
        np.where(np.abs(kept) > largest, np.copysign(kept.dtype.type(inf), kept), kept)
        if magnitude(kept) > largest
        else kept
    )


def central_difference(f: Callable, h: float):
    """The slope of f at 0: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h.

    The errors of order h² of two central differences cancel, so that a wide step leaves little to rounding.
    f: float -> a number or an array
    """
    near, far = f(h) - f(-h), f(2 * h) - f(-2 * h)
    return (8 * near - far) / (12 * h)


def slope(
    loss: Callable[[], float], tensor: np.ndarray, h: float, *, index: tuple = (), direction=1.0
) -> float:
    """The central difference of `loss` as `tensor` moves along `direction`; the tensor is restored.

    index: of one element or a part, which alone moves; direction: a number, or an array of the part's shape
    """
    part = tensor[(*index, ...)]  # a view, also of a single element
    start = part.copy()

    def moved(by: float) -> float:
        part[...] = start + by * direction
        return loss()

    try:
        return central_difference(moved, h)
    finally:
        part[...] = start
