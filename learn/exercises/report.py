"""What `exercise grade` prints: a file's marks, the table and the summary of a class, the same as JSON and CSV."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator

from learn.exercises.grade import Grade, cause_of
from learn.exercises.process import clean

MAX_CAUSES = 3  # causes of an exercise that a summary tells


def lines(grade: Grade) -> Iterator[str]:
    """One file: a line if it could not be judged, else a line for each output. A cause is told once."""
    title = clean(grade.file)
    if grade.exercise is not None:
        title += f": {grade.exercise}, seed {grade.seed}"
    if grade.problem:
        yield f"{title}: {grade.problem}"
        return
    less = "; what was changed takes a point each" if grade.points < sum(m.right for m in grade.marks) else ""
    yield f"{title}: {grade.points} of {grade.of} right{less}{f' ({grade.note})' if grade.note else ''}"
    width, told = max(len(mark.name) for mark in grade.marks), {}
    for mark in grade.marks:
        says = f"wrong  {mark.hint}"
        if mark.cause in told:
            says = f"wrong  the same cause as {told[mark.cause]}"
        elif mark.cause:
            told[mark.cause] = mark.name
        if mark.right:
            says = f"right  error {mark.error:.1e} beside the reference"
            if mark.difference_error is not None:
                says += f", {mark.difference_error:.1e} beside finite differences"
        yield f"  {mark.name:<{width}}  {says}"


def table_lines(grades: list[Grade]) -> Iterator[str]:
    """A line for each file of a class: student, exercise, points; and their sum."""
    rows = [("student", "exercise", "points")]
    for grade in grades:
        points = f"{grade.points} of {grade.of}" if grade.gradable else f"not gradable: {grade.problem}"
        rows.append((clean(grade.student), grade.exercise or "-", points))
    of = sum(grade.of for grade in grades)
    rows.append(("all", "", f"{sum(grade.points for grade in grades)} of {of}"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for student, exercise, points in rows:
        yield f"  {student:<{widths[0]}}  {exercise:<{widths[1]}}  {points}"


def summary(grades: list[Grade]) -> dict[str, dict]:
    """By exercise, in order of appearance: files, how many are full, the commonest causes, how many others.

    What is not gradable stands under "".
    """
    found = {}
    for grade in grades:
        row = found.setdefault(grade.exercise or "", {"files": 0, "full": 0, "hints": Counter()})
        row["files"] += 1
        row["full"] += grade.full
        row["hints"].update(_causes(grade))
    for row in found.values():
        causes = row["hints"]
        row["hints"] = [{"hint": hint, "files": files} for hint, files in causes.most_common(MAX_CAUSES)]
        row["others"] = max(0, len(causes) - MAX_CAUSES)
    return found


def _causes(grade: Grade) -> list[str]:
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
    files = [grade for grade in grades if grade.file]
    yield f"{sum(grade.full for grade in files)} of {len(files)} files have everything right"
    for name, row in summary(grades).items():
        yield f"  {name}: {row['full']} of {row['files']}" if name else f"  not gradable: {row['files']}"
        for each in row["hints"]:
            yield f"    {each['files']} x {each['hint']}"
        if row["others"]:
            yield f"    and {row['others']} other cause{'s' if row['others'] > 1 else ''}"


def as_json(grades: list[Grade]) -> str:
    """Everything for machines; numbers that JSON lacks are null."""
    files = [
        {name: value for name, value in vars(grade).items() if name not in ("marks", "of")}
        | {"right": grade.points, "points": grade.points, "of": grade.of, "full": grade.full}
        | {"gradable": grade.gradable, "outputs": [mark._asdict() for mark in grade.marks]}
        for grade in grades
    ]
    return json.dumps({"files": files, "summary": summary(grades)}, allow_nan=False)


def as_csv(grades: list[Grade]) -> str:
    """A line for each file, under one with the columns' names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("student", "exercise", "points", "of", "file", "problem"))
    for grade in grades:
        problem = grade.problem or "; ".join(_causes(grade))
        of_student = grade.student, grade.exercise or "", grade.points, grade.of, grade.file, problem
        writer.writerow([_cell(value) for value in of_student])
    return text.getvalue().rstrip("\n")


def _cell(value):
    """What a spreadsheet shows as it is: text that it would take for a formula gets a mark of quotation."""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
