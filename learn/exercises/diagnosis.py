"""From the numbers of a wrong output to a teacher's hint.

Explanations are tried from the particular to the general: another output in its place, a term of the gradient
that is missing, a mistake that people are known to make in this exercise or its operations, a simple relation to
the right answer, a term that is miscounted, a pattern of the error; and where nothing fits, the place of the
largest error. An explanation counts only where it fits all trials to rounding.
"""

from itertools import combinations
from math import sqrt
from typing import NamedTuple

import numpy as np

from contract.numbers import magnitude, relative_error
from learn.exercises.exercise import Instance, Trial, float_tensors

FITS = 1e-9  # an explanation fits where nothing is left but this share of the largest magnitude
ROUNDING = 1e-13  # what is below this share of the largest magnitude reads 0
FLOAT32 = 1e-5  # errors of this size are those of float32
SUMMED = ("B", "T", "B·T", "C", "V")  # counts of what is summed over


class Hint(NamedTuple):
    """A teacher's hint.

    text: what the student is told, without a full stop
    cause: the same without the numbers of one student's instance, for a class; "" where another output is the cause
    """

    text: str
    cause: str


def diagnose(
    instance: Instance, output: str, found: list[np.ndarray], earlier: str = "", intact: str = ""
) -> Hint:
    """The hint for one wrong output.

    found: float64 arrays of that output, one a trial
    earlier: an output that is wrong too and that this one is computed from or after; "" where there is none
    intact: the last right output before the first wrong one, likewise
    """
    wanted = [solution[output] for solution in instance.solutions]
    if hint := _explanation(instance, output, found, wanted):
        return Hint(hint, hint)
    if hint := _shape_hint(found, wanted):
        return Hint(hint, f"wrong shape: {hint.partition(': ')[2]}")
    if hint := _not_finite(found):
        return Hint(hint, f"numbers that are not finite: {hint.partition(': ')[2]}")
    if earlier:
        return Hint(f"right shape; {earlier} comes before it and is wrong too: mend that first", "")
    clue = f"; {intact} comes before it and is right: the fault lies between them" if intact else ""
    error = found[0] - wanted[0]
    pattern = _constant(error, wanted[0]) or _places(error, wanted[0])
    return Hint(
        f"right shape; {pattern}{_worst_place(found[0], wanted[0])}{clue}",
        f"wrong in a way that no known mistake explains{clue}",
    )


def _explanation(instance, output, found, wanted) -> str:
    """What is wrong, where it can be told from the numbers, else ""."""
    exercise, trials, solutions = instance.exercise, instance.trials, instance.solutions
    if _fits(wanted[:1], found[:1]) and np.isfinite(found[1]).all():
        return "right on your instance, wrong on one of other sizes: a size is written as a number"
    if hint := _other_output(solutions, output, found):
        return hint
    if _shape_hint(found, wanted) or _not_finite(found):
        return ""
    for explain in (
        lambda: _terms(exercise, trials, output, found, wanted, counted=False),
        lambda: _known_mistake(instance, output, found, wanted),
        lambda: _simple_relation(trials, found, wanted),
        lambda: _factor(trials, solutions, found, wanted),
        lambda: _terms(exercise, trials, output, found, wanted),
        lambda: _moved(found, wanted),
    ):
        if hint := explain():
            return f"right shape; {hint}"
    return ""


# Shapes


def _shape_hint(found, wanted) -> str:
    for array, right in zip(found, wanted, strict=True):
        if array.shape != right.shape:
            shapes = f"shape {array.shape}, wanted {right.shape}"
            if np.squeeze(array).shape == np.squeeze(right).shape:
                return f"{shapes}: an axis of length 1 too many or too few; see keepdims"
            if array.shape == right.shape[::-1]:
                same = relative_error(array.T, right) <= FITS
                return f"{shapes}: transposed{', otherwise right' if same else ''}"
            if sorted(array.shape) == sorted(right.shape):
                return f"{shapes}: the axes are in another order"
            extra = array.ndim - right.ndim
            if extra > 0 and array.shape[extra:] == right.shape:
                summed = array.sum(axis=tuple(range(extra)))
                right_sum = relative_error(summed, right) <= FITS
                return f"{shapes}: not summed over the leading {_axes(extra)}{_then(right_sum)}"
            if array.size == right.size:
                return f"{shapes}: the same count of numbers; a reshape at the end is missing"
            return f"{shapes}: a gradient has the shape of what it is the gradient of"
    return ""


def _axes(count: int) -> str:
    return "axis" if count == 1 else f"{count} axes"


def _then(right: bool) -> str:
    return "; summed, it would be right" if right else ""


def _not_finite(found) -> str:
    for array in found:
        if not np.isfinite(array).all():
            index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
            count = int((~np.isfinite(array)).sum())
            return (
                f"right shape; {count} of {array.size} numbers are not finite, the first {array[tuple(index)]} at "
                f"{index}: a division by 0, a root or logarithm of a negative number, or inf - inf"
            )
    return ""


# Explanations that fit exactly


def _fits(candidates, found) -> bool:
    return all(
        candidate.shape == array.shape and relative_error(array, candidate) <= FITS
        for candidate, array in zip(candidates, found, strict=True)
    )


def _known_mistake(instance, output, found, wanted) -> str:
    """The hint of the first mistake that makes such an output, behind its relation to the right one."""
    for mistake in instance.wrong:
        changed = [outputs[output] for outputs in mistake.trials if output in outputs]
        if len(changed) == len(found) and _fits(changed, found):
            relation = _simple_relation(instance.trials, found, wanted)
            return f"{relation}; {mistake.hint}" if relation else mistake.hint
    return ""


def _other_output(solutions, output, found) -> str:
    for name in solutions[0]:
        if name != output and _fits([solution[name] for solution in solutions], found):
            return f"this is {name}, not {output}: see which stands where in what you return"
    return ""


def _simple_relation(trials, found, wanted) -> str:
    if all(not array.any() for array in found):
        return "all zeros: nothing is put into it"
    if _fits([-right for right in wanted], found):
        return "the sign is wrong, all else is right"
    factors = [
        float(np.vdot(right, array) / np.vdot(right, right))
        for array, right in zip(found, wanted, strict=True)
    ]
    if all(factors) and _fits([k * right for k, right in zip(factors, wanted, strict=True)], found):
        name = _expression(factors, trials)
        sign = "the sign is wrong and it is" if factors[0] < 0 else "it is"
        note = ": a mean and a sum are mixed up" if name.removeprefix("1/").strip("()") in SUMMED else ""
        if not name and not np.allclose(factors, factors[0]):
            name = "a wrong size, or one written as a number"
        return (
            f"{sign} off by a constant factor of {name or f'{abs(factors[0]):.6g}'}{note}; all else is right"
        )
    offsets = [float((array - right).flat[0]) for array, right in zip(found, wanted, strict=True)]
    if np.allclose(offsets, offsets[0]) and _fits(wanted, [array - offsets[0] for array in found]):
        return f"every number is off by {offsets[0]:.6g}, all else is right: does the sum start from 0?"
    if all(relative_error(array, right) < FLOAT32 for array, right in zip(found, wanted, strict=True)):
        return "right to the digits of float32: keep everything in float64 and constants in full"
    if _square(found, wanted) and _fits([right.T for right in wanted], found):
        return "transposed, all else is right"
    return ""


def _factor(trials, solutions, found, wanted) -> str:
    """Which tensor of the forward pass is a factor too few or too many, element by element."""
    tensors = []
    for trial, solution in zip(trials, solutions, strict=True):
        passed = {"y": solution.get("y"), "dy": trial.dy}
        tensors.append(float_tensors(trial.inputs | passed))
    for name, tensor in tensors[0].items():
        if tensor.ndim == 0 or tensor.shape != wanted[0].shape[wanted[0].ndim - tensor.ndim :]:
            continue
        factors = [each[name] for each in tensors]
        if _fits([right * factor for right, factor in zip(wanted, factors, strict=True)], found):
            return f"a factor {name} is too much, all else is right"
        if _fits(wanted, [array * factor for array, factor in zip(found, factors, strict=True)]):
            return f"a factor {name} is missing, all else is right"
    return ""


def _square(found, wanted) -> bool:
    return all(right.ndim == 2 and right.shape[0] == right.shape[1] for right in wanted)


def _expression(factors: list[float], trials: list[Trial]) -> str:
    """The factors' magnitude in the exercise's own letters where one expression gives it in every trial, or ""."""
    for name, values in _expressions(trials).items():
        if np.allclose(np.abs(factors), values, rtol=1e-7, atol=0):
            return name
        if np.allclose(np.abs(factors), 1 / np.array(values), rtol=1e-7, atol=0):
            return f"1/({name})" if "·" in name or "/" in name else f"1/{name}"
    return ""


def _expressions(trials) -> dict[str, list[float]]:
    letters = {letter: [trial.sizes[letter] for trial in trials] for letter in trials[0].sizes}
    numbers = {
        name: [trial.inputs[name] for trial in trials]
        for name, value in trials[0].inputs.items()
        if isinstance(value, float)
    }
    if isinstance(trials[0].dy, float):
        numbers["dloss"] = [trial.dy for trial in trials]
    found = {"2": [2.0] * len(trials), "3": [3.0] * len(trials)} | numbers | letters
    for first, second in combinations([*letters, *numbers], 2):
        values = letters | numbers
        found[f"{first}·{second}"] = [a * b for a, b in zip(values[first], values[second], strict=True)]
    roots = {f"√{letter}": [sqrt(value) for value in values] for letter, values in letters.items()}
    ratios = {
        f"{first}/{second}": [a / b for a, b in zip(found[first], found[second], strict=True)]
        for first in ("B·T", *letters)
        for second in letters
        if second not in first
    }
    return found | roots | ratios


def _terms(exercise, trials, output, found, wanted, counted=True) -> str:
    """Which term of the gradient does not count once, where all that came is a sum of its terms.

    counted: tell any count; False: only what is missing or has the wrong sign
    """
    terms = [exercise.terms(trial).get(output, {}) for trial in trials]
    # What is 0 but for rounding, as the way through key to the bias is, can be counted at will.
    names = [
        name
        for name in terms[0]
        if all(
            magnitude(parts[name]) > FITS * magnitude(right)
            for parts, right in zip(terms, wanted, strict=True)
        )
    ]
    if not names:
        return ""
    counts = []
    for parts, array in zip(terms, found, strict=True):
        matrix = np.stack([parts[name].reshape(-1) for name in names], axis=1)
        count, _, rank, _ = np.linalg.lstsq(matrix, array.reshape(-1), rcond=None)
        if rank < matrix.shape[1] or not relative_error(matrix @ count, array.reshape(-1)) <= FITS:
            return ""
        counts.append(count)
    faults = []
    for name, count in zip(names, zip(*counts, strict=True), strict=True):
        if not np.allclose(count, 1, rtol=0, atol=1e-7):
            fault = _count([float(each) for each in count], trials)
            if not fault or (not counted and "counts" in fault):
                return ""
            faults.append(f"{name} {fault}")
    return _constant(found[0] - wanted[0], wanted[0]) + " and ".join(faults)


def _count(counts: list[float], trials: list[Trial]) -> str:
    """How often a term counts, which is not once; "" where that is neither one number nor one expression."""
    if np.allclose(counts, 0, rtol=0, atol=1e-7):
        return "is missing"
    if np.allclose(counts, -1, rtol=0, atol=1e-7):
        return "has the wrong sign"
    sign = "-" if counts[0] < 0 else ""
    if name := _expression(counts, trials):
        return f"counts {sign}{name} times instead of once"
    return f"counts {counts[0]:.4g} times instead of once" if np.ptp(counts) < 1e-7 else ""


# Patterns of the error


def _moved(found, wanted) -> str:
    for axis in range(wanted[0].ndim):
        for places in (1, -1):
            if _fits([np.roll(right, places, axis) for right in wanted], found):
                return f"the right numbers, but shifted by {places} along axis {axis}"
    same = all(
        np.allclose(np.sort(array, axis=None), np.sort(right, axis=None), rtol=1e-9, atol=1e-12)
        for array, right in zip(found, wanted, strict=True)
    )
    return (
        "the right numbers in the wrong places: look at indices, and at the order of axes in transpose and reshape"
        if same
        else ""
    )


def _constant(error: np.ndarray, wanted: np.ndarray) -> str:
    """Along which axis the error is the same everywhere, ending in a colon, or ""."""
    for axis, name in ((-1, "last"), (0, "first")):
        if error.ndim and error.shape[axis] > 2 and np.ptp(error, axis=axis).max() <= _least(wanted):
            return f"your error is constant along the {name} axis: "
    return ""


def _places(error: np.ndarray, wanted: np.ndarray) -> str:
    """Which part of the array is wrong, ending in a colon, or "" where most of it is."""
    wrong = np.abs(error) > _least(wanted)
    if wrong.mean() > 0.75:
        return ""
    rows = wrong.reshape(len(wrong), -1).any(axis=1)
    if rows.mean() <= 0.75:
        for only, these in (("only", rows), ("all but", ~rows)):
            if told := _list(np.flatnonzero(these)):
                return f"{only} {told} along the first axis {'is' if rows.sum() == 1 else 'are'} wrong: "
    return f"{int(wrong.sum())} of {wrong.size} numbers are wrong: "


def _least(wanted: np.ndarray) -> float:
    """The least difference that counts."""
    return FITS * magnitude(wanted)


def _list(places) -> str:
    """Places by their number, a run of them by its ends; "" where neither is short."""
    if len(places) > 2 and places[-1] - places[0] == len(places) - 1:
        return f"places {places[0]} to {places[-1]}"
    if len(places) > 6:
        return ""
    return f"place{'s' if len(places) > 1 else ''} {', '.join(map(str, places))}"


def _worst_place(found: np.ndarray, wanted: np.ndarray) -> str:
    difference = np.abs(found - wanted)
    index = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    share = relative_error(found, wanted)
    least = ROUNDING * magnitude(wanted)
    yours, right = (array[index] if abs(array[index]) > least else 0.0 for array in (found, wanted))
    return (
        f"the largest error is at {list(index)}: yours {yours:.6g}, right {right:.6g} "
        f"({share:.2g} of the largest magnitude); work that element out by hand from the equation"
    )
