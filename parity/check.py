"""Holding a dump against a golden pack: the first tensor that diverges, and the operation at fault."""

from collections.abc import Mapping
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError
from contract.weights import weight_table
from parity.compare import Row
from parity.dumps import read_dump
from parity.explanations import Explanation, Setting, explain
from parity.operations import (
    CONTINUATIONS,
    Operation,
    given_names,
    gradient_of_step,
    pass_operations,
    step_operations,
    weight_before,
)
from parity.packs import Pack
from parity.recompute import KINDS, pass_of_step

MOST_FAULTS = 5  # that are looked into, one after the other


# What the model as a whole computes: wrong wherever the model is, so never worth a report beside another fault.
_WHOLE = ("loss of a step", "gradient norm of a step")


class Fault(NamedTuple):
    """An operation that went wrong.

    row: the tensor it made; operation: what it was, None for a tensor that a pack starts from
    inputs: name -> "right", "diverges", "not in the dump", "not in the pack" or "given", which the pack provides
    explanations: the mistakes that give the dump's numbers, the best first
    elsewhere: other tensors that an operation of the same kind made, and made wrong by itself
    """

    row: Row
    operation: Operation | None
    inputs: dict[str, str]
    explanations: list[Explanation]
    elsewhere: list[str]

    @property
    def sure(self) -> bool:
        """Whether every input is known to be right, so that the fault can only be in this operation."""
        return all(state in ("right", "given") for state in self.inputs.values())


class Report(NamedTuple):
    """pack: its name; dtype: whose limits were applied; rows: in dataflow order

    missing: names of the pack that the dump lacks; unknown: names of the dump that the pack lacks
    faults: the first divergence, then those that do not follow from another one
    """

    pack: str
    dtype: str
    rows: list[Row]
    missing: list[str]
    unknown: list[str]
    faults: list[Fault]

    @property
    def diverging(self) -> list[Row]:
        return [row for row in self.rows if not row.holds]


def check_dump(path: Path, pack: Pack, *, dtype: str | None = None) -> Report:
    """Compare the dump at `path` with a pack.

    dtype: "float32" or "float64", whose limits to apply; None takes the coarser one that the dump holds
    Raises UserError where the dump cannot be read, ConfigError for another dtype.
    """
    if dtype not in (None, "float32", "float64"):
        raise ConfigError(f"--dtype must be float32 or float64, got {dtype}")
    dump, unknown = read_dump(path, pack.tensors)
    return compare_dump(dump, pack, dtype=dtype, unknown=unknown)


def compare_dump(
    dump: Mapping[str, np.ndarray], pack: Pack, *, dtype: str | None = None, unknown=()
) -> Report:
    """The same for tensors in memory, by name."""
    if dtype is None:
        dtype = "float32" if any(tensor.dtype == np.float32 for tensor in dump.values()) else "float64"
    flow = Dataflow(pack, dtype)
    golden, found = flow.golden, split_steps(dump, pack)
    rows = [
        _row(name, golden[name], found[name], flow.limits[name], flow.scales[name])
        for name in flow.order
        if name in found
    ]
    missing = [name for name in pack.tensors if name not in dump]
    return Report(pack.name, dtype, rows, missing, list(unknown), _faults(flow, rows, found))


def split_steps(tensors: Mapping[str, np.ndarray], pack: Pack) -> dict[str, np.ndarray]:
    """The tensors, those with a row for each step of AdamW cut into `NAME[1]`, `NAME[2]`, ...

    A dump may end after fewer steps than the pack.
    """
    split = {}
    for name, tensor in tensors.items():
        shape = pack.tensors[name].shape
        stepwise = name.startswith("adamw.") and tensor.ndim and 0 < len(tensor) <= shape[0]
        if stepwise and tensor.shape[1:] == shape[1:]:
            split |= {f"{name}[{step}]": row for step, row in enumerate(tensor, 1)}
        else:
            # Many libraries have no scalars: a loss of shape [1] is as good.
            split[name] = tensor.reshape(()) if not shape and tensor.size == 1 else tensor
    return split


class Dataflow:
    """A pack laid out in the order in which its numbers come about.

    order: names, those of AdamW's steps one by one; operations: what made each, by name
    golden: tensors; limits, scales: how far another program may be off, and in units of what
    """

    def __init__(self, pack: Pack, dtype: str):
        config, adamw = pack.config, pack.manifest["adamw"]
        split = split_steps(pack.tensors, pack)
        rates = [name for name in split if name.startswith("adamw.learning_rate[")]
        self.pack = pack
        self.given = [*given_names(config), *rates, "greedy.prompt", "sampled.prompt", "sampled.draws"]
        self.operations = pass_operations(config) | step_operations(config, adamw) | CONTINUATIONS
        # The uncut ones too: a dump's may have a shape that cannot be cut.
        self.golden = split | pack.tensors
        order = dict.fromkeys([*self.given, *self.operations, *self.golden])
        self.order = [name for name in order if name in self.golden]
        self.limits, self.scales = {}, {}
        rows = {row["name"]: row for row in pack.manifest["tensors"]}
        for name in self.order:
            row = rows[name.partition("[")[0]]
            self.limits[name] = float(row[dtype])
            self.scales[name] = float(np.abs(self.golden[name]).max(initial=0)) or float(row["scale"])

    def inputs(self, operation: Operation, tensors: Mapping[str, np.ndarray], *, extras=False) -> dict:
        """The operation's inputs by role, from `tensors` or, where they lack them, from the pack."""
        names = operation.inputs if not extras else {**operation.extras, **operation.inputs}
        return {
            role: tensors[name] if name in tensors else self._golden(name) for role, name in names.items()
        }

    def _golden(self, name: str) -> np.ndarray:
        if name not in self.golden and name.startswith("adamw.gradient."):
            self._add_gradients(int(name.rpartition("[")[2].rstrip("]")))
        return self.golden[name]

    def _add_gradients(self, step: int):
        """The gradients of a step, which a pack does not hold: they follow from the weights before it."""
        config, table = self.pack.config, weight_table(self.pack.config)
        weights = {name: self.golden[weight_before(name, step)] for name in table}
        gradients = pass_of_step(config, self.golden["tokens"], self.golden["targets"], weights)[1]
        self.golden |= {gradient_of_step(name, step): gradients[name] for name in table}


def _row(name: str, golden: np.ndarray, found: np.ndarray, limit: float, scale: float) -> Row:
    """One tensor against the pack's."""
    problem = ""
    if found.shape != golden.shape:
        problem = f"shape {list(found.shape)}, wanted {list(golden.shape)}"
    elif not np.isfinite(found).all():
        index = [int(i) for i in np.argwhere(~np.isfinite(found))[0]]
        problem = f"{found[tuple(index)]} at {index}"
    if problem:
        return Row("", name, golden.shape, inf, limit, problem=problem)
    with np.errstate(over="ignore"):
        difference = np.abs(np.asarray(found, np.float64) - golden)
    index = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    error = float(difference[index]) / scale if scale else (inf if difference[index] else 0.0)
    return Row("", name, golden.shape, error, limit, index, float(golden[index]), float(found[index]))


# Which operations are at fault


def _faults(flow: Dataflow, rows: list[Row], found: Mapping[str, np.ndarray]) -> list[Fault]:
    """The first divergence, and every later one whose operation, from the dump's own inputs, gives other numbers."""
    states = {row.name: "right" if row.holds else "diverges" for row in rows}
    faults: dict[str, Fault] = {}
    for row in rows:
        operation = flow.operations.get(row.name)
        kind = operation.kind if operation else "given"
        if row.holds or (faults and kind in _WHOLE):
            continue
        inputs = _input_states(flow, operation, states)
        if faults and operation and not _own_fault(flow, row, operation, inputs, found):
            continue
        if kind in faults:
            faults[kind].elsewhere.append(row.name)
        elif len(faults) < MOST_FAULTS:
            faults[kind] = Fault(
                row, operation, inputs, _explanations(flow, row, operation, inputs, found), []
            )
    return list(faults.values())


def _explanations(flow: Dataflow, row: Row, operation: Operation | None, inputs, found) -> list[Explanation]:
    """What explains a tensor: from the golden inputs, or from those of the dump that diverge."""
    arrays, expected = {}, flow.golden[row.name]
    if operation and KINDS[operation.kind].compute:
        sources = {name: found[name] for name, state in inputs.items() if state == "diverges"}
        if all(found[name].shape == flow.golden[name].shape for name in sources):
            arrays = flow.inputs(operation, sources, extras=True)
            expected = _recompute(flow, operation, flow.inputs(operation, sources))
    setting = Setting(flow.pack.config, *flow.golden["tokens"].shape)
    return explain(setting, operation, arrays, expected, found[row.name], 4 * row.limit)


def _input_states(flow: Dataflow, operation: Operation | None, states: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for role, name in operation.inputs.items() if operation else ():
        absent = "given" if name in flow.given else "not in the dump"
        if role == "gradient" and name not in flow.pack.tensors:
            # No pack holds the gradients of later steps; where their norm is right, so are they.
            norm = states.get(operation.inputs["norm"])
            absent = "right" if norm == "right" else "not in the pack"
        found[name] = states.get(name, absent)
    return found


def _own_fault(flow: Dataflow, row: Row, operation: Operation, inputs: dict[str, str], found) -> bool:
    """Whether the operation went wrong by itself: its result does not follow from the inputs in the dump.

    Undecided where an input is missing or cannot be used: then it is taken for a consequence.
    """
    if KINDS[operation.kind].compute is None or {*inputs.values()} & {"not in the dump", "not in the pack"}:
        return False
    if any(
        name in found and (found[name].shape != flow.golden[name].shape or not np.isfinite(found[name]).all())
        for name in inputs
    ):
        return False
    if row.problem:
        return True
    expected = _recompute(flow, operation, flow.inputs(operation, found))
    scale = max(float(np.abs(expected).max(initial=0)), flow.scales[row.name])
    difference = np.abs(np.asarray(found[row.name], np.float64) - expected).max(initial=0)
    # Inputs in the dump are rounded, which may cost more digits than a limit that was set for right numbers.
    return isfinite(scale) and float(difference) > 16 * row.limit * scale


def _recompute(flow: Dataflow, operation: Operation, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        arrays = {
            role: np.asarray(array, np.float64) if array.dtype.kind == "f" else array
            for role, array in arrays.items()
        }
        return np.asarray(KINDS[operation.kind].compute(flow.pack.config, **arrays, **operation.settings))
