"""Holding a dump against a golden pack: the first tensor that diverges, and the operation at fault."""

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError
from contract.numbers import magnitude, relative_error
from parity.compare import Row
from parity.dataflow import Dataflow
from parity.dumps import read_dump
from parity.explanations import Explanation, Setting, explain
from parity.operations import Operation
from parity.packs import Pack
from parity.recompute import KINDS
from parity.same_mistake import readers, same_mistake

MOST_FAULTS = 5  # that are looked into, one after the other

# What the model as a whole computes: wrong wherever the model is, so never worth a report beside another fault.
_LOSS, _NORM, _LOGITS = "loss of a step", "gradient norm of a step", "logits of a new token"
_FOLLOWS = "follows from your weights"


class Fault(NamedTuple):
    """An operation that went wrong.

    row: the tensor it made; operation: what it was, None for a tensor that a pack starts from
    inputs: name -> "right", "diverges", "not in the dump", "not in the pack", "follows from your weights", or
        "given", which the pack provides
    own: whether the fault is in this operation: True where its inputs are right or should have given other
        numbers, False where they give these, None where too little is known of them
    explanations: the mistakes that give the dump's numbers, the best first
    elsewhere: other tensors that an operation of the same kind made, and made wrong by itself
    cause: of a backward operation, the forward tensor whose mistake it has too: certainly where there are
        explanations, probably where there are none; "" where it has one of its own
    sound: of a step of AdamW, the weights that it takes rightly, matrices where the fault is in a matrix
    """

    row: Row
    operation: Operation | None
    inputs: dict[str, str]
    own: bool | None
    explanations: list[Explanation]
    elsewhere: list[str]
    cause: str = ""
    sound: Sequence[str] = ()

    @property
    def inputs_right(self) -> bool:
        """Whether every input is known to be right."""
        return all(state in ("right", "given") for state in self.inputs.values())


class Report(NamedTuple):
    """pack: its name; dtype: whose limits were applied; rows: in dataflow order

    missing: names of the pack that the dump lacks; unknown: names of the dump that the pack lacks
    faults: the first divergence that does not follow from its inputs, then the others of that kind
    within_float32: whether every tensor is within float32's limits
    """

    pack: str
    dtype: str
    rows: list[Row]
    missing: list[str]
    unknown: list[str]
    faults: list[Fault]
    within_float32: bool = False

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


@np.errstate(all="ignore")  # a dump may hold any number; where one overflows, the tensor diverges
def compare_dump(
    dump: Mapping[str, np.ndarray], pack: Pack, *, dtype: str | None = None, unknown=()
) -> Report:
    """The same for tensors in memory, by name."""
    if dtype is None:
        dtype = "float32" if any(tensor.dtype == np.float32 for tensor in dump.values()) else "float64"
    flow = Dataflow(pack, dtype, dump)
    rows = [_row(flow, name) for name in flow.order if name in flow.found]
    missing = [name for name in pack.tensors if name not in dump]
    coarse = {row["name"]: row["float32"] for row in pack.manifest["tensors"]}
    within = all(row.error <= coarse[row.name.partition("[")[0]] for row in rows)
    return Report(pack.name, dtype, rows, missing, list(unknown), _faults(flow, rows), within)


def _row(flow: Dataflow, name: str) -> Row:
    """One tensor against the pack's."""
    golden, found, limit, scale = flow.golden[name], flow.found[name], flow.limits[name], flow.scales[name]
    problem = ""
    if found.shape != golden.shape:
        problem = f"shape {list(found.shape)}, wanted {list(golden.shape)}"
    elif not np.isfinite(found).all():
        index = [int(i) for i in np.argwhere(~np.isfinite(found))[0]]
        problem = f"{found[tuple(index)]} at {index}"
    if problem:
        return Row("", name, golden.shape, inf, limit, problem=problem)
    difference = np.abs(np.asarray(found, np.float64) - golden)
    index = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    error = float(difference[index]) / scale if scale else (inf if difference[index] else 0.0)
    return Row("", name, golden.shape, error, limit, index, float(golden[index]), float(found[index]))


# Which operations are at fault


def _faults(flow: Dataflow, rows: list[Row]) -> list[Fault]:
    """The operations that, from the dump's own inputs, should have given other numbers, the first of each kind.

    The first divergence is one unless it follows from inputs that are within their limits: small errors can
    grow. Where no fault is found, it is the first divergence all the same.

    Where bytes are in the other order nothing else is worth a word.
    """
    diverging = [row for row in rows if not row.holds]
    states = {name: "right" for row in rows for name in (row.name, row.name.partition("[")[0])}
    states |= {name: "diverges" for row in diverging for name in (row.name, row.name.partition("[")[0])}
    for row in diverging:
        error = _error_of_swapped(flow, row)
        if error <= row.limit:
            told = Explanation(
                "bytes_swapped", "the bytes are in the other order: write little-endian", error
            )
            return [Fault(row, None, {}, True, [told], [])]
    faults: dict[tuple, Fault] = {}
    for row in diverging:
        operation = flow.operations.get(row.name)
        kind = operation.kind if operation else "given"
        if faults and kind in (_LOSS, _LOGITS):
            continue
        follows = _follows(flow, row, operation, states, slack=16 if faults else 1)
        if follows and kind == _NORM:
            states[row.name] = _FOLLOWS
        if follows or (follows is None and row is not diverging[0]) or (faults and kind == _NORM):
            continue
        cause, shared = _cause(flow, row, operation, faults.values())
        key = kind, bool(cause), bool(shared)
        if key in faults:
            faults[key].elsewhere.append(row.name)
            _narrow(faults[key], flow, row)
        elif cause:
            found = _fault(flow, row, states, follows)
            faults[key] = found._replace(cause=cause, explanations=shared)
        elif sum(not fault.cause for fault in faults.values()) < MOST_FAULTS:
            faults[key] = _fault(flow, row, states, follows)
    for (kind, *_), fault in faults.items():
        # What fits in every wrong weight and step gives the same numbers: the plainest, which stands first, is said.
        if kind.startswith("AdamW"):
            del fault.explanations[1:]
    told = [_with_sound(flow, fault) for fault in faults.values()]
    return told or [_fault(flow, row, states, True) for row in diverging[:1]]


def _error_of_swapped(flow: Dataflow, row: Row) -> float:
    """How far the dump's tensor is from the golden one when its bytes are read in the other order."""
    found, golden, scale = flow.found[row.name], flow.golden[row.name], flow.scales[row.name]
    return relative_error(found.byteswap(), golden, scale or 1.0)


def _with_sound(flow: Dataflow, fault: Fault) -> Fault:
    """The fault with the weights of its sort that a wrong step of AdamW leaves right."""
    if not fault.operation or fault.operation.kind != "AdamW weight":
        return fault
    wrong = {name.partition("[")[0] for name in (fault.row.name, *fault.elsewhere)}
    sort = [
        name.partition("[")[0]
        for name, operation in flow.operations.items()
        if operation.kind == "AdamW weight" and name in flow.found
        if operation.settings["decays"] == fault.operation.settings["decays"]
    ]
    sound = [name.removeprefix("adamw.weights.") for name in dict.fromkeys(sort) if name not in wrong]
    return fault._replace(sound=sound)


def _cause(flow: Dataflow, row: Row, operation: Operation | None, faults) -> tuple[str, list[Explanation]]:
    """The forward tensor whose explained mistake a gradient has too, and what of it explains the gradient.

    "" where the forward pass is right, or where the gradient has a known mistake of its own.
    """
    kinds = {
        reader.kind
        for _, reader, _, extra in readers(flow, row.name.removeprefix("gradient."))
        if row.name.startswith("gradient.") and not extra
    }
    causes = [f for f in faults if f.operation and f.operation.kind in kinds and f.explanations]
    for fault in causes:
        close = max(4 * row.limit, 1e-11)
        shared = same_mistake(flow, row.name, fault.operation.kind, fault.explanations, close)
        if shared:
            return fault.row.name, shared
    if causes and not _explanations(flow, row, operation):
        return causes[0].row.name, []
    return "", []


def _fault(flow: Dataflow, row: Row, states: Mapping[str, str], follows: bool | None) -> Fault:
    operation = flow.operations.get(row.name)
    inputs = _input_states(flow, operation, states) if operation else {}
    fault = Fault(row, operation, inputs, None, _explanations(flow, row, operation), [])
    if follows is None:
        return fault._replace(own=fault.inputs_right or None)
    return fault._replace(own=not follows)


def _narrow(fault: Fault, flow: Dataflow, row: Row):
    """Of several explanations keep those that also fit `row`, which the same kind of operation made."""
    if len(fault.explanations) > 1 and not fault.cause:
        names = {each.name for each in _explanations(flow, row, flow.operations.get(row.name))}
        fault.explanations[:] = [e for e in fault.explanations if e.name in names] or fault.explanations


def _explanations(flow: Dataflow, row: Row, operation: Operation | None) -> list[Explanation]:
    """What explains a tensor, from the inputs in the dump and, where it lacks them, the golden ones."""
    if operation and operation.kind in ("greedy token", "sampled token"):
        return []  # twice or half a token's id would be a coincidence
    arrays, expected = {}, flow.golden[row.name]
    if operation and KINDS[operation.kind].compute and flow.repeatable(operation):
        arrays = flow.inputs(operation, extras=True)
        expected = _recompute(flow, operation)
    setting = Setting(flow.pack.config, *flow.golden["tokens"].shape)
    return explain(setting, operation, arrays, expected, flow.found[row.name], 4 * row.limit)


def _input_states(flow: Dataflow, operation: Operation, states: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for role, name in operation.inputs.items():
        absent = "given" if name in flow.given else "not in the dump"
        if role == "gradient" and name not in flow.pack.tensors:
            # No pack holds the gradients of later steps; where their norm is right, so are they.
            norm = states.get(operation.inputs["norm"])
            absent = norm if norm in ("right", _FOLLOWS) else "not in the pack"
        found[name] = states.get(name, absent)
    return found


def _follows(
    flow: Dataflow, row: Row, operation: Operation | None, states: Mapping[str, str], *, slack: float
) -> bool | None:
    """Whether the tensor is what the operation makes of the inputs in the dump; None where that cannot be told.

    slack: limits that it may be off; inputs in the dump are rounded, which may cost digits
    """
    if operation is None:
        return False
    inputs = _input_states(flow, operation, states)
    unknown = {*inputs.values()} & {"not in the dump", "not in the pack"}
    if unknown or KINDS[operation.kind].compute is None or not flow.repeatable(operation):
        return None
    if row.problem:
        return False
    expected = _recompute(flow, operation)
    scale = max(magnitude(expected), flow.scales[row.name])
    return not (isfinite(scale) and relative_error(flow.found[row.name], expected, scale) > slack * row.limit)


def _recompute(flow: Dataflow, operation: Operation) -> np.ndarray:
    inputs = flow.inputs(operation)
    return np.asarray(KINDS[operation.kind].compute(flow.pack.config, **inputs, **operation.settings))
