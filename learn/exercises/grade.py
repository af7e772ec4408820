"""Grades a student's file: runs it in a process of its own and judges each output that comes back.

Every output is held against the project's own functions, and every gradient against finite differences of the
forward pass too, in float64. The reference never leaves this process.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError, UserError
from contract.files import open_regular
from contract.numbers import magnitude, relative_error
from learn.exercises.catalogue import EXERCISES, find_exercise
from learn.exercises.diagnosis import diagnose
from learn.exercises.exercise import Exercise, Instance, Trial, finite_differences
from learn.exercises.process import DEFAULT_LIMITS, Limits, Reply, clean, run_file

LIMIT = 1e-9  # of an error beside the reference; answers written in another order differ by 1e-15
DIFFERENCE_LIMIT = 1e-6  # beside finite differences, which have an error of their own
MAX_FILE_BYTES = 1_000_000  # of a student's file


class Mark(NamedTuple):
    """The judgement of one output.

    error: beside the reference, relative to its largest magnitude; None where nothing comparable came
    difference_error: the same beside finite differences; None too where they do not apply
    hint: what to do, or "" where it is right
    cause: the hint without the numbers of one student's instance; "" too where another output is the cause
    """

    name: str
    right: bool
    error: float | None
    difference_error: float | None
    hint: str
    cause: str


@dataclass
class Grade:
    """The judgement of one file.

    exercise, seed: what the file says that it is, or None where it does not say
    problem: why it could not be judged, in a line, or ""
    note: what else to know, such as a limit that this system does not have
    printed: the beginning of what the file printed
    """

    file: str
    exercise: str | None
    seed: int | None
    problem: str
    marks: list[Mark] = field(default_factory=list)
    note: str = ""
    printed: str = ""

    @property
    def right(self) -> int:
        """How many outputs are right."""
        return sum(mark.right for mark in self.marks)

    @property
    def full(self) -> bool:
        """Whether everything is right."""
        return not self.problem and bool(self.marks) and self.right == len(self.marks)


def grade(
    path: Path, *, seed: int | None = None, limits: Limits = DEFAULT_LIMITS, trusted: bool = False
) -> Grade:
    """Grade one file.

    seed: of the instance, in place of the one that the file names
    trusted: let the file call the project's answers; for the tests, which grade these

    Raises UserError if the file cannot be read; whatever is wrong inside it stands in the result.
    """
    result = Grade(str(path), *identify(path))
    if result.problem:
        return result
    if seed is not None:
        result.seed = seed
    exercise = EXERCISES[result.exercise]
    trials = exercise.trials(result.seed)
    reply, result.printed = run_file(path, exercise, trials, limits, trusted)
    result.problem = reply.problem
    result.note = "" if reply.memory_bounded else "this system does not bound memory"
    if not result.problem:
        with np.errstate(all="ignore"):  # an answer may hold any numbers
            result.marks = judge(exercise, trials, result.seed, reply)
    return result


def files_of(path: Path) -> list[Path]:
    """The file itself; of a folder its Python files that name an exercise, be it a wrong one, sorted.

    Raises UserError if a folder holds none, or cannot be read.
    """
    if not path.is_dir():
        return [path]
    try:
        candidates = [file for file in sorted(path.iterdir()) if file.suffix == ".py" and file.is_file()]
        files = [file for file in candidates if re.search(rb"^EXERCISE\s*=", _start_of(file), re.MULTILINE)]
    except OSError as error:
        raise UserError(
            f"{clean(str(error.filename or path))}: cannot be read ({error.strerror or error})"
        ) from error
    if not files:
        raise UserError(
            f"{clean(str(path))}: no .py file in this folder names an exercise; give the folder of files that "
            "'exercise start' wrote, or the files"
        )
    return files


def _start_of(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(MAX_FILE_BYTES + 1)


def identify(path: Path) -> tuple[str | None, int | None, str]:
    """Read which exercise and instance a file is, without running it.

    returns: exercise, seed, and what is wrong with the file, or ""
    Raises UserError if the file cannot be read.
    """
    try:
        data = _start_of(path)
        if len(data) > MAX_FILE_BYTES:
            return None, None, f"larger than {MAX_FILE_BYTES:,} bytes; this is no exercise"
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None, None, "not UTF-8 text; save it in that encoding"
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise UserError(
            f"{clean(str(path))}: cannot be read ({reason}); give files that 'exercise start' wrote"
        ) from error
    name = re.search(r"^EXERCISE\s*=\s*[\"']([\w-]{1,40})[\"']", text, re.MULTILINE)
    number = re.search(r"^SEED\s*=\s*(\d{1,19})\s*(#.*)?$", text, re.MULTILINE)
    if not name or not number:
        missing = "EXERCISE" if not name else "SEED"
        return None, None, f'no line {missing} = ... as "exercise start" writes it; put it back'
    try:
        exercise = find_exercise(name[1])
        exercise.trials(int(number[1]))
    except ConfigError as error:
        return None, None, str(error).replace("--seed", "SEED")
    return exercise.name, int(number[1]), ""


def cause_of(problem: str) -> str:
    """A problem without the line and the sizes that are one file's own."""
    shared, lines = re.subn(r"line \d+[^:]*: ", "", problem, count=1)
    return re.sub(r"(?<![\w.])\d[\d.]*", "…", shared) if lines else shared


# The judgement


def judge(exercise: Exercise, trials: list[Trial], seed: int, reply: Reply) -> list[Mark]:
    """A mark for each output, and for y and the arguments if they are wrong."""
    instance = Instance(exercise, trials)
    differences = finite_differences(exercise, trials[0], seed)
    marks, clues = [], {"earlier": "", "intact": ""}
    names = list(instance.solutions[0])
    if exercise.writes_forward:
        mark = _judge_output(instance, "y", reply, None, clues)
        marks, clues["earlier"] = [mark], "" if mark.right else "y"
        names.remove("y")
    for name in reversed(names):  # as the way back meets them
        mark = _judge_output(instance, name, reply, differences.get(name), clues)
        if name == "y":
            hint = "the forward pass was given and has changed; put it back"
            mark = mark._replace(hint=hint, cause=hint)
        if name != "y" or not mark.right:
            marks.insert(int(exercise.writes_forward), mark)
        if exercise.chained and not clues["earlier"]:
            clues["intact" if mark.right else "earlier"] = name
    if reply.changed:
        hint = f"{', '.join(reply.changed)} changed in place; the caller still needs it: work on a copy"
        marks.append(Mark("arguments", False, None, None, hint, hint))
    return marks


def _judge_output(instance, name, reply, differences, clues) -> Mark:
    """Hold one output against the reference in every trial, and against the differences of the first."""
    wanted = [solution[name] for solution in instance.solutions]
    places = [f"{trial}/{name}" for trial in range(len(wanted))]
    found = [reply.arrays.get(place) for place in places]
    problem = next((reply.problems[place] for place in places if place in reply.problems), "")
    if not problem and any(array is None for array in found):
        problem = f"is missing; the dict of gradients has no {name[1:]!r}"
    if problem:
        return Mark(name, False, None, None, problem, cause_of(problem))
    error, difference_error = max(map(relative_error, found, wanted)), None
    same_shapes = all(array.shape == right.shape for array, right in zip(found, wanted, strict=True))
    if differences is not None and same_shapes:
        at_places = found[0].flat[differences.places]
        difference_error = relative_error(at_places, differences.values, magnitude(wanted[0]))
    if error <= LIMIT and (difference_error is None or difference_error <= DIFFERENCE_LIMIT):
        return Mark(name, True, error, difference_error, "", "")
    finite = [each if each is not None and np.isfinite(each) else None for each in (error, difference_error)]
    return Mark(name, False, *finite, *diagnose(instance, name, found, **clues))
