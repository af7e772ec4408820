"""Whether a gradient is right for a forward pass with a mistake: then there is one mistake to tell, not two.

Who computes something else forward usually differentiates that something. Its derivative is taken here by
complex steps, a number at a time and exact to rounding, from the same functions that explain a forward pass.
"""

from collections.abc import Callable, Mapping

import numpy as np

from contract.numbers import magnitude, relative_error
from parity.dataflow import Dataflow
from parity.explanations import Explanation, Mistake, Setting, known_mistakes, results
from parity.operations import Operation, forward_operations
from parity.recompute import KINDS

MOST_NUMBERS = 200  # of a tensor that are looked at, evenly spread
_STEP = 1e-30


def readers(flow: Dataflow, tensor: str) -> list[tuple[str, Operation, str, bool]]:
    """Where the forward pass reads a tensor: result, operation, role, and whether only mistakes read it there."""
    found = []
    for result, operation in forward_operations(flow.pack.config).items():
        found += [
            (result, operation, role, False) for role, name in operation.inputs.items() if name == tensor
        ]
        found += [
            (result, operation, role, True) for role, name in operation.extras.items() if name == tensor
        ]
    return found


def same_mistake(
    flow: Dataflow, gradient: str, kind: str, explanations: list[Explanation], close: float
) -> list[Explanation]:
    """Of the mistakes found in the forward operations of a kind, those that give this gradient, too.

    gradient: name of a tensor, such as "gradient.final_norm.weight"; close: how far it may be off
    """
    tensor, found = gradient.removeprefix("gradient."), flow.found[gradient]
    if found.shape != flow.golden[gradient].shape or not np.isfinite(found).all() or not np.any(found):
        return []
    places = np.unique(np.linspace(0, found.size - 1, min(found.size, MOST_NUMBERS)).astype(int))
    wanted, scale = found.flat[places], magnitude(found)
    by_name, fitting = {each.name: each for each in known_mistakes()}, []
    for explanation in explanations:
        if explanation.name not in by_name:
            continue
        forms = _gradients(flow, tensor, kind, by_name[explanation.name], places)
        errors = np.array([relative_error(form, wanted, scale) for form in forms])
        if (errors <= close).any():
            fitting.append(explanation._replace(error=float(errors[errors <= close].min())))
    return fitting


def _gradients(flow: Dataflow, tensor: str, kind: str, mistake: Mistake, places) -> np.ndarray:
    """The tensor's gradient at `places` where operations of a kind have the mistake, a row for each of its forms."""
    setting, total = Setting(flow.pack.config, *flow.golden["tokens"].shape), np.zeros((1, len(places)))
    for result, operation, role, extra in readers(flow, tensor):
        wrong = operation.kind == kind
        if (extra and not wrong) or not flow.repeatable(operation):
            continue

        def compute(inputs, operation=operation, wrong=wrong):
            right = KINDS[operation.kind].compute
            if not wrong:
                return [right(setting.config, **inputs, **operation.settings)]
            specific = operation.kind in mistake.kinds
            expected = None if specific else right(setting.config, **inputs, **operation.settings)
            return results(mistake, setting, operation, inputs, expected, specific)

        dy = flow.tensor(f"gradient.{result}")
        total = total + _derivative(compute, flow.inputs(operation, extras=wrong), role, dy, places)
    return total


def _derivative(compute: Callable, inputs: Mapping[str, np.ndarray], role: str, dy, places) -> np.ndarray:
    """The derivative of Σ dy · y by the numbers of an input, for each of the y that `compute` makes; nan where
    y has another shape than dy."""
    inputs = {
        name: value.astype(complex) if value.dtype.kind == "f" else value for name, value in inputs.items()
    }
    columns = []
    with np.errstate(all="ignore"):
        for place in places:
            moved = inputs[role].copy()
            moved.flat[place] += 1j * _STEP
            values = compute({**inputs, role: moved})
            columns.append(
                [
                    np.sum(dy * y.imag) / _STEP if y.shape == dy.shape else np.nan
                    for y in map(np.asarray, values)
                ]
            )
    return np.array(columns).reshape(len(places), -1).T
