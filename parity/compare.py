"""Holding one record of named tensors against another, so that nothing can pass unseen.

The reference is what the hand-written model computed, the twin is what anything else computed in its place.
A comparison fails where a number differs by more than its limit, and where numbers cannot be compared: a
name, shape or precision that differs, a value that is not finite, a tensor compared with itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import NamedTuple

import numpy as np

from contract.numbers import magnitude, relative_error
from parity.tolerances import limit, observe


class ParityError(AssertionError):
    """Two computations of the same thing differ; the message says where, by how much, and with which seed.

    where: the first thing that differs, in a few words
    """

    def __init__(self, message: str, where: str):
        super().__init__(message)
        self.where = where


class Row(NamedTuple):
    """One tensor of a comparison.

    quantity: which limit it is held to; name: dotted, as traced; shape: the reference's
    error: the largest difference over the largest magnitude of the reference; inf where none can be told
    index: where that is, with both values there
    problem: why the numbers cannot be compared, or ""
    rounding: where the limit was widened, the error of the twin's float32 beside its own float64; else 0
    """

    quantity: str
    name: str
    shape: tuple[int, ...]
    error: float
    limit: float
    index: tuple[int, ...] = ()
    reference: float = nan
    twin: float = nan
    problem: str = ""
    rounding: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the tensor is within its limit; an error that is not a number is not."""
        return not self.problem and self.error <= self.limit

    def describe(self) -> str:
        """The tensor, the place, both values, the error and the limit, in a line."""
        where = f"{self.quantity} {self.name}"
        if self.problem:
            return f"{where}: {self.problem}"
        return (
            f"{where}{list(self.index)}: reference {self.reference!r}, twin {self.twin!r}, "
            f"error {self.error:.3g} of the reference's largest magnitude, limit {self.limit:g}"
        )


@dataclass(frozen=True)
class Comparison:
    """The rows of one comparison, in dataflow order.

    title: what was compared; dtype: in which precision; seed: of weights, tokens and masks
    note: what to know about this comparison where it fails
    """

    title: str
    dtype: str
    seed: int
    rows: list[Row]
    note: str = ""

    @property
    def diverging(self) -> list[Row]:
        """The rows that do not hold, in dataflow order."""
        return [row for row in self.rows if not row.holds]

    @property
    def worst(self) -> Row:
        """The row with the largest error for its limit."""
        return max(self.rows, key=lambda row: row.error / row.limit)

    def describe(self) -> str:
        """What diverges first in dataflow order, which is where to look, and what diverges most."""
        first, worst, count = (
            self.diverging[0],
            max(self.diverging, key=lambda row: row.error),
            len(self.rows),
        )
        return (
            f"{self.title}, {self.dtype}, seed {self.seed}: {len(self.diverging)} of {count} tensors diverge\n"
            f"  first in dataflow order: {first.describe()}\n"
            f"  worst: {worst.describe()}"
        )

    def require(self):
        """Raise ParityError unless there are rows and all of them hold."""
        if not self.rows:
            raise ParityError(f"{self.title}: nothing was compared", "nothing")
        if self.diverging:
            raise ParityError(self.describe(), f"{self.diverging[0].quantity} {self.diverging[0].name}")
        for row in self.rows:
            observe(row.quantity, self.dtype, row.error)


def compare(
    quantity: str, reference: Mapping[str, np.ndarray], twin: Mapping[str, np.ndarray], dtype: str
) -> list[Row]:
    """A row for every name that either record has, in the order of the reference.

    A tensor that is exactly 0 everywhere, as softmax's gradient for a single key, has no magnitude of its own.
    It is a difference of terms that cancel, so its error is relative to the last tensor before it that is
    not 0, from which those terms come.
    """
    rows, flowing = [], 0.0
    for name in [*reference, *(name for name in twin if name not in reference)]:
        if name not in reference or name not in twin:
            shape = np.shape(reference[name] if name in reference else twin[name])
            lacking = "twin" if name in reference else "reference"
            rows.append(_incomparable(quantity, name, shape, dtype, f"missing in the {lacking}"))
            continue
        scale = magnitude(reference[name]) or flowing
        rows.append(_compare_tensor(quantity, name, reference[name], twin[name], dtype, scale))
        flowing = scale
    return rows


def _compare_tensor(quantity, name, reference, twin, dtype, scale) -> Row:
    problem = _problem(reference, twin, dtype)
    if problem:
        return _incomparable(quantity, name, np.shape(reference), dtype, problem)
    difference = np.abs(np.asarray(twin, np.float64) - np.asarray(reference, np.float64))
    index = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    error = relative_error(twin, reference, scale)
    values = float(reference[index]), float(twin[index])
    return Row(quantity, name, reference.shape, error, limit(quantity, dtype), index, *values)


def _problem(reference, twin, dtype) -> str:
    """Why two arrays cannot be compared number by number, or ""."""
    if reference.shape != twin.shape:  # checked, because subtracting would broadcast
        return f"shape {reference.shape} in the reference, {twin.shape} in the twin"
    if not reference.dtype == twin.dtype == dtype:
        return f"{reference.dtype} in the reference, {twin.dtype} in the twin, wanted {dtype}"
    if reference.size == 0:
        return "empty"
    if np.may_share_memory(reference, twin):
        return "reference and twin are one piece of memory"
    for whose, tensor in (("reference", reference), ("twin", twin)):
        if not np.isfinite(tensor).all():
            index = [int(i) for i in np.argwhere(~np.isfinite(tensor))[0]]
            return f"{tensor[tuple(index)]} in the {whose} at {index}"
    return ""


def _incomparable(quantity, name, shape, dtype, problem) -> Row:
    return Row(quantity, name, shape, inf, limit(quantity, dtype), problem=problem)
