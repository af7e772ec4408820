"""One pass forward and back through either twin, with every tensor on record."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

import numpy_llm
import torch_llm
from contract.trace import NO_TRACE, Trace
from parity.cases import Case, Inputs, cast_weights
from parity.compare import Comparison, Row, compare
from parity.tolerances import MOST_ROUNDING, NEIGHBOURS, ROUNDING


class Twins(NamedTuple):
    """The packages to compare: the twins themselves, or a copy of one with a fault."""

    reference: ModuleType = numpy_llm
    twin: ModuleType = torch_llm


class Record(NamedTuple):
    """What a pass computed, by name, in the order in which it did; for weights that is their table reversed."""

    activations: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    weight_gradients: dict[str, np.ndarray]


QUANTITIES = ("activation", "gradient", "weight gradient")  # of a record's three parts


def reference_pass(package: ModuleType, config, inputs: Inputs, *, traced=True) -> Record:
    """The pass of the hand-written model; untraced, its activations are logits and loss alone.

    package: `numpy_llm` or a changed copy of it
    """
    trace = Trace()
    model = package.GPT(config, inputs.weights)
    settings = {"trace": trace if traced else NO_TRACE}
    logits, loss, cache = model.forward(inputs.tokens, inputs.targets, dropout=inputs.dropout, **settings)
    gradients = model.backward(cache, **settings)
    if not traced:
        trace.activations.update(logits=logits, loss=loss)
    return Record(trace.activations, trace.gradients, _backward_order(gradients))


@contextmanager
def in_blocks(package: ModuleType, queries: int = 2, keys: int = 3) -> Iterator[None]:
    """Let untraced passes of the hand-written model attend in blocks of so few queries and keys, whatever the text."""
    small = patch.multiple(package.attend_in_blocks, _QUERIES=queries, _KEYS=keys)
    with patch.object(package.attention, "BLOCKS_FROM", 1), small:
        yield


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
    parameters = model.named_parameters()
    gradients = {name: _array(weight.grad) for name, weight in parameters if weight.grad is not None}
    return Record(trace.activations, trace.gradients, _backward_order(gradients))


def compare_passes(reference: Record, dtype: str, *, traced: Record | None, untraced: Record) -> list[Row]:
    """Every tensor of the traced pass, then what the untraced one shows, each in dataflow order."""
    rows = []
    if traced is not None:
        for quantity, ours, theirs in zip(QUANTITIES, reference, traced, strict=True):
            rows += compare(quantity, ours, theirs, dtype)
    outputs = {name: reference.activations[name] for name in ("logits", "loss")}
    rows += compare("untraced output", outputs, untraced.activations, dtype)
    rows += compare("untraced gradient", reference.weight_gradients, untraced.weight_gradients, dtype)
    return rows


def allow_rounding(rows: list[Row], config, inputs: Inputs) -> list[Row]:
    """The rows of a float32 comparison, the limit widened where float32 does not determine a tensor that well.

    How much is left open is measured in the twin's traced pass on the CPU alone, so that nothing that is compared can
    excuse itself: how far its float32 is from its float64, at most, on the weights given and on some that differ
    from them in the last bit.

    inputs: in float32
    """
    if all(row.holds for row in rows):
        return rows
    random, rounding = np.random.default_rng(0), {}
    for draw in range(NEIGHBOURS + 1):
        near = cast_weights(config, inputs.weights, "float32")
        near.flat *= 1 + np.float32(2.0**-23) * random.integers(-1, 2, near.flat.size) * bool(draw)
        same = cast_weights(config, near, "float64")
        exact = twin_pass(torch_llm, config, inputs._replace(weights=same), traced=True)
        rounded = twin_pass(torch_llm, config, inputs._replace(weights=near), traced=True)
        rounded = Record(*({n: value.astype(np.float64) for n, value in part.items()} for part in rounded))
        for row in compare_passes(exact, "float64", traced=rounded, untraced=rounded):
            if not row.problem:
                rounding[row[:2]] = max(row.error, rounding.get(row[:2], 0.0))
    widened = []
    for row in rows:
        own = rounding.get(row[:2], 0.0)
        limit = min(ROUNDING * own, MOST_ROUNDING)
        allowed = not row.holds and not row.problem and row.error <= limit
        widened.append(row._replace(limit=limit, rounding=own) if allowed else row)
    return widened


def compare_case(case: Case, dtype: str, twins: Twins) -> Comparison:
    """Both twins on one case, traced and untraced."""
    traced, untraced = twin_passes(twins.twin, case, dtype)
    found = reference_pass(twins.reference, case.config, case.inputs(dtype))
    rows = compare_passes(found, dtype, traced=traced, untraced=untraced)
    return Comparison(case.title, dtype, case.seed, rows)


def compare_in_blocks(case: Case, twins: Twins) -> Comparison:
    """Both twins' untraced passes on one case in float64, the reference's with attention in small blocks."""
    with in_blocks(twins.reference):
        found = reference_pass(twins.reference, case.config, case.inputs("float64"), traced=False)
    _, untraced = twin_passes(twins.twin, case, "float64")
    rows = compare_passes(found, "float64", traced=None, untraced=untraced)
    return Comparison(f"{case.title}, attention in blocks", "float64", case.seed, rows)


@lru_cache(maxsize=128)  # many changed references are held against the same twin
def twin_passes(twin: ModuleType, case: Case, dtype: str) -> tuple[Record, Record]:
    """The traced and the untraced pass of a case."""
    inputs = case.inputs(dtype)
    return tuple(twin_pass(twin, case.config, inputs, traced=traced) for traced in (True, False))


def kink_distance(record: Record) -> float:
    """How near the closest input of ReLU is to 0, where its slope jumps, relative to that layer's largest.

    Nearer than rounding, two correct programs may fall on different sides of it and have other gradients.
    """
    gated = any(name.endswith("feed_forward.gate") for name in record.activations)
    inputs = f"feed_forward.{'gate' if gated else 'up'}"
    hidden = [value for name, value in record.activations.items() if name.endswith(inputs)]
    return min(float(np.abs(value).min() / (np.abs(value).max() or 1)) for value in hidden)


def cancellation(record: Record) -> float:
    """The least ratio of a gradient's largest number to that of the gradient before it; one of all zeros is skipped.

    What is left of large terms that cancel has their rounding, so fewer digits of its own.
    """
    sizes = [float(np.abs(gradient).max()) for gradient in record.gradients.values() if gradient.any()]
    return min((after / before for before, after in pairwise(sizes)), default=1.0)


def _backward_order(gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: gradients[name] for name in reversed(list(gradients))}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
