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
from learn.exercises.diagnosis import Found, diagnose
from learn.exercises.exercise import Instance
from learn.exercises.letters import axis_of_error
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
    of: how many outputs are due, each a point; 0 where the file names no exercise
    note: what else to know, such as a limit that this system does not have
    printed: the beginning of what the file printed
    student: whose it is
    """

    file: str
    exercise: str | None
    seed: int | None
    problem: str
    of: int = 0
    marks: list[Mark] = field(default_factory=list)
    note: str = ""
    printed: str = ""
    student: str = ""

    @property
    def gradable(self) -> bool:
        """Whether the file could be read and names an exercise; one that crashes then has 0 points."""
        return self.exercise is not None

    @property
    def points(self) -> int:
        """The right outputs, less one for a changed forward pass and one for arguments changed in place."""
        right, wrong = sum(mark.right for mark in self.marks), sum(not mark.right for mark in self.marks)
        return max(0, min(right, self.of - wrong))

    @property
    def full(self) -> bool:
        """Whether everything is right."""
        return not self.problem and bool(self.marks) and self.points == self.of


def grade(
    path: Path, *, seed: int | None = None, limits: Limits = DEFAULT_LIMITS, trusted: bool = False
) -> Grade:
    """Grade one file.

    seed: of the instance, in place of the one that the file names
    trusted: let the file call the project's answers; for the tests, which grade these

    Raises UserError if the file cannot be read; whatever is wrong inside it stands in the result.
    """
    result = Grade(str(path), *identify(path, seed))
    if result.problem:
        return result
    exercise = EXERCISES[result.exercise]
    trials = exercise.trials(result.seed)
    result.of = exercise.points
    reply, result.printed = run_file(path, exercise, trials, limits, trusted)
    result.problem = reply.problem
    if reason := axis_of_error(reply.problem, trials):
        result.problem += f"; is something {reason}?"
    result.note = "" if reply.memory_bounded else "this system does not bound memory"
    if not result.problem:
        with np.errstate(all="ignore"):  # an answer may hold any numbers
            result.marks = judge(Instance(exercise, trials, result.seed), reply)
    return result


def identify(path: Path, seed: int | None = None) -> tuple[str | None, int | None, str]:
    """Read which exercise and instance a file is, without running it.

    seed: in place of the file's own
    returns: exercise, seed, and what is wrong with the file, or ""
    Raises UserError if the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
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
    name = re.search(r"^EXERCISE\s*=\s*[\"']([^\"'\n]{1,40})[\"']", text, re.MULTILINE)
    number = re.search(r"^SEED\s*=\s*(\d{1,19})\s*(#.*)?$", text, re.MULTILINE)
    if not name or not (number or seed is not None):
        missing = "EXERCISE" if not name else "SEED"
        if not text.strip():
            return None, None, "the file is empty"
        return None, None, f'no line {missing} = ... as "exercise start" writes it; put it back'
    seed = int(number[1]) if seed is None else seed
    try:
        exercise = find_exercise(name[1])
        exercise.trials(seed)
    except ConfigError as error:
        return None, None, str(error).replace("--seed", "SEED")
    return exercise.name, seed, ""


def cause_of(problem: str) -> str:
    """A problem without the line and the sizes that are one file's own."""
    shared, lines = re.subn(r"line \d+[^:]*: ", "", problem, count=1)
    return re.sub(r"(?<![\w.])\d[\d.]*", "…", shared) if lines else shared


# The judgement


def judge(instance: Instance, reply: Reply) -> list[Mark]:
    """A mark for each output, and for y and the arguments if they are wrong."""
    exercise, differences = instance.exercise, instance.differences
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
    student = Found(reply.arrays, reply.changed)
    return Mark(name, False, *finite, *diagnose(instance, name, student, **clues))
