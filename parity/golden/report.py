"""Telling what a check found: a few lines for a person, a record for machines."""

from collections.abc import Sequence
from difflib import get_close_matches
from math import isfinite

from operations.catalogue import OPERATIONS
from parity.compare import Row
from parity.golden.check import Finding, Report
from parity.golden.origins import whole


def describe(report: Report) -> list[str]:
    """What to tell a person: the verdict first, then where, why, and what else, in about a dozen lines."""
    diverging, count = report.diverging, len(_whole(report.rows))
    verdict = f"all {count} tensors agree" if count > 1 else "the tensor agrees"
    if diverging:
        verdict = f"{len(_whole(diverging))} of {count} tensors DIVERGE"
    for count, words in ((len(report.missing), "not in your dump"), (len(report.unknown), "not in the pack")):
        verdict += f"; {count} {words}" if count else ""
    lines = [f"{report.pack}, {report.dtype}: {verdict}"]
    if report.finer:
        lines.append(
            f"none of your tensors is of {report.dtype}: for what you computed in, leave --precision out"
        )
    if report.stored:
        lines.append(
            f"all your numbers are numbers of {report.stored}: if that is what you computed in, "
            f"add --precision {report.stored}"
        )
    if numbers := [row for row in report.rows if row.limit and not diverging]:  # tokens are right or wrong
        worst = max(numbers, key=lambda row: row.error / row.limit)
        lines.append(f"nearest to its limit: {worst.name}, error {worst.error:.2g}, limit {worst.limit:g}")
    if report.missing:
        lines.append(f"not in your dump: {_few(report.missing)}")
    if report.unknown:
        lines.append(f"not in the pack: {_few([_suggest(name, report) for name in report.unknown])}")
    if report.unread:
        lines.append(f"not read: {_few(report.unread)}")
    if report.left_out:
        lines.append(f"left out, where no token is attended to: {_few(report.left_out)}")
    if report.unjudged:
        lines.append(f"not judged in {report.dtype}, steps of AdamW and texts: {_few(report.unjudged)}")
    if report.bridged:
        lines.append(f"judged over several operations, where rounding hides mistakes: {_few(report.bridged)}")
    if report.padded:
        lines.append(f"left out, rows beyond the vocabulary or the context: {_few(report.padded)}")
    explained = any(fault.explanations for fault in report.faults)
    if report.stored and not explained:
        return lines  # held to the wrong limits, every operation seems wrong
    own = [fault for fault in report.faults if not fault.cause]
    for number, fault in enumerate(own):
        heading = "by itself, from your own inputs" if number else "first in dataflow order"
        if not number and fault.row is not diverging[0] and fault.origin:
            heading = "first by itself"
            lines += ["", f"{diverging[0].name} is off because small errors in its inputs grew"]
        lines += ["", f"{heading}: {_place(fault.row)}", *_reasons(fault)]
        lines += _shared(fault, report.faults)
    told = {name for fault in report.faults for name in (fault.row.name, *fault.elsewhere)}
    if rest := _whole([row for row in diverging if row.name not in told]):
        lines += ["", f"and what follows from it: {_few(rest)}"]
    if diverging and "float64" in report.dtype and report.within_float32 and not explained:
        lines.append(
            "every error is as small as float32's rounding: if that is what you computed in, --precision float32"
        )
    return lines


def _whole(rows: list[Row]) -> list[str]:
    """The names of the tensors in order, those with a row for each step of AdamW once."""
    return list(dict.fromkeys(whole(row.name) for row in rows))


def _place(row: Row) -> str:
    if row.problem:
        return f"{row.name}: {row.problem}"
    index = list(row.index) if row.index else ""
    return (
        f"{row.name}{index}: yours {row.twin:.9g}, golden {row.reference:.9g}, "
        f"error {row.error:.2g} of the largest magnitude, limit {row.limit:g}"
    )


def _reasons(fault: Finding) -> list[str]:
    lines = []
    if fault.origin:
        states = [f"{name} ({state})" for name, state in fault.inputs.items()]
        explained = [each.operation for each in fault.explanations[:1] if each.operation in OPERATIONS]
        if fault.bridged:
            between = fault.origin.title.split(", ")
            lines.append(f"  between it and what your dump has: {_few(between, 12)}")
            lines += [f"  {each.replace('_', ' ')}: {OPERATIONS[each].equation}" for each in explained]
        else:
            lines.append(f"  {fault.origin.title}: {fault.origin.equation}")
        lines.append(f"  from {_few(states)}" if states else "  from nothing but the configuration")
        absent = [name for name, state in fault.inputs.items() if state == "not in the dump"]
        if fault.own:
            known = "its inputs are right" if fault.inputs_right else "they should have given other numbers"
            where = "this operation" if explained or not fault.bridged else "one of these operations"
            lines.append(f"  {known}, so the fault is in {where}")
        elif fault.own is False:
            lines.append("  they give these numbers: small errors in them grew")
        elif absent:
            they = "it" if len(absent) == 1 else "them"
            lines.append(
                f"  in this operation, if {_few(absent)} came from the pack; else dump {they} to know"
            )
    elif not any(each.name == "bytes_swapped" for each in fault.explanations):
        lines.append("  the pack gives this one: your program loaded it otherwise")
    if fault.elsewhere:
        lines.append(f"  the same operation is wrong in {_few(fault.elsewhere)}")
    if fault.sound:
        names = [whole(name).removeprefix("adamw.weights.") for name in (fault.row.name, *fault.elsewhere)]
        wrong = list(dict.fromkeys(names))
        lines.append(f"  of the weights: wrong in {_few(wrong)}; right in {_few(fault.sound)}")
    fits = [
        f"  {'as far off as by this' if each.by_size else f'fits to {each.error:.1g}'}: {each.text}"
        for each in fault.explanations
    ]
    return lines + (fits or ["  none of the known mistakes gives your numbers"])


def _shared(cause: Finding, faults: list[Finding]) -> list[str]:
    """That the backward pass has a forward mistake too, in a line, and where it probably has it."""
    lines = []
    for proven, words in ((True, "its backward has the same mistake"), (False, "probably the same mistake")):
        shared = [f for f in faults if f.cause == cause.row.name and bool(f.explanations) == proven]
        names = [name for fault in shared for name in (fault.row.name, *fault.elsewhere)]
        lines += [f"  {words}: {_few(names)}"] if names else []
    return lines


def _few(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _suggest(name: str, report: Report) -> str:
    """A name from outside, cut and made printable, with the pack's name nearest to it."""
    near = get_close_matches(name, [row.name for row in report.rows] + report.missing, 1)
    shown = "".join(each if each.isprintable() else "?" for each in name[:80])
    return f"{shown} (did you mean {near[0]}?)" if near else shown


def as_record(report: Report) -> dict:
    """The report by field, ready for JSON."""
    return {
        "golden": report.pack,
        "dtype": report.dtype,
        "holds": not report.diverging,
        "compared": len(_whole(report.rows)),
        "tensors": [
            {"name": row.name, "error": row.error if isfinite(row.error) else None, "limit": row.limit}
            for row in report.rows
        ],
        "diverging": [_row_record(row) for row in report.diverging],
        "missing": report.missing,
        "unknown": report.unknown,
        "unread": list(report.unread),
        "left_out": list(report.left_out),
        "padded": list(report.padded),
        "unjudged": list(report.unjudged),
        "bridged": list(report.bridged),
        "faults": [
            {
                **_row_record(fault.row),
                "operation": fault.origin.title if fault.origin else None,
                "equation": fault.origin.equation if fault.origin else None,
                "inputs": fault.inputs,
                "in_this_operation": fault.own,
                "elsewhere": fault.elsewhere,
                "same_mistake_as": fault.cause or None,
                "right_in": fault.sound,
                "explanations": [explanation._asdict() for explanation in fault.explanations],
            }
            for fault in report.faults
        ],
    }


def _row_record(row: Row) -> dict:
    own = {"golden": "reference", "yours": "twin"}
    fields, record = ("name", "index", "golden", "yours", "error", "limit", "problem"), row.as_record()
    return {name: record[own.get(name, name)] for name in fields} | {"problem": row.problem or None}
