"""Holding a dump against a golden pack: the first tensor that diverges, and the operation at fault."""

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError
from contract.numbers import magnitude, relative_error
from operations.dataflow import GRADIENT
from parity.compare import Row
from parity.golden.dumps import read_dump
from parity.golden.explanations import Explanation, Setting, explain
from parity.golden.origins import Origin
from parity.golden.packs import Pack
from parity.golden.same_mistake import same_mistake
from parity.golden.tensors import Tensors

MAX_FAULTS = 5  # that are looked into, one after the other

# What the model as a whole computes: wrong wherever the model is, so never worth a report beside another fault.
_LOSS, _NORM, _LOGITS = "loss of a step", "gradient norm of a step", "logits of a new token"
_FOLLOWS = "follows from your weights"


class Finding(NamedTuple):
    """An operation that went wrong.

    row: the tensor it made; origin: how, None for a tensor that a pack starts from
    inputs: name -> "right", "diverges", "not in the dump", "not in the pack", "follows from your weights", or
        "given", which the pack provides
    own: whether the fault is in this operation: True where its inputs are right or should have given other
        numbers, False where they give these, None where too little is known of them
    explanations: the mistakes that give the dump's numbers, the best first
    elsewhere: other tensors that an operation of the same kind made, and made wrong by itself
    cause: of a gradient, the forward tensor whose mistake it has too: certainly where there are
        explanations, probably where there are none; "" where it has one of its own
    sound: of a step of AdamW, the weights that it takes rightly, matrices where the fault is in a matrix
    """

    row: Row
    origin: Origin | None
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
    faults: list[Finding]
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
    tensors = Tensors(pack, dtype, dump)
    rows = [_row(tensors, name) for name in tensors.order if name in tensors.found]
    missing = [name for name in pack.tensors if name not in dump]
    coarse = {row["name"]: row["float32"] for row in pack.manifest["tensors"]}
    within = all(row.error <= coarse[row.name.partition("[")[0]] for row in rows)
    return Report(pack.name, dtype, rows, missing, list(unknown), _faults(tensors, rows), within)


def _row(tensors: Tensors, name: str) -> Row:
    """One tensor against the pack's."""
    golden, found, limit, scale = (
        tensors.golden[name],
        tensors.found[name],
        tensors.limits[name],
        tensors.scales[name],
    )
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


def _faults(tensors: Tensors, rows: list[Row]) -> list[Finding]:
    """The operations that, from the dump's own inputs, should have given other numbers, the first of each kind.

    The first divergence is one unless it follows from inputs that are within their limits: small errors can
    grow. Where no fault is found, it is the first divergence all the same.

    If the bytes are swapped, report only that.
    """
    diverging = [row for row in rows if not row.holds]
    states = {name: "right" for row in rows for name in (row.name, row.name.partition("[")[0])}
    states |= {name: "diverges" for row in diverging for name in (row.name, row.name.partition("[")[0])}
    if swapped := _swapped(tensors, diverging):
        return [swapped]
    faults: dict[tuple, Finding] = {}
    for row in diverging:
        origin = tensors.origins.get(row.name)
        kind = origin.title if origin else "given"
        if faults and kind in (_LOSS, _LOGITS):
            continue
        follows = _follows(tensors, row, origin, states, slack=16 if faults else 1)
        if follows and kind == _NORM:
            states[row.name] = _FOLLOWS
        if follows or (follows is None and row is not diverging[0]) or (faults and kind == _NORM):
            continue
        cause, shared = _cause(tensors, row, origin, faults.values())
        key = kind, bool(cause), bool(shared)
        if key in faults:
            faults[key].elsewhere.append(row.name)
            _narrow(faults[key], tensors, row)
        elif cause:
            found = _fault(tensors, row, states, follows)
            faults[key] = found._replace(cause=cause, explanations=shared)
        elif sum(not fault.cause for fault in faults.values()) < MAX_FAULTS:
            faults[key] = _fault(tensors, row, states, follows)
    for (kind, *_), fault in faults.items():
        # What fits in every wrong weight and step gives the same numbers: the plainest, which stands first, is said.
        if kind.startswith("AdamW"):
            del fault.explanations[1:]
    told = [_with_sound(tensors, fault) for fault in faults.values()]
    return told or [_fault(tensors, row, states, True) for row in diverging[:1]]


def _swapped(tensors: Tensors, diverging: list[Row]) -> Finding | None:
    """The first tensor that is right when its bytes are read in the other order."""
    for row in diverging:
        golden, found, scale = (each[row.name] for each in (tensors.golden, tensors.found, tensors.scales))
        error = relative_error(found.byteswap().astype(np.float64), golden, scale or 1.0)
        if error <= row.limit:
            text = "the bytes are in the other order: write little-endian"
            return Finding(row, None, {}, True, [Explanation("bytes_swapped", text, error)], [])
    return None


def _with_sound(tensors: Tensors, fault: Finding) -> Finding:
    """The fault with the weights of its sort that a wrong step of AdamW leaves right."""
    if not fault.origin or fault.origin.title != "AdamW weight":
        return fault
    wrong = {name.partition("[")[0] for name in (fault.row.name, *fault.elsewhere)}
    sort = [
        name.partition("[")[0]
        for name, origin in tensors.origins.items()
        if origin.title == "AdamW weight" and name in tensors.found and origin.decays == fault.origin.decays
    ]
    sound = [name.removeprefix("adamw.weights.") for name in dict.fromkeys(sort) if name not in wrong]
    return fault._replace(sound=sound)


def _cause(tensors: Tensors, row: Row, origin: Origin | None, faults) -> tuple[str, list[Explanation]]:
    """The forward tensor whose explained mistake a gradient has too, and what of it explains the gradient.

    "" where the forward pass is right, or where the gradient has a known mistake of its own.
    """
    if not row.name.startswith(GRADIENT):
        return "", []
    readers = tensors.graph.readers(row.name.removeprefix(GRADIENT))
    made_by = {each for reader in readers for each in tensors.origins[reader].operations}
    causes = [fault for fault in faults if any(each.operation in made_by for each in fault.explanations)]
    causes = [fault for fault in causes if not fault.row.name.startswith(GRADIENT)]
    for fault in causes:
        close = max(4 * row.limit, 1e-11)
        shared = same_mistake(tensors, row.name, fault.explanations, close)
        if shared:
            return fault.row.name, shared
    if causes and not _explanations(tensors, row, origin):
        return causes[0].row.name, []
    return "", []


def _fault(tensors: Tensors, row: Row, states: Mapping[str, str], follows: bool | None) -> Finding:
    origin = tensors.origins.get(row.name)
    inputs = _input_states(tensors, origin, states) if origin else {}
    fault = Finding(row, origin, inputs, None, _explanations(tensors, row, origin), [])
    if follows is None:
        return fault._replace(own=fault.inputs_right or None)
    return fault._replace(own=not follows)


def _narrow(fault: Finding, tensors: Tensors, row: Row):
    """Of several explanations keep those that also fit `row`, which the same kind of operation made."""
    if len(fault.explanations) > 1 and not fault.cause:
        names = {each.name for each in _explanations(tensors, row, tensors.origins.get(row.name))}
        fault.explanations[:] = [e for e in fault.explanations if e.name in names] or fault.explanations


def _explanations(tensors: Tensors, row: Row, origin: Origin | None) -> list[Explanation]:
    """What explains a tensor, from the inputs in the dump and, where it lacks them, the golden ones."""
    if origin and origin.title in ("greedy token", "sampled token"):
        return []  # twice or half a token's id would be a coincidence
    wrong, expected = (), tensors.golden[row.name]
    if tensors.repeatable(origin):
        wrong, expected = origin.wrong(), np.asarray(origin.right())
    setting = Setting(tensors.pack.config, *tensors.golden["tokens"].shape)
    return explain(wrong, setting, expected, tensors.found[row.name], 4 * row.limit)


def _input_states(tensors: Tensors, origin: Origin, states: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name in origin.inputs:
        absent = "given" if name in tensors.given else "not in the dump"
        if name == origin.gradient and name not in tensors.pack.tensors:
            # No pack holds the gradients of later steps; where their norm is right, so are they.
            norm = states.get(origin.norm)
            absent = norm if norm in ("right", _FOLLOWS) else "not in the pack"
        found[name] = states.get(name, absent)
    return found


def _follows(
    tensors: Tensors, row: Row, origin: Origin | None, states: Mapping[str, str], *, slack: float
) -> bool | None:
    """Whether the tensor is what the operation makes of the inputs in the dump; None where that cannot be told.

    slack: limits that it may be off; inputs in the dump are rounded, which may cost digits
    """
    if origin is None:
        return False
    inputs = _input_states(tensors, origin, states)
    unknown = {*inputs.values()} & {"not in the dump", "not in the pack"}
    if unknown or not tensors.repeatable(origin):
        return None
    if row.problem:
        return False
    expected = np.asarray(origin.right())
    scale = max(magnitude(expected), tensors.scales[row.name])
    return not (
        isfinite(scale) and relative_error(tensors.found[row.name], expected, scale) > slack * row.limit
    )
