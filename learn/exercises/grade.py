"""Grades a student's file: runs it in a process of its own and judges each output that comes back.

Every output is held against the project's own functions, and every gradient against finite differences of the
forward pass too, in float64. The reference never leaves this process.
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError, UserError
from contract.files import scratch_folder
from contract.numbers import magnitude, relative_error
from contract.schema import read_json
from learn.exercises.catalogue import EXERCISES, find_exercise
from learn.exercises.diagnosis import diagnose
from learn.exercises.exercise import TRIALS, Exercise, Instance, Trial, finite_differences

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("runner.py")

LIMIT = 1e-9  # of an error beside the reference; answers written in another order differ by 1e-15
DIFFERENCE_LIMIT = 1e-6  # beside finite differences, which have an error of their own
FLOOD = 100_000  # bytes that a file may print
LARGEST_FILE = 1_000_000  # bytes of a student's file
LARGEST_REPLY = 1 << 28  # bytes of what comes back from its process
SHOWN = 300  # characters of what it printed that are kept
MOST_TEXT = 240  # characters of a message from its process


class Limits(NamedTuple):
    """seconds: of wall-clock time; megabytes: of memory. Both for one file."""

    seconds: float = 10.0
    megabytes: int = 1024

    def check(self) -> "Limits":
        """These limits; raises ConfigError where they are out of range."""
        if not 0 < self.seconds <= 3600:
            raise ConfigError(f"--time-limit must be above 0 and at most 3600 seconds, got {self.seconds}")
        if not 256 <= self.megabytes <= 1 << 20:
            raise ConfigError(
                f"--memory-limit must be from 256 to 1048576 MB (NumPy needs its share), got {self.megabytes}"
            )
        return self


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


class Reply(NamedTuple):
    """What the runner sends back.

    problem: why the functions did not return, or ""
    memory_bounded: whether the limit on memory held
    trials: for each, output -> why there is no array of it
    changed: the arguments that were changed in place
    arrays: "trial's place/output" -> float64 array
    """

    problem: str
    memory_bounded: bool
    trials: list[dict[str, str]]
    changed: list[str]
    arrays: dict[str, np.ndarray]


DEFAULT_LIMITS = Limits()
# What the runner writes, or a student's file in its place.
REPLY = {
    "problem": str,
    "memory_bounded": bool,
    "trials": [{"problems": {str: str}, "changed": [str]}],
}


@dataclass
class Grade:
    """The judgement of one file.

    exercise, seed: what the file says that it is, or None where it does not say
    problem: why it could not be judged, in a line, or ""
    note: what else to know, such as a limit that this system does not have
    printed: the beginning of what the file printed
    """

    file: str
    exercise: str | None = None
    seed: int | None = None
    marks: list[Mark] = field(default_factory=list)
    problem: str = ""
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

    Raises UserError where the file cannot be read; whatever is wrong inside it stands in the result.
    """
    result = Grade(str(path))
    result.exercise, result.seed, result.problem = identify(path)
    if result.problem:
        return result
    if seed is not None:
        result.seed = seed
    exercise = EXERCISES[result.exercise]
    trials = exercise.trials(result.seed)
    with scratch_folder() as folder:
        write_request(folder, exercise, trials, limits, trusted)
        result.problem, result.printed = run_file(path.resolve(), folder, limits)
        if not result.problem:
            try:
                reply = read_reply(folder)
            except Exception:  # a missing or spoilt reply: a student's file may have written anything there
                result.problem = (
                    "gives no answer: take out exit, and whatever puts something else in the place of Python's or "
                    "NumPy's own functions"
                )
    if result.problem:
        return result
    if not reply.memory_bounded:
        result.note = "this system does not bound memory"
    result.problem = reply.problem
    if not result.problem:
        with np.errstate(all="ignore"):  # an answer may hold any numbers
            result.marks = judge(exercise, trials, result.seed, reply)
    return result


def files_of(path: Path) -> list[Path]:
    """The file itself; of a folder its Python files that name an exercise, be it a wrong one, sorted.

    Raises UserError where a folder holds none, or cannot be read.
    """
    if not path.is_dir():
        return [path]
    try:
        files = [file for file in sorted(path.iterdir()) if file.suffix == ".py" and names_exercise(file)]
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


def names_exercise(path: Path) -> bool:
    """Whether a file has the line EXERCISE = ..."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return re.search(rb"^EXERCISE\s*=", file.read(LARGEST_FILE), re.MULTILINE) is not None


def identify(path: Path) -> tuple[str | None, int | None, str]:
    """Read which exercise and instance a file is, without running it.

    returns: exercise, seed, and what is wrong with the file, or ""
    Raises UserError where the file cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        if path.stat().st_size > LARGEST_FILE:
            return None, None, f"larger than {LARGEST_FILE:,} bytes; this is no exercise"
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None, None, "not UTF-8 text; save it in that encoding"
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
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


def clean(text: str) -> str:
    """One line of printable characters, of bounded length: nothing that a file says can steer a terminal."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MOST_TEXT]).split())
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 4] + " ..."


def cause_of(problem: str) -> str:
    """A problem without the line and the sizes that are one file's own."""
    shared, lines = re.subn(r"line \d+[^:]*: ", "", problem, count=1)
    return re.sub(r"(?<![\w.])\d[\d.]*", "…", shared) if lines else shared


# The process


def write_request(folder: Path, exercise: Exercise, trials: list[Trial], limits: Limits, trusted: bool):
    """Put what the runner needs into its folder: names, numbers and arrays, but no right answer."""
    arrays, numbers = {}, []
    for place, trial in enumerate(trials):
        values = trial.inputs | ({} if trial.dy is None else {"dy": trial.dy})
        numbers.append({name: value for name, value in values.items() if isinstance(value, int | float)})
        for name, value in values.items():
            inner = (
                {f"{name}.{key}": part for key, part in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
            arrays |= {f"{place}/{key}": part for key, part in inner.items() if isinstance(part, np.ndarray)}
    request = {
        "function": exercise.function,
        "backward": exercise.backward is not None,
        "arguments": list(trials[0].inputs),
        "outputs": list(exercise.solve(trials[0])),
        "numbers": numbers,
        "withheld": None if trusted else list(exercise.withheld),
        "memory": limits.megabytes << 20,
        "seconds": int(limits.seconds) + 2,
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    np.savez(folder / "request.npz", **arrays)


def run_file(path: Path, folder: Path, limits: Limits) -> tuple[str, str]:
    """Run the file until it ends or passes a limit. returns: what went wrong or "", what it printed"""
    # One BLAS thread: the matrices are tiny, and each thread's stack counts as memory.
    environment = os.environ | dict.fromkeys(
        ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"
    )
    places = [str(RUNNER), str(path), str(folder), str(ROOT), str(os.getpid())]
    command = [sys.executable, "-I", "-B", "-X", "utf8", *places]
    with open(folder / "printed", "w+b") as printed:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        problem = ""
        try:
            problem = watch(process, printed, limits)
        finally:
            end(process)
        printed.seek(0)
        text = printed.read(4 * SHOWN).decode("utf-8", errors="replace")
    return problem, "".join(c if c.isprintable() or c == "\n" else "?" for c in text[:SHOWN])


def watch(process: subprocess.Popen, printed, limits: Limits) -> str:
    """Wait for the process. returns: which limit it passed or what killed it, or "" """
    deadline = time.monotonic() + limits.seconds
    flood = f"prints more than {FLOOD // 1000} kB; take the print out of the loop"
    pause = 0.005
    while process.poll() is None:
        if os.fstat(printed.fileno()).st_size > FLOOD:
            return flood
        if time.monotonic() > deadline:
            return f"took longer than {limits.seconds:g} s; is there a loop that never ends?"
        time.sleep(pause)
    if os.fstat(printed.fileno()).st_size > FLOOD:
        return flood
    return death(-process.returncode, limits) if process.returncode < 0 else ""


def death(number: int, limits: Limits) -> str:
    """What the signal that ended a process means."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if name == "SIGALRM":  # before this process looked at the clock: it was suspended
        return f"took longer than {limits.seconds:g} s; is there a loop that never ends?"
    if name == "SIGXCPU":
        return f"took more than {limits.seconds:g} s of processor time; is there a loop that never ends?"
    if name == "SIGKILL":
        return "was killed, as systems do where memory runs out; does it hoard arrays?"
    return f"crashed Python itself ({name})"


def end(process: subprocess.Popen):
    """Kill the process and all that it started, however it ended."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
    process.kill()
    process.wait()


def read_reply(folder: Path) -> Reply:
    """What the runner wrote. Raises any error where it did not live to write it whole."""
    # The file's own process could have put anything there: a pipe, a link, numbers without end.
    for path in (folder / "reply.json", folder / "reply.npz"):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_REPLY:
            raise ValueError(f"{path.name} is not what the runner writes")
    with zipfile.ZipFile(folder / "reply.npz") as archive:
        if sum(member.file_size for member in archive.infolist()) > LARGEST_REPLY:
            raise ValueError("reply.npz unpacks to more than the runner writes")
    reply = read_json(folder / "reply.json", REPLY)
    with np.load(folder / "reply.npz", allow_pickle=False) as file:
        arrays = {name: file[name].astype(np.float64) for name in file}
    if not reply["problem"] and len(reply["trials"]) != TRIALS:
        raise ValueError("not every trial is in it")
    problems = [
        {name: clean(problem) for name, problem in trial["problems"].items()} for trial in reply["trials"]
    ]
    changed = {clean(name) for trial in reply["trials"] for name in trial["changed"]}
    return Reply(clean(reply["problem"]), reply["memory_bounded"], problems, sorted(changed), arrays)


# The judgement


def judge(exercise: Exercise, trials: list[Trial], seed: int, reply: Reply) -> list[Mark]:
    """A mark for every output that is the student's work, and for y and the arguments where they were spoilt."""
    instance = Instance(exercise, trials)
    differences = finite_differences(exercise, trials[0], seed)
    marks, clues = [], {"earlier": "", "intact": ""}
    for name in reversed(instance.solutions[0]):  # as the way back meets them
        mark = judge_output(instance, name, reply, differences.get(name), clues)
        if name == "y":
            hint = "the forward pass was given and has changed; put it back"
            mark = mark._replace(hint=hint, cause=hint)
        if name != "y" or not mark.right:
            marks.insert(0, mark)
        if exercise.chained and not clues["earlier"]:
            clues["intact" if mark.right else "earlier"] = name
    if reply.changed:
        hint = f"{', '.join(reply.changed)} changed in place; the caller still needs it: work on a copy"
        marks.append(Mark("arguments", False, None, None, hint, hint))
    return marks


def judge_output(instance, name, reply, differences, clues) -> Mark:
    """Hold one output against the reference in every trial, and against the differences of the first."""
    wanted = [solution[name] for solution in instance.solutions]
    found = [reply.arrays.get(f"{trial}/{name}") for trial in range(len(wanted))]
    problem = next((problems[name] for problems in reply.trials if name in problems), "")
    if not problem and any(array is None for array in found):
        problem = f"is missing; the dict of gradients has no {name[1:]!r}"
    if problem:
        return Mark(name, False, None, None, problem, cause_of(problem))
    if any(array.shape != right.shape for array, right in zip(found, wanted, strict=True)):
        return Mark(name, False, None, None, *diagnose(instance, name, found, **clues))
    error = max(relative_error(array, right) for array, right in zip(found, wanted, strict=True))
    difference_error = None
    if differences is not None:
        at_places = found[0].flat[differences.places]
        difference_error = relative_error(at_places, differences.values, magnitude(wanted[0]))
    right = error <= LIMIT and (difference_error is None or difference_error <= DIFFERENCE_LIMIT)
    if right:
        return Mark(name, True, error, difference_error, "", "")
    hint = diagnose(instance, name, found, **clues)
    finite = [
        value if value is not None and np.isfinite(value) else None for value in (error, difference_error)
    ]
    return Mark(name, False, *finite, *hint)
