"""A student's file in a process of its own: what the runner is asked, how it is bounded, and what it answers."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError
from contract.schema import read_json
from learn.exercises.exercise import TRIALS, Exercise, Trial

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("runner.py")

FLOOD = 100_000  # bytes that a file may print
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


def clean(text: str) -> str:
    """One line of printable characters, of bounded length: nothing that a file says can steer a terminal."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MOST_TEXT]).split())
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 4] + " ..."


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
