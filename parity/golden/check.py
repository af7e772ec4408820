"""Holding a dump against a golden pack: the first tensor that diverges, and the operation at fault."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError, UserError
from contract.numbers import magnitude, relative_error
from operations.catalogue import OPERATIONS
from operations.dataflow import GRADIENT
from parity.compare import Row, measure, not_finite
from parity.golden.dumps import read_dump
from parity.golden.explanations import Explanation, explain
from parity.golden.hooked_names import translated, with_hooked
from parity.golden.origins import LOGITS, LOSS, NORM, Origin, whole
from parity.golden.packs import Pack
from parity.golden.same_mistake import same_mistake
from parity.golden.sixteen_bits import looks_like, strange
from parity.golden.tensors import Tensors
from parity.golden.undetermined import without_padding

PRECISIONS = ("float64", "float32", "bfloat16", "float16")
MAX_FAULTS = 5  # that are looked into, one after the other
_FOLLOWS = "follows from your weights"


class Finding(NamedTuple):
    """An operation that went wrong.

    row: the tensor it made; origin: how, None for a tensor that a pack starts from
    inputs: name -> "right", "diverges", "not in the dump", "not in the pack", "follows from your weights", or
        "given", which the pack provides
    own: whether the fault is in this operation: True where its inputs are right or should have given other
        numbers, False where they give these, None where too little is known of them
    explanations: the mistakes that give the dump's numbers, the best first
    elsewhere: other tensors that the same kind of operation made, wrong by themselves
    cause: of a gradient, the forward tensor whose mistake it has too: certainly where there are
        explanations, probably where there are none; "" where it has one of its own
    sound: of a step of AdamW, the weights that it takes rightly, matrices where the fault is in a matrix
    bridged: whether several operations made it from what the dump has, by way of tensors that the dump lacks
    """

    row: Row
    origin: Origin | None
    inputs: dict[str, str]
    own: bool | None
    explanations: list[Explanation]
    elsewhere: list[str]
    cause: str = ""
    sound: Sequence[str] = ()
    bridged: bool = False

    @property
    def inputs_right(self) -> bool:
        """Whether every input is known to be right."""
        return all(state in ("right", "given") for state in self.inputs.values())


class Report(NamedTuple):
    """pack: its name; dtype: whose limits were applied; rows: in dataflow order

    missing: names of the pack that the dump lacks; unknown: names of the dump that the pack lacks
    unread: files of the dump's folder that hold no tensor that can be read
    left_out: tensors in which the dump has other numbers where the loss determines none
    padded: tensors of which rows beyond the vocabulary or the context were left out
    unjudged: names of the dump for which the pack has no limit in this precision
    bridged: in 16 bits, the tensors that several operations made of what the dump has: rounding can hide a mistake
    stored: the type in 16 bits that all numbers are of, where some diverge; "" for none
    finer: whether limits of 16 bits were applied to numbers that are none of that type
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
    unread: Sequence[str] = ()
    left_out: Sequence[str] = ()
    padded: Sequence[str] = ()
    unjudged: Sequence[str] = ()
    bridged: Sequence[str] = ()
    stored: str = ""
    finer: bool = False

    @property
    def diverging(self) -> list[Row]:
        return [row for row in self.rows if not row.holds]


def check_dump(path: Path, pack: Pack, *, precision: str | None = None) -> Report:
    """Compare the dump at `path` with a pack.

    precision: one of PRECISIONS, whose limits to apply; None goes by what the dump holds
    Raises UserError where the dump cannot be read, or the pack has no such limits; ConfigError for another precision.
    """
    if precision not in (None, *PRECISIONS):
        raise ConfigError(f"--precision must be {', '.join(PRECISIONS)}, got {precision}")
    dump = translated(read_dump(path, with_hooked(pack), precision), pack)
    report = compare_dump(dump.tensors, pack, precision=precision or dump.coarse, unknown=dump.unknown)
    return report._replace(unread=dump.unread)


@np.errstate(all="ignore")  # a dump may hold any number; where one overflows, the tensor diverges
def compare_dump(
    dump: Mapping[str, np.ndarray], pack: Pack, *, precision: str | None = None, unknown=()
) -> Report:
    """The same for tensors in memory, by name."""
    dump, padded = without_padding(dump, pack.tensors, pack.config)
    tensors = Tensors(pack, precision, dump)
    judged = [name for name in tensors.order if name in tensors.found and name in tensors.limits]
    if not judged:
        raise UserError(
            f"{pack.name} has no limits in {precision} for what the dump has; make the pack again"
        )
    tensors.strange |= strange(tensors, tensors.coarse) if tensors.coarse else tensors.apart()
    rows = [_row(tensors, name) for name in judged]
    tensors.right |= {row.name for row in rows if row.holds}
    dtype = (
        " and ".join(sorted({tensors.dtypes[row.name] for row in rows if row.name not in tensors.given}))
        or "exact"
    )
    missing = [name for name in pack.tensors if name not in dump]
    coarse = {row["name"]: row["float32"] for row in pack.manifest["tensors"]}
    within = all(row.error <= coarse[whole(row.name)] for row in rows)
    left_out = [
        row.name
        for row in rows
        if row.holds
        and not _compared(tensors, row.name, tensors.golden[row.name], tensors.found[row.name]).holds
    ]
    faults = _faults(tensors, rows)
    if within and "float64" in dtype:
        # As right as rounding in float32: no operation is at fault, unless a mistake gives the very numbers.
        faults = [fault if fault.explanations else fault._replace(own=None) for fault in faults]
    found = Report(pack.name, dtype, rows, missing, list(unknown), faults, within)
    return found._replace(
        left_out=left_out,
        padded=padded,
        unjudged=[name for name in dump if name not in tensors.limits],
        bridged=[name for name in judged if tensors.coarse and tensors.bridged(name)],
        **looks_like(tensors, rows),
    )


def _row(tensors: Tensors, name: str) -> Row:
    """One tensor against the pack's, where the loss determines it, and against what its inputs in the dump give."""
    golden, found = (tensors.determined(name, each[name]) for each in (tensors.golden, tensors.found))
    row = _compared(tensors, name, golden, found)
    return row._replace(problem=tensors.strange.get(name, "")) if row.holds else row


def _compared(tensors: Tensors, name: str, golden: np.ndarray, found: np.ndarray) -> Row:
    problem = not_finite(found)
    if found.shape != golden.shape:
        problem = f"shape {list(found.shape)}, wanted {list(golden.shape)}"
    return measure("", name, golden, found, tensors.limits[name], tensors.scales[name], problem)


# Which operations are at fault


def _faults(tensors: Tensors, rows: list[Row]) -> list[Finding]:
    """The operations that, from the dump's own inputs, should have given other numbers, the first of each kind.

    The first divergence is one unless it follows from inputs that are within their limits: small errors can
    grow. Where no fault is found, it is the first divergence all the same.

    If the bytes are swapped, report only that.
    """
    diverging = [row for row in rows if not row.holds]
    if swapped := _swapped(tensors, diverging):
        return [swapped]
    states = {}
    for state, some in (("right", rows), ("diverges", diverging)):
        states |= {name: state for row in some for name in (row.name, whole(row.name))}
    faults: dict[tuple, Finding] = {}
    for row in diverging:
        origin = tensors.origins.get(row.name)
        kind = origin.title if origin else "given"
        # What the model as a whole computes is wrong wherever the model is: not worth a report beside another fault.
        if faults and kind in (LOSS, LOGITS):
            continue
        follows = _follows(tensors, row, states, slack=16 if faults else 1)
        if follows and kind == NORM:
            states[row.name] = _FOLLOWS
        if follows or (follows is None and row is not diverging[0]) or (faults and kind == NORM):
            continue
        cause, shared = _cause(tensors, row, faults.values())
        key = kind, bool(cause), bool(shared)
        if key in faults:
            faults[key].elsewhere.append(row.name)
            _narrow(faults[key], tensors, row)
        elif not cause and _leads_through(tensors, row, faults.values()):
            continue
        elif cause or sum(not fault.cause for fault in faults.values()) < MAX_FAULTS:
            fault = _fault(tensors, row, states, follows, shared if cause else explain(tensors, row.name))
            if not cause and (same := _same(fault, faults.values())):
                same.elsewhere.append(row.name)
                continue
            faults[key] = fault._replace(cause=cause)
    told = [_finished(tensors, fault) for fault in faults.values()]
    first = diverging[:1] if not told else []
    return told + [_fault(tensors, row, states, True, explain(tensors, row.name)) for row in first]


def _swapped(tensors: Tensors, diverging: list[Row]) -> Finding | None:
    """The first tensor that is right when its bytes are read in the other order."""
    for row in diverging:
        golden, found, scale = (each[row.name] for each in (tensors.golden, tensors.found, tensors.scales))
        error = relative_error(found.byteswap().astype(np.float64), golden, scale or 1.0)
        if error <= min(row.limit, 0.1):  # in 16 bits a limit can be so wide that zeros pass
            text = "the bytes are in the other order: write little-endian"
            return Finding(row, None, {}, True, [Explanation("bytes_swapped", text, error)], [])
    return None


def _finished(tensors: Tensors, fault: Finding) -> Finding:
    """A fault in AdamW with the plainest of its explanations and the weights of its sort that are right."""
    if not fault.origin or not fault.origin.title.startswith("AdamW"):
        return fault
    # What fits in every wrong weight and step gives the same numbers: one is enough, and the plainest is the first.
    fault = fault._replace(explanations=fault.explanations[:1])
    if fault.origin.title != "AdamW weight":
        return fault
    wrong = {whole(name) for name in (fault.row.name, *fault.elsewhere)}
    of_sort = [
        whole(name)
        for name, origin in tensors.origins.items()
        if origin.title == "AdamW weight" and name in tensors.found and origin.decays == fault.origin.decays
    ]
    right = [name for name in dict.fromkeys(of_sort) if name not in wrong]
    return fault._replace(sound=[name.removeprefix("adamw.weights.") for name in right])


def _cause(tensors: Tensors, row: Row, faults: Iterable[Finding]) -> tuple[str, list[Explanation]]:
    """The forward tensor whose explained mistake a gradient has too, and what of it explains the gradient.

    "" where the forward pass is right, or where the gradient has a known mistake of its own.
    """
    if not row.name.startswith(GRADIENT):
        return "", []
    readers = tensors.graph.readers(row.name.removeprefix(GRADIENT))
    made_by = {each for name in (*readers, row.name) for each in tensors.origins[name].operations}
    causes = [
        fault
        for fault in faults
        if not fault.row.name.startswith(GRADIENT)
        and any(each.operation in made_by for each in fault.explanations)
    ]
    if causes and tensors.bridged(row.name):
        return causes[0].row.name, []  # over several operations, the mistake of one of them is cause enough
    for fault in causes:
        shared = same_mistake(tensors, row.name, fault.explanations, max(4 * row.limit, 1e-11))
        if shared:
            return fault.row.name, shared
    return (causes[0].row.name if causes and not explain(tensors, row.name) else ""), []


def _same(fault: Finding, faults: Iterable[Finding]) -> Finding | None:
    """The one already found that has the same mistake, though what lies between the dump's tensors is not the same."""
    back = fault.row.name.startswith(GRADIENT)
    first = [(each.operation, each.name) for each in fault.explanations[:1] if each.operation in OPERATIONS]
    alike = (
        each
        for each in faults
        if first == [(e.operation, e.name) for e in each.explanations[:1]]
        and back == each.row.name.startswith(GRADIENT)
    )
    return next(alike, None) if first else None


def _leads_through(tensors: Tensors, row: Row, faults: Iterable[Finding]) -> bool:
    """Whether a tensor was made by several operations of which one is at fault already: it tells nothing by itself."""
    if not tensors.bridged(row.name):
        return False
    made_by, back = {*tensors.origins[row.name].operations}, row.name.startswith(GRADIENT)
    for fault in faults:
        explained = {each.operation for each in fault.explanations} - {""}
        known = explained or {*(fault.origin.operations if fault.origin else ())}
        if made_by & known and (back or not fault.row.name.startswith(GRADIENT)):
            return True
    return False


def _fault(
    tensors: Tensors,
    row: Row,
    states: Mapping[str, str],
    follows: bool | None,
    explanations: list[Explanation],
) -> Finding:
    origin = tensors.origins.get(row.name)
    inputs = _input_states(tensors, origin, states) if origin else {}
    fault = Finding(row, origin, inputs, None, explanations, [], bridged=tensors.bridged(row.name))
    return fault._replace(own=(fault.inputs_right or None) if follows is None else not follows)


def _narrow(fault: Finding, tensors: Tensors, row: Row):
    """Of several explanations keep those that also fit `row`, which the same kind of operation made."""
    if len(fault.explanations) > 1 and not fault.cause:
        names = {each.name for each in explain(tensors, row.name)}
        fault.explanations[:] = [e for e in fault.explanations if e.name in names] or fault.explanations


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


def _follows(tensors: Tensors, row: Row, states: Mapping[str, str], *, slack: float) -> bool | None:
    """Whether the tensor is what the operation makes of the inputs in the dump; None where that cannot be told.

    slack: limits that it may be off; inputs in the dump are rounded, which may cost digits
    """
    origin = tensors.origins.get(row.name)
    if origin is None:
        return False
    inputs = _input_states(tensors, origin, states).values()
    if {"not in the dump", "not in the pack"} & {*inputs} or not tensors.repeatable(origin):
        return None
    if row.problem:
        return False
    if tensors.coarse:
        return row.name not in tensors.strange
    expected = tensors.determined(row.name, np.asarray(origin.right()))
    scale = max(magnitude(expected), tensors.scales[row.name])
    error = relative_error(tensors.determined(row.name, tensors.found[row.name]), expected, scale)
    return not (isfinite(scale) and error > slack * row.limit)
