"""What a class handed in: whose file each is, and all of them graded, several at once."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from contract.errors import UserError
from contract.process import end_with_parent
from learn.exercises.catalogue import EXERCISES
from learn.exercises.exercise import Exercise
from learn.exercises.grade import Grade, grade
from learn.exercises.process import DEFAULT_LIMITS, Limits

STUDENT = "{student}"  # in --seed-from: the student's name


class Submission(NamedTuple):
    """student: whose it is; path: of the file, or of a folder without one; problem: why there is none, or "" """

    student: str
    path: Path
    problem: str = ""


def seed_of(name: str) -> int:
    """The seed that a name stands for: the same on every machine, from 0 to 2^32 - 1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def submissions(paths: list[Path]) -> list[Submission]:
    """The files given, and of each folder every Python file in it and in its folders, sorted.

    The student is the first folder below the one given. A file beside such folders is its student's by its name, or,
    where it has the name that `exercise start` gives it, by its folder's. Hidden folders are passed by.
    """
    found = []
    for path in paths:
        found += _in_folder(path) if path.is_dir() else [Submission(_student(path, path.parent), path)]
    return found


def _in_folder(folder: Path) -> list[Submission]:
    files, others, problems = [], [], {}

    def unreadable(error: OSError):
        problems[Path(error.filename)] = f"cannot be read ({error.strerror})"

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            if not name.startswith((".", "__")):
                (files if name.endswith(".py") else others).append(Path(place, name))
        if Path(place) == folder:
            problems |= {Path(place, name): "" for name in folders}
    files.sort()
    owners = {folder / file.relative_to(folder).parts[0] for file in files}
    empty = {path: problem for path, problem in problems.items() if path not in owners}
    if not files and not empty:
        empty = {folder: ""}
    for path in [path for path, problem in empty.items() if not problem]:
        instead = [other.name for other in others if other.is_relative_to(path)]
        empty[path] = "holds no .py file" + (f", but {instead[0]}" if instead else "")
    found = [Submission(_student(file, folder), file) for file in files]
    found += [Submission(_student(path, folder), path, problem) for path, problem in empty.items()]
    return sorted(found, key=lambda submission: submission.path)


def _student(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else path.parts[-1:]
    if len(parts) > 1:
        return parts[0]
    own_name = path.suffix == ".py" and path.stem.replace("_", "-") in EXERCISES
    return folder.resolve().name if own_name or not parts else path.stem


def grade_submission(
    submission: Submission,
    *,
    seed: int | None = None,
    seed_from: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Grade:
    """Grade one of a class; what cannot be read is a problem of that one.

    seed: of all, in place of the one that a file names; seed_from: the name whose seed it is, `STUDENT` in it replaced
    """
    student, path, problem = submission
    if seed_from is not None:
        seed = seed_of(seed_from.replace(STUDENT, student))
    if not problem:
        try:
            return replace(grade(path, seed=seed, limits=limits), student=student)
        except UserError as error:
            problem = str(error).partition(": ")[2].partition(";")[0]
    return Grade(str(path), None, None, problem, student=student)


def not_handed_in(grades: list[Grade], owed: list[Exercise]) -> list[Grade]:
    """0 points for each student who has no file of an exercise that all of them owe."""
    handed_in = {(each.student, each.exercise) for each in grades}
    students = dict.fromkeys(each.student for each in grades)
    return [
        Grade("", exercise.name, None, "not handed in", exercise.points, student=student)
        for exercise in owed
        for student in students
        if (student, exercise.name) not in handed_in
    ]


def grade_all(found: list[Submission], *, jobs: int | None = None, **how) -> Iterator[Grade]:
    """Grade them in their order. jobs: how many at once, one per CPU unless told; how: as in `grade_submission`"""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or cpus, len(found))
    one = partial(grade_submission, **how)
    if jobs <= 1:
        yield from map(one, found)
        return
    # Processes, not threads: a diagnosis makes mistakes in numpy_llm itself, which all threads would share.
    start = get_context("spawn")
    with ProcessPoolExecutor(jobs, start, initializer=end_with_parent, initargs=(os.getpid(),)) as pool:
        yield from pool.map(one, found)
