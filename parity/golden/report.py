"""Telling what a check found: a few lines for a person, a record for machines."""

from difflib import get_close_matches
from math import isfinite

from parity.compare import Row
from parity.golden.check import Finding, Report


def describe(report: Report) -> list[str]:
    """What to tell a person: the verdict first, then where, why, and what else, in about a dozen lines."""
    diverging, count = report.diverging, len(_whole(report.rows))
    verdict = f"all {count} tensors agree" if count > 1 else "the tensor agrees"
    if diverging:
        verdict = f"{len(_whole(diverging))} of {count} tensors DIVERGE"
    for count, words in ((len(report.missing), "not in your dump"), (len(report.unknown), "not in the pack")):
        verdict += f"; {count} {words}" if count else ""
    lines = [f"{report.pack}, {report.dtype}: {verdict}"]
    if report.missing:
        lines.append(f"not in your dump: {_few(report.missing)}")
    if report.unknown:
        lines.append(f"not in the pack: {_few([_suggest(name, report) for name in report.unknown])}")
    own = [fault for fault in report.faults if not fault.cause]
    for number, fault in enumerate(own):
        heading = "by itself, from your own inputs" if number else "first in dataflow order"
        if not number and fault.row is not diverging[0] and fault.origin:
            heading = "first by itself"
            lines += ["", f"{diverging[0].name} is off because small errors in its inputs grew"]
        lines += ["", f"{heading}: {_place(fault.row)}", *_reasons(fault)]
        lines += _shared(fault, report.faults)
    told = {name for fault in report.faults for name in (fault.row.name, *fault.elsewhere)}
    rest = list(_whole([row for row in diverging if row.name not in told]))
    if rest:
        lines += ["", f"and what follows from it: {_few(rest)}"]
    hint = _precision_hint(report)
    return [*lines, hint] if hint else lines


def _whole(rows: list[Row]) -> dict[str, None]:
    """The names of the tensors in order, those with a row for each step of AdamW once."""
    return dict.fromkeys(row.name.partition("[")[0] for row in rows)


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
    if fault.origin is None:
        if not any(each.name == "bytes_swapped" for each in fault.explanations):
            lines.append("  the pack gives this one: your program loaded it otherwise")
    else:
        lines.append(f"  {fault.origin.title}: {fault.origin.equation}")
        states = [f"{name} ({state})" for name, state in fault.inputs.items()]
        lines.append(f"  from {_few(states)}" if states else "  from nothing but the configuration")
        absent = [name for name, state in fault.inputs.items() if state == "not in the dump"]
        if fault.own:
            known = "its inputs are right" if fault.inputs_right else "they should have given other numbers"
            lines.append(f"  {known}, so the fault is in this operation")
        elif fault.own is False:
            lines.append("  they give these numbers: small errors in them grew")
        elif absent:
            taken = "it" if len(absent) == 1 else "them"
            lines.append(
                f"  in this operation, if {_few(absent)} came from the pack; else dump {taken} to know"
            )
    if fault.elsewhere:
        lines.append(f"  the same operation is wrong in {_few(fault.elsewhere)}")
    if fault.sound:
        wrong = dict.fromkeys(_weight(name) for name in (fault.row.name, *fault.elsewhere))
        lines.append(f"  of the weights: wrong in {_few(list(wrong))}; right in {_few(fault.sound)}")
    for explanation in fault.explanations:
        lines.append(f"  fits to {explanation.error:.1g}: {explanation.text}")
    if not fault.explanations:
        lines.append("  none of the known mistakes gives your numbers")
    return lines


def _shared(cause: Finding, faults: list[Finding]) -> list[str]:
    """That the backward pass has a forward mistake too, in a line, and where it probably has it."""
    shared = [fault for fault in faults if fault.cause == cause.row.name]
    lines = []
    for proven, words in ((True, "its backward has the same mistake"), (False, "probably the same mistake")):
        names = [
            name
            for fault in shared
            if bool(fault.explanations) == proven
            for name in (fault.row.name, *fault.elsewhere)
        ]
        if names:
            lines.append(f"  {words}: {_few(names)}")
    return lines


def _weight(name: str) -> str:
    """The weight that `adamw.weights.NAME[3]` is about."""
    return name.removeprefix("adamw.weights.").partition("[")[0]


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _suggest(name: str, report: Report) -> str:
    """A name from outside, cut and made printable, with the pack's name nearest to it."""
    known = [row.name for row in report.rows] + report.missing
    near = get_close_matches(name, known, 1)
    shown = "".join(each if each.isprintable() else "?" for each in name[:80])
    return f"{shown} (did you mean {near[0]}?)" if near else shown


def _precision_hint(report: Report) -> str:
    explained = any(fault.explanations for fault in report.faults)
    if report.diverging and report.dtype == "float64" and report.within_float32 and not explained:
        return (
            "every error is as small as float32's rounding: if that is what you computed in, --dtype float32"
        )
    return ""


def as_record(report: Report) -> dict:
    """The report by field; numbers that JSON lacks become null."""
    return {
        "golden": report.pack,
        "dtype": report.dtype,
        "holds": not report.diverging,
        "compared": len(_whole(report.rows)),
        "diverging": [_json_row(row) for row in report.diverging],
        "missing": report.missing,
        "unknown": report.unknown,
        "faults": [
            {
                **_json_row(fault.row),
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


def _json_row(row: Row) -> dict:
    values = {"name": row.name, "index": row.index, "golden": row.reference, "yours": row.twin}
    values |= {"error": row.error, "limit": row.limit, "problem": row.problem or None}
    return {
        name: None if isinstance(value, float) and not isfinite(value) else value
        for name, value in values.items()
    }
