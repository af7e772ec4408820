"""From the numbers of a wrong output to a teacher's hint.

Explanations are tried from the particular to the general: another output in its place, a term of the gradient
that is missing, a mistake that people are known to make in this exercise or its operations, a simple relation to
the right answer, a term that is miscounted, a pattern of the error; and where nothing fits, the place of the
largest error. An explanation counts only where it fits all trials to rounding.
"""

from typing import NamedTuple

import numpy as np

from contract.numbers import magnitude, relative_error
from learn.exercises.exercise import Instance, Trial, WrongOutputs, float_tensors
from learn.exercises.letters import axis_confused, expression

FITS = 1e-9  # an explanation fits where nothing is left but this share of the largest magnitude
ROUNDING = 1e-13  # what is below this share of the largest magnitude reads 0
FLOAT32 = 1e-5  # errors of this size are those of float32
UNNAMED = "a wrong size, or one written as a number"
SUMMED = ("B", "T", "B·T", "C", "V")  # counts of what is summed over


class Hint(NamedTuple):
    """A teacher's hint.

    text: what the student is told, without a full stop
    cause: the same without the numbers of one student's instance, for a class; "" where another output is the cause
    """

    text: str
    cause: str


class Found(NamedTuple):
    """What a student's file returned. outputs: "trial/output" -> float64 array; changed: what it changed in place"""

    outputs: dict[str, np.ndarray]
    changed: list[str]


def diagnose(instance: Instance, output: str, student: Found, earlier: str = "", intact: str = "") -> Hint:
    """The hint for one wrong output.

    student: of whose outputs there is an array of this one in each trial
    earlier: an output that is wrong too and that this one is computed from or after; "" where there is none
    intact: the last right output before the first wrong one, likewise
    """
    trials, solutions = instance.trials, instance.solutions
    found = [student.outputs[f"{trial}/{output}"] for trial in range(len(trials))]
    wanted = [solution[output] for solution in solutions]
    known = _known_mistake(instance, output, found, wanted, student.outputs)
    if not known and _fits(wanted[:1], found[:1]) and np.isfinite(found[1]).all():
        hint = "right on your instance, wrong on one of other sizes: a size is written as a number"
        return Hint(hint, hint)
    for name in () if known else solutions[0]:
        if name != output and _fits([solution[name] for solution in solutions], found):
            hint = f"this is {name}, not {output}: see which stands where in what you return"
            return Hint(hint, hint)
    if hint := _shape_hint(found, wanted, trials, known):
        return Hint(hint, f"wrong shape: {hint.partition(': ')[2]}")
    if hint := _not_finite(found):
        return Hint(hint, f"numbers that are not finite: {hint.partition(': ')[2]}")
    hint = (
        _terms(instance, output, found, wanted, counted=False)
        or known
        or _simple_relation(trials, found, wanted)
        or _factor(trials, solutions, found, wanted)
        or _terms(instance, output, found, wanted, counted=True)
        or _moved(found, wanted)
    )
    if hint:
        return Hint(f"right shape; {hint}", f"right shape; {hint}")
    if student.changed:
        why = f"{', '.join(student.changed)} changed in place, which may be why: mend that first"
        return Hint(f"right shape, wrong numbers; {why}", "")
    if earlier:
        return Hint(f"right shape; {earlier} comes before it and is wrong too: mend that first", "")
    clue = f"; {intact} comes before it and is right: the fault lies between them" if intact else ""
    return Hint(
        f"right shape; {_pattern(found[0], wanted[0])}{clue}",
        f"wrong in a way that no known mistake explains{clue}",
    )


def _shape_hint(found, wanted, trials, known) -> str:
    others = [each for each in zip(found, wanted, trials, strict=True) if each[0].shape != each[1].shape]
    if not others:
        return ""
    array, right, trial = others[0]
    extra, reason = array.ndim - right.ndim, known or "a gradient has the shape of what it is the gradient of"
    if np.squeeze(array).shape == np.squeeze(right).shape:
        reason = "an axis of length 1 too many or too few; see keepdims"
    elif array.shape == right.shape[::-1]:
        reason = "transposed" + (", otherwise right" if _fits([right], [array.T]) else "")
    elif confused := axis_confused(array.shape, right.shape, trial.sizes):
        reason = confused
    elif sorted(array.shape) == sorted(right.shape):
        reason = "the axes are in another order"
    elif extra > 0 and array.shape[extra:] == right.shape:
        reason = f"not summed over the leading {'axis' if extra == 1 else f'{extra} axes'}"
        if _fits([right], [array.sum(axis=tuple(range(extra)))]):
            reason += "; summed, it would be right"
    elif array.size == right.size:
        reason = "the same count of numbers; a reshape at the end is missing"
    return f"shape {array.shape}, wanted {right.shape}: {reason}"


def _not_finite(found) -> str:
    for array in found:
        if not np.isfinite(array).all():
            places = np.argwhere(~np.isfinite(array)).tolist()
            return (
                f"right shape; {len(places)} of {array.size} numbers are not finite, the first "
                f"{array[tuple(places[0])]} at {places[0]}: a division by 0, a root or logarithm of a negative number, "
                "or inf - inf"
            )
    return ""


# Explanations that fit exactly


def _fits(candidates, found) -> bool:
    return all(
        candidate.shape == array.shape and relative_error(array, candidate) <= FITS
        for candidate, array in zip(candidates, found, strict=True)
    )


def _times(arrays, factors) -> list[np.ndarray]:
    return [array * factor for array, factor in zip(arrays, factors, strict=True)]


def _known_mistake(instance, output, found, wanted, outputs) -> str:
    """The hint of the mistake that makes such an output, behind its relation to the right one.

    Where several make it, those count that make all the student's other outputs, too. If several remain, all are told:
    the numbers do not say which it is.
    """
    made = []
    for mistake in instance.wrong:
        changed = [each.get(output, right) for each, right in zip(mistake.trials, wanted, strict=True)]
        if any(output in each for each in mistake.trials) and _fits(changed, found):
            made.append(mistake)
    alone = [mistake for mistake in made if _makes_all(mistake, outputs)] or made
    hints = [*dict.fromkeys(mistake.hint for mistake in alone)]
    if not hints:
        return ""
    same_shapes = all(array.shape == right.shape for array, right in zip(found, wanted, strict=True))
    relation = _simple_relation(instance.trials, found, wanted) if same_shapes else ""
    return (f"{relation}; " if relation and UNNAMED not in relation else "") + "; or else: ".join(hints)


def _makes_all(mistake: WrongOutputs, outputs: dict) -> bool:
    """Whether every output that a mistake changes came as the mistake makes it."""
    return all(
        f"{trial}/{name}" in outputs and _fits([value], [outputs[f"{trial}/{name}"]])
        for trial, changed in enumerate(mistake.trials)
        for name, value in changed.items()
    )


def _simple_relation(trials, found, wanted) -> str:
    if all(not array.any() for array in found):
        return "all zeros: nothing is put into it"
    if _fits([-right for right in wanted], found):
        return "the sign is wrong, all else is right"
    pairs = [*zip(found, wanted, strict=True)]
    factors = [float(np.vdot(right, array) / np.vdot(right, right)) for array, right in pairs]
    if all(factors) and _fits(_times(wanted, factors), found):
        sign = "the sign is wrong and it is" if factors[0] < 0 else "it is"
        same = np.allclose(factors, factors[0])
        number = f"{abs(factors[0]):.6g}" if same else UNNAMED
        name = expression(factors, trials) or number
        note = ": a mean and a sum are mixed up" if name.removeprefix("1/").strip("()") in SUMMED else ""
        return f"{sign} off by a constant factor of {name}{note}; all else is right"
    offsets = [float((array - right).flat[0]) for array, right in pairs]
    if np.allclose(offsets, offsets[0]) and _fits(wanted, [array - offsets[0] for array in found]):
        return f"every number is off by {offsets[0]:.6g}, all else is right: does the sum start from 0?"
    if all(relative_error(array, right) < FLOAT32 for array, right in pairs):
        return "right to the digits of float32: keep everything in float64 and constants in full"
    if wanted[0].ndim == 2 and _fits([right.T for right in wanted], found):
        return "transposed, all else is right"
    return ""


def _factor(trials, solutions, found, wanted) -> str:
    """Which tensor of the forward pass is a factor too few or too many, element by element."""
    tensors = [
        float_tensors(trial.inputs | {"y": solution.get("y"), "dy": trial.dy})
        for trial, solution in zip(trials, solutions, strict=True)
    ]
    for name, tensor in tensors[0].items():
        if tensor.ndim == 0 or tensor.shape != wanted[0].shape[wanted[0].ndim - tensor.ndim :]:
            continue
        factors = [each[name] for each in tensors]
        if _fits(_times(wanted, factors), found):
            return f"a factor {name} is too much, all else is right"
        if _fits(wanted, _times(found, factors)):
            return f"a factor {name} is missing, all else is right"
    return ""


def _terms(instance, output, found, wanted, *, counted: bool) -> str:
    """Which term of the gradient does not count once, where all that came is a sum of its terms.

    counted: tell any count; False: only what is missing or has the wrong sign
    """
    trials = instance.trials
    terms = [each.get(output, {}) for each in instance.terms]
    if not terms[0]:
        return ""
    counts = []
    for parts, array in zip(terms, found, strict=True):
        matrix = np.stack([part.reshape(-1) for part in parts.values()], axis=1)
        count, _, rank, _ = np.linalg.lstsq(matrix, array.reshape(-1), rcond=None)
        if rank < matrix.shape[1] or not relative_error(matrix @ count, array.reshape(-1)) <= FITS:
            return ""
        counts.append(count)
    faults = []
    for name, count in zip(terms[0], zip(*counts, strict=True), strict=True):
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
    if name := expression(counts, trials):
        return f"counts {sign}{name} times instead of once"
    return f"counts {counts[0]:.4g} times instead of once" if np.ptp(counts) < 1e-7 else ""


# Patterns of the error


def _moved(found, wanted) -> str:
    for axis in range(wanted[0].ndim):
        for places in (1, -1):
            if _fits([np.roll(right, places, axis) for right in wanted], found):
                return f"the right numbers, but shifted by {places} along axis {axis}"
    for array, right in zip(found, wanted, strict=True):
        if not np.allclose(np.sort(array, axis=None), np.sort(right, axis=None), rtol=1e-9, atol=1e-12):
            return ""
    return "the right numbers in the wrong places: look at indices, and at the order of axes in transpose and reshape"


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


def _pattern(found: np.ndarray, wanted: np.ndarray) -> str:
    """What is wrong where, and the place of the largest error."""
    error = found - wanted
    pattern = _constant(error, wanted) or _places(error, wanted)
    index = tuple(int(i) for i in np.unravel_index(np.abs(error).argmax(), error.shape))
    least = ROUNDING * magnitude(wanted)
    yours, right = (array[index] if abs(array[index]) > least else 0.0 for array in (found, wanted))
    return (
        f"{pattern}the largest error is at {list(index)}: yours {yours:.6g}, right {right:.6g} "
        f"({relative_error(found, wanted):.2g} of the largest magnitude); work that element out by hand from the "
        "equation"
    )
