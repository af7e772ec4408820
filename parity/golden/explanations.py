"""Which of the known mistakes gives exactly somebody's numbers.

A mistake explains a tensor where what it computes is the tensor, to rounding. The mistakes of each operation stand in
`operations/`; those that any operation can have stand here.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.numbers import magnitude, relative_error
from operations.operation import Mistake

MAX_EXPLANATIONS = 3  # some mistakes have the same result on some models


class Setting(NamedTuple):
    """The model and the shape of the batch."""

    config: ModelConfig
    B: int
    T: int


class Explanation(NamedTuple):
    """A mistake that fits.

    name, text: the mistake's; error: the largest difference left, relative to the largest magnitude
    operation: the one that has it; "" for a mistake that any operation can have
    """

    name: str
    text: str
    error: float
    operation: str = ""


def explain(
    wrong: Iterable[tuple[str, Mistake, np.ndarray]],
    setting: Setting,
    expected: np.ndarray,
    found: np.ndarray,
    close: float,
) -> list[Explanation]:
    """The mistakes that give `found`, the closest first; general ones where no other fits.

    wrong: operation, mistake and what it computes; expected: the right result
    close: how far, relative to the largest magnitude, a result may be off
    """
    fitting = _fitting(wrong, expected, found, close)
    if not fitting:
        anywhere = (("", mistake, form) for mistake in ANYWHERE for form in mistake.forms(setting, expected))
        fitting = _fitting(anywhere, expected, found, close)
    return fitting[:MAX_EXPLANATIONS] or _constant_factor(expected, found, close)


def _fitting(wrong, expected, found, close) -> list[Explanation]:
    best: dict[str, Explanation] = {}
    for operation, mistake, value in wrong:
        error = _error(np.asarray(value), found)
        # A mistake that changes nothing here, or less than what it leaves unexplained, explains nothing.
        told = error <= close and 8 * error < _error(expected, np.asarray(value))
        if told and (mistake.name not in best or error < best[mistake.name].error):
            best[mistake.name] = Explanation(mistake.name, mistake.text, error, operation)
    return sorted(best.values(), key=lambda each: each.error)


def _error(wanted: np.ndarray, found: np.ndarray) -> float:
    """The largest difference relative to the larger magnitude; inf where shapes differ or a number is not finite."""
    return relative_error(found, wanted, max(magnitude(wanted), magnitude(found)))


def _constant_factor(expected: np.ndarray, found: np.ndarray, close: float) -> list[Explanation]:
    """For want of a known mistake: that everything is the same multiple of what it should be."""
    if expected.shape != found.shape or not np.isfinite(found).all() or not np.any(expected):
        return []
    factor = float(np.vdot(expected, found) / np.vdot(expected, expected))
    error = _error(factor * expected, found)
    if not (error <= close and 8 * error < abs(factor - 1) and found.size > 1):
        return []
    return [Explanation("constant_factor", f"everything is {factor:.7g} times the right value", error)]


# Mistakes that any operation can have: functions of the setting and the right result


def _anywhere(text: str) -> Callable:
    return lambda compute: Mistake(compute.__name__, text, "", False, compute)


@_anywhere("the sign is wrong")
def sign(setting, value):
    return -value


@_anywhere("it is all zeros: never computed, never written, or overwritten before it was dumped")
def zeros(setting, value):
    return np.zeros_like(value)


@_anywhere(
    "twice too large: added to what an earlier pass left there, or counted twice; zero the gradients first"
)
def twice(setting, value):
    return 2 * value


@_anywhere("half of the right value: one of two equal parts is missing, or a factor 1/2 is too many")
def half(setting, value):
    return value / 2


@_anywhere(
    "a factor of the batch size B: a sum where a mean over the batch is wanted, or the other way round"
)
def factor_batch(setting, value):
    return [value * setting.B, value / setting.B]


@_anywhere(
    "a factor of the sequence length T: a sum where a mean over time is wanted, or the other way round"
)
def factor_time(setting, value):
    return [value * setting.T, value / setting.T]


@_anywhere("a factor of B·T: the loss is a mean over all tokens, so divide by B·T once, and only once")
def factor_tokens(setting, value):
    return [value * setting.B * setting.T, value / (setting.B * setting.T)]


@_anywhere("a factor of √D: the scores' 1/√D is missing or taken twice")
def factor_root_head(setting, value):
    root = setting.config.head_size**0.5
    return [value * root, value / root]


@_anywhere("transposed: the last two axes are swapped")
def transposed(setting, value):
    return value.swapaxes(-1, -2) if value.ndim > 1 else None


@_anywhere("the numbers of the transpose under the right shape: column-major order read as row-major")
def column_major(setting, value):
    if value.ndim < 2:
        return None
    swapped = value.swapaxes(-1, -2)
    return [np.reshape(swapped, value.shape), value.ravel(order="F").reshape(value.shape)]


@_anywhere("the first two axes are swapped: time comes before batch")
def time_first(setting, value):
    return value.swapaxes(0, 1) if value.ndim > 2 else None


@_anywhere("heads and time are swapped: wanted (batch, head, time, channel)")
def heads_last(setting, value):
    if value.ndim != 4:
        return None
    swapped = value.swapaxes(1, 2)
    return [swapped, np.ascontiguousarray(swapped).reshape(value.shape)]


@_anywhere("moved by one place along time")
def shifted(setting, value):
    if value.ndim < 2 or value.shape[0] != setting.B or value.shape[1] != setting.T:
        return None
    return [np.roll(value, 1, axis=1), np.roll(value, -1, axis=1)]


@_anywhere("flattened: the right numbers in the right order under another shape")
def flattened(setting, value):
    rows = value.reshape(-1, value.shape[-1]) if value.ndim > 1 else value
    return [value.ravel(), rows, value.reshape(1, *value.shape)]


ANYWHERE = (
    sign, zeros, twice, half, factor_batch, factor_time, factor_tokens, factor_root_head, transposed, column_major,
    time_first, heads_last, shifted, flattened,
)  # fmt: skip
