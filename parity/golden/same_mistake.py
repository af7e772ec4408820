"""Is a wrong gradient the exact derivative of a forward mistake already reported? Then report it once.

Who computes something else forward usually differentiates that something. Its derivative is taken here by complex
steps, one number at a time and exact to rounding, of the functions that explain a forward pass.
"""

from collections.abc import Callable

import numpy as np

from contract.numbers import magnitude, relative_error
from contract.trace import Named
from operations.catalogue import OPERATIONS
from operations.dataflow import GRADIENT, Dataflow
from operations.operation import Mistake
from parity.golden.explanations import Explanation
from parity.golden.tensors import Tensors

MAX_NUMBERS = 200  # of a tensor that are looked at, evenly spread
_STEP = 1e-30


def same_mistake(
    tensors: Tensors, gradient: str, explanations: list[Explanation], close: float
) -> list[Explanation]:
    """Of the mistakes found in a forward operation, those that also give this gradient.

    gradient: name of a tensor, such as "gradient.final_norm.weight"; close: the largest relative error
    """
    name, found = gradient.removeprefix(GRADIENT), tensors.determined(gradient, tensors.found[gradient])
    if found.shape != tensors.golden[gradient].shape or not np.isfinite(found).all() or not np.any(found):
        return []
    determined = np.flatnonzero(tensors.determined(gradient, np.ones(found.shape)))
    count = min(determined.size, MAX_NUMBERS)
    places = determined[np.unique(np.linspace(0, determined.size - 1, count).astype(int))]
    fitting = []
    for explanation in explanations:
        operation = OPERATIONS.get(explanation.operation)
        # What reads another tensor is no mistake of the operation's own.
        mistake = (
            next((m for m in operation.mistakes if m.name == explanation.name), None) if operation else None
        )
        if mistake:
            forms = gradients_with(tensors, name, explanation.operation, mistake, places)
            errors = [relative_error(found.flat[places], form, magnitude(found)) for form in forms]
            if errors and min(errors) <= close:
                fitting.append(explanation._replace(error=min(errors)))
    return fitting


def gradients_with(tensors: Tensors, name: str, operation: str, mistake: Mistake, places) -> np.ndarray:
    """The gradient of the tensor at `places` where an operation has the mistake, a row for each of its forms."""
    graph, total = tensors.graph, np.zeros((1, len(places)))
    readers = graph.readers(name)
    for node in graph.nodes:  # those to which the mistake alone leads
        if node.operation == operation and Named(name) in graph.others(mistake, node).values():
            readers += node.results
    for result in dict.fromkeys(readers):
        if not tensors.repeatable(tensors.origins[result]):
            continue
        wrong = any(node.operation == operation for node, _ in graph.steps(result))

        def compute(value, result=result, wrong=wrong):
            moved = Dataflow(graph.nodes, graph.known, value)
            if not wrong:
                return [moved.right(result)]
            return [each.value for each in moved.wrong(result, only=mistake)]

        dy = tensors.tensor(GRADIENT + result)
        total = total + _derivative(compute, tensors.tensor, name, dy, places)
    return total


def _derivative(compute: Callable, value: Callable, name: str, dy: np.ndarray, places) -> np.ndarray:
    """The derivative of Σ dy · y by the numbers of a tensor, for each of the y that `compute` makes; nan where y has
    another shape than dy.

    compute: name -> value of a tensor -> the y
    """
    columns, start = [], value(name).astype(complex)
    for place in places:
        moved = start.copy()
        moved.flat[place] += 1j * _STEP
        with np.errstate(all="ignore"):
            values = map(
                np.asarray, compute(lambda each, moved=moved: moved if each == name else value(each))
            )
            columns.append([np.sum(dy * y.imag) / _STEP if y.shape == dy.shape else np.nan for y in values])
    return np.array(columns).reshape(len(places), -1).T
