"""How far two tensors are apart, and what a function does when a number is moved: once, for every judge."""

from collections.abc import Callable
from math import inf

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
