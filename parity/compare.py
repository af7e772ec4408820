"""Holding one record of named tensors against another, so that nothing can pass unseen.

The reference is what the hand-written model computed, the twin is what anything else computed in its place.
A comparison fails where a number differs by more than its limit, and where numbers cannot be compared: a
name, shape or precision that differs, a value that is not finite, a tensor compared with itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import NamedTuple

import numpy as np

from contract.numbers import magnitude, relative_error
from parity.tolerances import limit, observe


class ParityError(AssertionError):
    """Two computations of the same thing differ; `where` is the first thing that differs, in a few words."""

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

    def as_record(self) -> dict:
        """The row by field; numbers that JSON lacks become null."""
        fields = self._asdict().items()
        return {
            name: None if isinstance(each, float) and not isfinite(each) else each for name, each in fields
        }


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
        """The rows that do not hold."""
        return [row for row in self.rows if not row.holds]

    def describe(self) -> str:
        """What diverges first in dataflow order, which is where to look, and what diverges most."""
        diverging = self.diverging
        worst = max(diverging, key=lambda row: row.error)
        return (
            f"{self.title}, {self.dtype}, seed {self.seed}: "
            f"{len(diverging)} of {len(self.rows)} tensors diverge\n"
            f"  first in dataflow order: {diverging[0].describe()}\n"
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
    rows, scale = [], 0.0
    for name in [*reference, *(name for name in twin if name not in reference)]:
        if name in reference and name in twin:
            problem = _problem(reference[name], twin[name], dtype)
            scale = magnitude(reference[name]) or scale
        else:
            problem = f"missing in the {'twin' if name in reference else 'reference'}"
        ours = reference[name] if name in reference else twin[name]
        rows.append(measure(quantity, name, ours, twin.get(name), limit(quantity, dtype), scale, problem))
    return rows


def measure(quantity: str, name: str, reference, found, limit: float, scale: float, problem: str) -> Row:
    """The row of two tensors; their numbers are looked at only where there is no problem."""
    if problem:
        return Row(quantity, name, np.shape(reference), inf, limit, problem=problem)
    difference = np.abs(np.asarray(found, np.float64) - np.asarray(reference, np.float64))
    index = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    values = float(reference[index]), float(found[index])
    return Row(
        quantity, name, reference.shape, relative_error(found, reference, scale), limit, index, *values
    )


def not_finite(tensor: np.ndarray, where: str = "") -> str:
    """The first value that is not finite and its index; "" if all are."""
    if np.isfinite(tensor).all():
        return ""
    index = [int(i) for i in np.argwhere(~np.isfinite(tensor))[0]]
    return f"{tensor[tuple(index)]}{where} at {index}"


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
    return not_finite(reference, " in the reference") or not_finite(twin, " in the twin")
