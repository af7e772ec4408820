"""One pass forward and back through either twin, with every tensor on record."""

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

import numpy_llm
import torch_llm
from contract.trace import NO_TRACE, Trace
from contract.weights import Weights
from parity.cases import Case, Inputs
from parity.compare import Comparison, Row, compare
from parity.tolerances import MOST_ROUNDING, NEIGHBOURS, ROUNDING


class Twins(NamedTuple):
    """The packages to hold against each other: the twins themselves, or copies with a fault in one."""

    reference: ModuleType = numpy_llm
    twin: ModuleType = torch_llm


class Record(NamedTuple):
    """What a pass computed, by name.

    activations, gradients: in the order in which the pass met them; weight_gradients: in that order too,
        which is the weight table's reversed
    """

    activations: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    weight_gradients: dict[str, np.ndarray]


def reference_pass(package: ModuleType, config, inputs: Inputs) -> Record:
    """The pass of the hand-written model; package: `numpy_llm` or a changed copy of it."""
    trace = Trace()
    model = package.GPT(config, inputs.weights)
    _, _, cache = model.forward(inputs.tokens, inputs.targets, dropout=inputs.dropout, trace=trace)
    gradients = model.backward(cache, trace=trace)
    return Record(trace.activations, trace.gradients, _backward_order(gradients))


def twin_pass(
    package: ModuleType, config, inputs: Inputs, *, traced: bool, device="cpu", compiled=False
) -> Record:
    """The pass of the twin; untraced, its activations are logits and loss alone.

    package: `torch_llm` or a changed copy of it; compiled: run the untraced pass through `torch.compile`
    """
    trace = Trace()
    model = package.GPT(config, inputs.weights).to(device)
    run = torch.compile(model) if compiled else model
    tokens, targets = (torch.tensor(each, device=device) for each in (inputs.tokens, inputs.targets))
    settings = {"dropout": inputs.dropout, "trace": trace if traced else NO_TRACE}
    logits, loss = run(tokens, targets, **settings)
    loss.backward()
    if not traced:
        trace.activations.update(logits=_array(logits), loss=_array(loss))
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    gradients = {name: _array(gradient) for name, gradient in gradients.items()}
    return Record(trace.activations, trace.gradients, _backward_order(gradients))


def compare_passes(reference: Record, dtype: str, *, traced: Record | None, untraced: Record) -> list[Row]:
    """Every tensor of the traced pass, then what the untraced one shows, each in dataflow order."""
    rows = []
    if traced is not None:
        rows += compare("activation", reference.activations, traced.activations, dtype)
        rows += compare("gradient", reference.gradients, traced.gradients, dtype)
        rows += compare("weight gradient", reference.weight_gradients, traced.weight_gradients, dtype)
    outputs = {name: reference.activations[name] for name in ("logits", "loss")}
    rows += compare("untraced output", outputs, untraced.activations, dtype)
    rows += compare("untraced gradient", reference.weight_gradients, untraced.weight_gradients, dtype)
    return rows


def allow_rounding(rows: list[Row], config, inputs: Inputs) -> list[Row]:
    """The rows of a float32 comparison, the limit widened where float32 does not determine a tensor that well.

    What is left open is told by the twin's traced pass on the processor alone, so that nothing that is compared
    can excuse itself, neither the reference nor a fused or compiled twin nor another device: how far its float32
    is from its float64, at the most of the weights given and of some that differ from them in the last bit.

    inputs: in float32
    """
    if all(row.holds for row in rows):
        return rows
    random, rounding = np.random.default_rng(0), {}
    for draw in range(NEIGHBOURS + 1):
        near = Weights.zeros(config, "float32")
        near.flat[...] = inputs.weights.flat
        near.flat *= 1 + np.float32(2.0**-23) * random.integers(-1, 2, near.flat.size) * bool(draw)
        same = Weights.zeros(config, "float64")
        same.flat[...] = near.flat
        exact = twin_pass(torch_llm, config, inputs._replace(weights=same), traced=True)
        rounded = twin_pass(torch_llm, config, inputs._replace(weights=near), traced=True)
        rounded = Record(*({n: value.astype(np.float64) for n, value in part.items()} for part in rounded))
        for row in compare_passes(exact, "float64", traced=rounded, untraced=rounded):
            if not row.problem:
                key = row.quantity, row.name
                rounding[key] = max(row.error, rounding.get(key, 0.0))

    def widened(row: Row) -> Row:
        own = rounding.get((row.quantity, row.name), 0.0)
        limit = min(ROUNDING * own, MOST_ROUNDING)
        if row.holds or row.problem or row.error > limit:
            return row
        return row._replace(limit=limit, rounding=own)

    return [widened(row) for row in rows]


def compare_case(case: Case, dtype: str, twins: Twins) -> Comparison:
    """Both twins on one case, traced and untraced."""
    traced, untraced = twin_passes(twins.twin, case, dtype)
    found = reference_pass(twins.reference, case.config, case.inputs(dtype))
    return Comparison(
        case.title, dtype, case.seed, compare_passes(found, dtype, traced=traced, untraced=untraced)
    )


@lru_cache(maxsize=128)  # many changed references are held against the same twin
def twin_passes(twin: ModuleType, case: Case, dtype: str) -> tuple[Record, Record]:
    """The traced and the untraced pass of a case."""
    traced, untraced = (
        twin_pass(twin, case.config, case.inputs(dtype), traced=traced) for traced in (True, False)
    )
    return traced, untraced


def kink_distance(record: Record) -> float:
    """How near the closest input of ReLU is to 0, where its slope jumps, relative to that layer's largest.

    Nearer than rounding, two correct programs may fall on different sides of it and have other gradients.
    """
    hidden = [value for name, value in record.activations.items() if name.endswith("feed_forward.up")]
    return min(float(np.abs(value).min() / (np.abs(value).max() or 1)) for value in hidden)


def cancellation(record: Record) -> float:
    """How much smaller the largest number of a gradient is, at the least, than that of the gradient before it.

    What is left of large terms that cancel has their rounding, so fewer digits of its own. A gradient that is
    exactly 0 does not count.
    """
    sizes = [float(np.abs(gradient).max()) for gradient in record.gradients.values() if gradient.any()]
    return min((after / before for before, after in pairwise(sizes)), default=1.0)


def _backward_order(gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: gradients[name] for name in reversed(list(gradients))}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
