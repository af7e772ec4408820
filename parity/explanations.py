"""What people get wrong, and which of it gives exactly somebody's numbers.

Each mistake is a function that repeats an operation wrongly: it takes the configuration and the operation's
inputs by role, as `parity/recompute.py` does, and returns what a program with that mistake computes. The
general ones take the right result instead, and turn it into a wrong one. A mistake explains a tensor where
its result is the tensor, to rounding.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.numbers import magnitude, relative_error
from parity.operations import Operation

MOST = 3  # explanations that are told; some mistakes have the same result on some models


class Setting(NamedTuple):
    """The model and the shape of the batch."""

    config: ModelConfig
    B: int
    T: int


class Mistake(NamedTuple):
    """name: of the function; text: what is wrong and what would be right; kinds: of operations, () for all"""

    name: str
    text: str
    kinds: tuple[str, ...]
    compute: Callable


class Explanation(NamedTuple):
    """name, text: the mistake's; error: the largest difference left, relative to the largest magnitude"""

    name: str
    text: str
    error: float


MISTAKES: list[Mistake] = []


def known_mistakes() -> list[Mistake]:
    """Every mistake, those of the other files included."""
    for file in ("forward", "backward", "adamw"):
        import_module(f"parity.mistakes_{file}")
    return MISTAKES


def mistake(text: str, *kinds: str):
    """A decorator: the function below is a mistake in operations of `kinds`; without any, in every operation."""

    def register(compute):
        MISTAKES.append(Mistake(compute.__name__, text, kinds, compute))
        return compute

    return register


def explain(
    setting: Setting,
    operation: Operation | None,
    inputs: Mapping[str, np.ndarray],
    expected: np.ndarray,
    found: np.ndarray,
    close: float,
) -> list[Explanation]:
    """The mistakes that turn `inputs` into `found`, the closest first; general ones where no other fits.

    inputs: by role, those that mistakes may use included; empty where the operation cannot be repeated
    expected: the right result; close: how far, relative to the largest magnitude, a result may be off
    """
    fitting = []
    for each in known_mistakes():
        specific = operation is not None and operation.kind in each.kinds
        if not specific and each.kinds:
            continue
        for result in results(each, setting, operation, inputs, expected, specific):
            error = _error(result, found)
            # A mistake that changes nothing here, or less than what it leaves unexplained, explains nothing.
            if error <= close and 8 * error < _error(expected, result):
                fitting.append((not specific, error, Explanation(each.name, each.text, error)))
                break
    fitting.sort(key=lambda row: row[:2])
    # Where a mistake of this operation fits, a general one such as a factor of 2 is the same said vaguely.
    named = [explanation for general, _, explanation in fitting if general == fitting[0][0]][:MOST]
    return named or _constant_factor(expected, found, close)


def results(each: Mistake, setting: Setting, operation, inputs, expected, specific: bool) -> list[np.ndarray]:
    """What the mistake computes: usually one array, or one for each form that it takes."""
    with np.errstate(all="ignore"):
        if not specific:
            results = each.compute(setting, expected)
        elif inputs or not operation.inputs:
            results = each.compute(setting.config, **inputs, **operation.settings)
        else:
            results = []
    results = results if isinstance(results, list) else [results]
    return [np.asarray(result) for result in results if result is not None]


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


# Mistakes that any operation can have


@mistake("the sign is wrong")
def sign(setting, value):
    return -value


@mistake("it is all zeros: never computed, never written, or overwritten before it was dumped")
def zeros(setting, value):
    return np.zeros_like(value)


@mistake(
    "twice too large: added to what an earlier pass left there, or counted twice; zero the gradients first"
)
def twice(setting, value):
    return 2 * value


@mistake("half of the right value: one of two equal parts is missing, or a factor 1/2 is too many")
def half(setting, value):
    return value / 2


@mistake("a factor of the batch size B: a sum where a mean over the batch is wanted, or the other way round")
def factor_batch(setting, value):
    return [value * setting.B, value / setting.B]


@mistake("a factor of the sequence length T: a sum where a mean over time is wanted, or the other way round")
def factor_time(setting, value):
    return [value * setting.T, value / setting.T]


@mistake("a factor of B·T: the loss is a mean over all tokens, so divide by B·T once, and only once")
def factor_tokens(setting, value):
    return [value * setting.B * setting.T, value / (setting.B * setting.T)]


@mistake("a factor of √D: the scores' 1/√D is missing or taken twice")
def factor_root_head(setting, value):
    root = setting.config.head_size**0.5
    return [value * root, value / root]


@mistake("transposed: the last two axes are swapped")
def transposed(setting, value):
    return value.swapaxes(-1, -2) if value.ndim > 1 else None


@mistake("the numbers of the transpose under the right shape: column-major order read as row-major")
def column_major(setting, value):
    if value.ndim < 2:
        return None
    swapped = value.swapaxes(-1, -2)
    return [np.reshape(swapped, value.shape), value.ravel(order="F").reshape(value.shape)]


@mistake("the first two axes are swapped: time comes before batch")
def time_first(setting, value):
    return value.swapaxes(0, 1) if value.ndim > 2 else None


@mistake("heads and time are swapped: wanted (batch, head, time, channel)")
def heads_last(setting, value):
    if value.ndim != 4:
        return None
    swapped = value.swapaxes(1, 2)
    return [swapped, np.ascontiguousarray(swapped).reshape(value.shape)]


@mistake("moved by one place along time")
def shifted(setting, value):
    if value.ndim < 2 or value.shape[0] != setting.B or value.shape[1] != setting.T:
        return None
    return [np.roll(value, 1, axis=1), np.roll(value, -1, axis=1)]


@mistake("flattened: the right numbers in the right order under another shape")
def flattened(setting, value):
    rows = value.reshape(-1, value.shape[-1]) if value.ndim > 1 else value
    return [value.ravel(), rows, value.reshape(1, *value.shape)]
