"""What `exercise grade` prints: a file's marks, the summary of a class, the same as JSON."""

import json
from collections import Counter
from collections.abc import Iterator

from learn.exercises.grade import Grade, cause_of, clean

COMMONEST = 3  # causes of an exercise that a summary tells


def lines(grade: Grade) -> Iterator[str]:
    """One file: a line where it could not be judged, else a line for each output."""
    title = clean(grade.file)
    if grade.exercise is not None:
        title += f": {grade.exercise}, seed {grade.seed}"
    if grade.problem:
        yield f"{title}: {grade.problem}"
        return
    yield f"{title}: {grade.right} of {len(grade.marks)} right{f' ({grade.note})' if grade.note else ''}"
    width = max(len(mark.name) for mark in grade.marks)
    for mark in grade.marks:
        if mark.right:
            errors = f"error {mark.error:.1e} beside the reference"
            if mark.difference_error is not None:
                errors += f", {mark.difference_error:.1e} beside finite differences"
            yield f"  {mark.name:<{width}}  right  {errors}"
        else:
            yield f"  {mark.name:<{width}}  wrong  {mark.hint}"


def summary(grades: list[Grade]) -> dict[str, dict]:
    """By exercise, in order of appearance: files, how many are full, the commonest causes, how many others."""
    found = {}
    for name in dict.fromkeys(grade.exercise or "unknown" for grade in grades):
        own = [grade for grade in grades if (grade.exercise or "unknown") == name]
        causes = Counter(cause for grade in own for cause in causes_of(grade))
        found[name] = {
            "files": len(own),
            "full": sum(grade.full for grade in own),
            "hints": [{"hint": hint, "files": count} for hint, count in causes.most_common(COMMONEST)],
            "others": max(0, len(causes) - COMMONEST),
        }
    return found


def causes_of(grade: Grade) -> list[str]:
    """What is wrong with the file, each cause once, at the first of the outputs that it spoils."""
    if grade.problem:
        return [cause_of(grade.problem)]
    outputs = {}
    for mark in grade.marks:
        if mark.cause:
            outputs.setdefault(mark.cause, mark.name)
    return [
        f"{name}: {cause}"
        for cause, name in outputs.items()
        if not any(cause in other and cause != other for other in outputs)  # a part of it reached this output
    ]


def summary_lines(grades: list[Grade]) -> Iterator[str]:
    """The summary of several files."""
    yield f"{sum(grade.full for grade in grades)} of {len(grades)} files have everything right"
    for name, row in summary(grades).items():
        yield f"  {name}: {row['full']} of {row['files']}"
        for each in row["hints"]:
            yield f"    {each['files']} x {each['hint']}"
        if row["others"]:
            yield f"    and {row['others']} other cause{'s' if row['others'] > 1 else ''}"


def as_json(grades: list[Grade]) -> str:
    """Everything for machines; numbers that JSON lacks are null."""
    files = [
        {
            "file": grade.file,
            "exercise": grade.exercise,
            "seed": grade.seed,
            "right": grade.right,
            "of": len(grade.marks),
            "full": grade.full,
            "problem": grade.problem,
            "note": grade.note,
            "printed": grade.printed,
            "outputs": [mark._asdict() for mark in grade.marks],
        }
        for grade in grades
    ]
    return json.dumps({"files": files, "summary": summary(grades)}, allow_nan=False)
