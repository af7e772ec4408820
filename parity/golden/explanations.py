"""Which of the known mistakes gives exactly somebody's numbers.

A mistake explains a tensor where what it computes is the tensor, to rounding. The mistakes of each operation stand in
`operations/`; those that any operation can have stand here.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from contract.numbers import magnitude, relative_error
from operations.operation import Mistake
from parity.golden.sixteen_bits import root_mean_square
from parity.golden.tensors import Tensors

MAX_EXPLANATIONS = 3  # some mistakes have the same result on some models


class Explanation(NamedTuple):
    """A mistake that fits.

    name, text: the mistake's; error: the largest difference left, relative to the largest magnitude
    operation: the one that has it; "" for a mistake that any operation can have
    by_size: whether no more than the size of the error fits, as in 16 bits, where sums depend on their order
    """

    name: str
    text: str
    error: float
    operation: str = ""
    by_size: bool = False


def explain(tensors: Tensors, name: str) -> list[Explanation]:
    """The mistakes that give the dump's tensor from the inputs in the dump and, where it lacks them, the golden ones:
    the closest first, general ones where no other fits.
    """
    origin = tensors.origins.get(name)
    again = tensors.repeatable(origin)
    expected = np.asarray(origin.right()) if again else tensors.golden[name]
    expected, found = (tensors.determined(name, each) for each in (expected, tensors.found[name]))

    def fitting(wrong: Iterable[tuple]) -> list[Explanation]:
        values = ((*mistake, tensors.determined(name, np.asarray(value))) for *mistake, value in wrong)
        return _fitting(values, expected, found, 4 * tensors.limits[name])

    # Over several operations, those first that no right tensor of the dump clears.
    sound = [each for each in tensors.right if each in tensors.origins] if tensors.bridged(name) else []
    sizes = *tensors.golden["tokens"].shape, tensors.pack.config.head_size
    # Twice or half a token's id would be a coincidence.
    general = () if tensors.golden[name].dtype.kind == "i" else ANYWHERE
    anywhere = (("", mistake, form) for mistake in general for form in mistake.forms(expected, *sizes))
    of_pass = tensors.graph if again and tensors.of_pass(name) else None
    for wrong in (
        of_pass.wrong(name, sound=sound) if of_pass and sound else (),
        origin.wrong() if again else (),
    ):
        if fits := fitting(wrong):
            return fits[:MAX_EXPLANATIONS]
    if tensors.coarse and name in tensors.strange and (fits := _rounded_too_early(tensors, name)):
        return fits
    for wrong in (anywhere, of_pass.misread(name) if of_pass else ()):
        if fits := fitting(wrong):
            return fits[:MAX_EXPLANATIONS]
    return [] if not general else _constant_factor(expected, found, 4 * tensors.limits[name])


def _fitting(wrong: Iterable[tuple], expected, found, close: float) -> list[Explanation]:
    best: dict[str, Explanation] = {}
    for operation, mistake, value in wrong:
        error = _error(np.asarray(value), found)
        # A mistake that changes nothing here, or less than what it leaves unexplained, explains nothing.
        fits = error <= close and 8 * error < _error(expected, np.asarray(value))
        if fits and (mistake.name not in best or error < best[mistake.name].error):
            best[mistake.name] = Explanation(mistake.name, mistake.text, error, operation)
    return sorted(best.values(), key=lambda each: each.error)


def _rounded_too_early(tensors: Tensors, name: str) -> list[Explanation]:
    """The mistakes of programs in 16 bits that lead as far from what the inputs in the dump give as the tensor is."""
    right = tensors.graph.right(name)
    own = root_mean_square(tensors.determined(name, tensors.tensor(name) - right))
    found = {}
    for operation, mistake, value in tensors.graph.wrong(name, roundings=True):
        size = root_mean_square(tensors.determined(name, value - right))
        if size and max(own / size, size / own) < 3:
            found[mistake.name] = Explanation(mistake.name, mistake.text, size, operation, by_size=True)
    return [*found.values()][:MAX_EXPLANATIONS]


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


# fmt: off
_ANYWHERE = {
    "sign": ("the sign is wrong", lambda x, B, T, D: -x),
    "zeros": ("it is all zeros: never computed, never written, or overwritten before it was dumped",
              lambda x, B, T, D: np.zeros_like(x)),
    "twice": ("twice too large: added to what an earlier pass left there, or counted twice; zero the gradients first",
              lambda x, B, T, D: 2 * x),
    "half": ("half of the right value: one of two equal parts is missing, or a factor 1/2 is too many",
             lambda x, B, T, D: x / 2),
    "factor_batch": ("a factor of the batch size B: a sum where a mean over the batch is wanted, or the other way "
                     "round", lambda x, B, T, D: [x * B, x / B]),
    "factor_time": ("a factor of the sequence length T: a sum where a mean over time is wanted, or the other way "
                    "round", lambda x, B, T, D: [x * T, x / T]),
    "factor_tokens": ("a factor of B·T: the loss is a mean over all tokens, so divide by B·T once, and only once",
                      lambda x, B, T, D: [x * B * T, x / (B * T)]),
    "factor_root_head": ("a factor of √D: the scores' 1/√D is missing or taken twice",
                         lambda x, B, T, D: [x * D**0.5, x / D**0.5]),
    "transposed": ("transposed: the last two axes are swapped",
                   lambda x, B, T, D: x.swapaxes(-1, -2) if x.ndim > 1 else None),
    "column_major": ("the numbers of the transpose under the right shape: column-major order read as row-major",
                     lambda x, B, T, D: [x.swapaxes(-1, -2).reshape(x.shape), x.ravel(order="F").reshape(x.shape)]
                     if x.ndim > 1 else None),
    "time_first": ("the first two axes are swapped: time comes before batch",
                   lambda x, B, T, D: x.swapaxes(0, 1) if x.ndim > 2 else None),
    "heads_last": ("heads and time are swapped: wanted (batch, head, time, channel)",
                   lambda x, B, T, D: [x.swapaxes(1, 2), x.swapaxes(1, 2).reshape(x.shape)]
                   if x.ndim == 4 else None),
    "shifted": ("moved by one place along time",
                lambda x, B, T, D: [np.roll(x, by, axis=1) for by in (1, -1)] if x.shape[:2] == (B, T) else None),
    "flattened": ("flattened: the right numbers in the right order under another shape",
                  lambda x, B, T, D: [x.ravel(), x.reshape(-1, *x.shape[-1:]), x.reshape(1, *x.shape)]),
}
# fmt: on
# Called with the right result, batch size, sequence length and head size.
ANYWHERE = [Mistake(name, text, "", False, compute) for name, (text, compute) in _ANYWHERE.items()]
