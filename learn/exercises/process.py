"""A student's file in a process of its own: what the runner is asked, how it is bounded, and what it answers."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError
from contract.files import open_regular, scratch_folder
from contract.schema import read_json
from learn.exercises.exercise import TRIALS, Exercise, Trial
from learn.exercises.runner import flat

ROOT = Path(__file__).parents[2]
# Isolated Python (-I) does not look for modules here by itself.
RUN = "import sys; sys.path.append(sys.argv[3]); from learn.exercises.runner import main; main()"

MAX_PRINTED = 100_000  # bytes that a file may print
MAX_REPLY_BYTES = 1 << 28
MAX_SHOWN = 300  # characters of what it printed that are kept
MAX_TEXT = 240  # characters of a message from its process


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


class Reply(NamedTuple):
    """What the runner sends back.

    problem: why the functions did not return, or ""
    changed: the arguments that were changed in place
    arrays, problems: "trial/output" -> float64 array, or why there is none
    """

    problem: str
    memory_bounded: bool
    problems: dict[str, str]
    changed: list[str]
    arrays: dict[str, np.ndarray]


DEFAULT_LIMITS = Limits()
# What the runner writes, or a student's file in its place.
REPLY = {"problem": str, "memory_bounded": bool, "problems": {str: str}, "changed": [str]}
REPLY["trials"] = range(TRIALS + 1)


def clean(text: str) -> str:
    """One line of printable characters, of bounded length: nothing that a file says can steer a terminal."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_TEXT]).split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 4] + " ..."


def write_request(folder: Path, exercise: Exercise, trials: list[Trial], limits: Limits, trusted: bool):
    """Put what the runner needs into its folder: names, numbers and arrays, but no right answer."""
    arrays = {}
    for place, trial in enumerate(trials):
        values = trial.inputs | ({} if trial.dy is None else {"dy": trial.dy})
        arrays |= {f"{place}/{name}": value for name, value in flat(values).items()}
    request = {
        "function": exercise.function,
        "given": not exercise.writes_forward,
        "outputs": list(exercise.solve(trials[0])),
        "trials": len(trials),
        "withheld": None if trusted else exercise.withheld,
        "lent": exercise.lent,
        "cache": exercise.cache_names,
        "memory": limits.megabytes << 20,
        "seconds": int(limits.seconds) + 2,
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    np.savez(folder / "request.npz", **arrays)


def run_file(
    path: Path, exercise: Exercise, trials: list[Trial], limits: Limits, trusted: bool
) -> tuple[Reply, str]:
    """Run a student's file on every trial. returns: what came back, and the beginning of what it printed"""
    with scratch_folder() as folder:
        write_request(folder, exercise, trials, limits, trusted)
        problem, printed = _run(path.resolve(), folder, limits)
        if not problem:
            try:
                return _read_reply(folder), printed
            except Exception:  # a missing or spoilt reply: a student's file may have written anything there
                problem = (
                    "gives no answer: take out exit, and whatever puts something else in the place of Python's or "
                    "NumPy's own functions"
                )
    return Reply(problem, True, {}, [], {}), printed


def _run(path: Path, folder: Path, limits: Limits) -> tuple[str, str]:
    """Run the file until it ends or passes a limit. returns: what went wrong or "", what it printed"""
    # One BLAS thread: the matrices are tiny, and each thread's stack counts as memory.
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = ["-c", RUN, str(path), str(folder), str(ROOT), str(os.getpid())]
    with open(folder / "printed", "w+b") as printed:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-X", "utf8", *paths],
            cwd=folder,
            env=os.environ | threads,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            problem = _wait(process, printed, limits)
        finally:  # kill it and all that it started
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
            process.kill()
            process.wait()
        printed.seek(0)
        text = printed.read(4 * MAX_SHOWN).decode("utf-8", errors="replace")
    return problem, "".join(c if c.isprintable() or c == "\n" else "?" for c in text[:MAX_SHOWN])


def _wait(process: subprocess.Popen, printed, limits: Limits) -> str:
    """Wait for the process. returns: which limit it passed or what killed it, or "" """
    deadline = time.monotonic() + limits.seconds
    ended = False
    while not ended:
        ended = process.poll() is not None
        if os.fstat(printed.fileno()).st_size > MAX_PRINTED:
            return f"prints more than {MAX_PRINTED // 1000} kB; take the print out of the loop"
        if not ended and time.monotonic() > deadline:
            return f"took longer than {limits.seconds:g} s; is there a loop that never ends?"
        time.sleep(0 if ended else 0.005)
    return _death(-process.returncode, limits) if process.returncode < 0 else ""


def _death(number: int, limits: Limits) -> str:
    """What the signal that ended a process means."""
    name = next((each.name for each in signal.Signals if each == number), f"signal {number}")
    slow = f"{limits.seconds:g} s{{}}; is there a loop that never ends?"
    return {
        "SIGALRM": f"took longer than {slow.format('')}",  # this process was suspended
        "SIGXCPU": f"took more than {slow.format(' of CPU time')}",
        "SIGKILL": "was killed, probably out of memory; does it keep too many arrays?",
    }.get(name, f"crashed Python itself ({name})")


def _read_reply(folder: Path) -> Reply:
    """What the runner wrote. Raises any error if it did not write all of it: the file may have put anything there."""
    reply = read_json(folder / "reply.json", REPLY)
    with open_regular(folder / "reply.npz") as file, zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_REPLY_BYTES:
            raise ValueError("reply.npz unpacks to more than the runner writes")
    with np.load(folder / "reply.npz", allow_pickle=False) as file:
        arrays = {name: file[name].astype(np.float64) for name in file}
    if not reply["problem"] and reply["trials"] != TRIALS:
        raise ValueError("not every trial is in it")
    problems = {name: clean(problem) for name, problem in reply["problems"].items()}
    changed = sorted({clean(name) for name in reply["changed"]})
    return Reply(clean(reply["problem"]), reply["memory_bounded"], problems, changed, arrays)
