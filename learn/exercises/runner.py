"""The other side of `grade`: runs one student's file in a process of its own, under limits.

    python -I runner.py STUDENT_FILE FOLDER ROOT GRADER

Reads FOLDER/request.json and request.npz, writes reply.npz and, last, reply.json; no reply means that the
process did not live to write one. It ends with the process GRADER that started it, however that ends. The limits
keep accidents from hurting, an endless loop or a list that grows for ever; they are no sandbox, and the file runs
with the rights of whoever grades it.

Imports NumPy, the standard library and what stands on these alone, so that it starts quickly and by its path.
"""

import contextlib
import importlib
import json
import linecache
import os
import re
import signal
import sys
import traceback
import types
from pathlib import Path

import numpy as np

MOST_ELEMENTS = 1 << 20  # of an output; one that is larger is not sent
OTHER_PROCESSES = {
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.startfile"),
    *("subprocess.Popen", "os.kill", "os.killpg"),
}


# Which hold the answers elsewhere.
BARRED = ("operations", "learn", "tests", "parity", "harness", "commands")


class Problem(Exception):
    """Why the file cannot be judged, in a line."""


def set_limits(memory: int, seconds: int) -> bool:
    """Bound address space (bytes), time and the size of a file. returns: whether memory is bounded"""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds + 1)  # where no grader is left to end it, and the system does not either
    try:
        import resource
    except ImportError:  # Windows
        return False
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 1 << 26),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ValueError, OSError):  # macOS does not bound it
        return False
    return True


def load(path: Path, withheld: list[str] | None) -> types.ModuleType:
    """Run the file as a module of its own, with the answers out of reach unless `withheld` is None."""
    if withheld is not None:
        withhold(withheld)
    sys.addaudithook(stay_alone)
    module = types.ModuleType("student")
    module.__file__ = str(path)
    sys.modules["student"] = module
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def stay_alone(event: str, _):
    """Refuse to start or signal another process, which could outlive the grading or end it."""
    if event in OTHER_PROCESSES:
        raise Problem(f"calls {event}; an exercise has no use for another process")


def withhold(names: list[str]):
    """Put a refusal in place of each named function wherever a module of numpy_llm holds it; bar other packages."""
    sys.modules.update(dict.fromkeys(BARRED))  # their import fails
    if names:
        importlib.import_module("numpy_llm.model")  # loads all the others

    for name in names:

        def refuse(*arguments, name=name, **named):
            raise Problem(f"calls the project's own {name}, which is the answer; write it in the file")

        for module in [value for key, value in sys.modules.items() if key.startswith("numpy_llm")]:
            if hasattr(module, name):
                setattr(module, name, refuse)


def arguments(request: dict, arrays: dict, trial: int) -> dict:
    """The forward pass's arguments of one trial; an array called "weights.a.b" goes into the dict `weights`."""
    found = {}
    for name in request["arguments"]:
        if name in request["numbers"][trial]:
            found[name] = request["numbers"][trial][name]
        elif f"{trial}/{name}" in arrays:
            found[name] = arrays[f"{trial}/{name}"].copy()
        else:
            start = f"{trial}/{name}."
            found[name] = {key[len(start) :]: arrays[key].copy() for key in arrays if key.startswith(start)}
    return found


def run_trial(module, request: dict, arrays: dict, trial: int) -> dict:
    """Call the student's functions once. returns: output's name -> what came, and the arguments changed"""
    inputs = arguments(request, arrays, trial)
    stem = request["function"]
    if not request["backward"]:
        found = name_outputs(call(module, stem, **inputs), request["outputs"], stem)
    else:
        pair = call(module, f"{stem}_forward", **inputs)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise Problem(
                f"{stem}_forward returns {describe(pair)}, not y and a cache; it was given, put it back"
            )
        dy = request["numbers"][trial].get("dy")
        inputs["dy"] = arrays[f"{trial}/dy"].copy() if dy is None else dy
        outputs = call(module, f"{stem}_backward", inputs["dy"], pair[1])
        found = {"y": pair[0]} | name_outputs(outputs, request["outputs"][1:], f"{stem}_backward")
    return {"outputs": found, "changed": changed(inputs, arrays, trial)}


def call(module, name: str, *positional, **named):
    """One of the student's functions. Raises Problem where it is not there."""
    function = getattr(module, name, None)
    if not callable(function):
        raise Problem(f"no function {name}; its name is how it is found")
    return function(*positional, **named)


def name_outputs(returned, names: list[str], function: str) -> dict:
    """Give what a function returned its outputs' names; a dict in it gives them itself, as the weights have them."""
    wanted = f"{len(names)} array{'s' if len(names) > 1 else ''} ({', '.join(names)})"
    if any("." in name for name in names):
        wanted = f"{names[0]} and a dict of {len(names) - 1} gradients"
    if returned is None:
        raise Problem(f"{function} returns None where {wanted} are due; is its return missing?")
    parts = list(returned) if isinstance(returned, tuple | list) and len(names) > 1 else [returned]
    if len(names) == 1 and isinstance(returned, tuple):
        parts = list(returned)
    if len(parts) == 2 and isinstance(parts[1], dict):
        if "." not in "".join(names):
            raise Problem(f"{function} returns a dict where {wanted} are due")
        gradients = {f"d{name}": value for name, value in parts[1].items()}
        if unknown := [name for name in gradients if name not in names]:
            raise Problem(
                f"{function} returns a gradient for {unknown[0][1:]!r:.80}, which is no weight's name"
            )
        return {names[0]: parts[0]} | gradients
    if len(parts) != len(names) or any("." in name for name in names):
        raise Problem(f"{function} returns {describe(returned)} where {wanted} are due")
    return dict(zip(names, parts, strict=True))


def describe(value) -> str:
    """What kind of thing a returned value is, in a few words."""
    if isinstance(value, np.ndarray):
        return f"one array of shape {value.shape}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def changed(inputs: dict, arrays: dict, trial: int) -> list[str]:
    """The names of the arguments that no longer hold what they held."""
    names = []
    for name, value in inputs.items():
        parts = (
            {f"{name}.{key}": part for key, part in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        for key, part in parts.items():
            kept = arrays.get(f"{trial}/{key}")
            if kept is not None and not np.array_equal(part, kept):
                names.append(key)
    return names


def as_array(value):
    """A float64 array of a returned value, or why there is none, as a string."""
    if value is None:
        return "None came instead of an array"
    array = np.asarray(value)
    if array.dtype.kind == "c":
        return "complex numbers came; take real ones"
    if array.dtype.kind not in "fiub":
        return f"{describe(value)} came, which is no array of numbers"
    if array.size > MOST_ELEMENTS:
        return f"an array of shape {array.shape} came, far too large"
    return np.array(array, np.float64)


def message_of(error: BaseException, path: Path) -> str:
    """An exception in a line: in which function and line of the file, of what kind, with its message."""
    if isinstance(error, Problem):
        return str(error)
    if isinstance(error, MemoryError):
        return "needs more memory than it may have"
    if isinstance(error, SystemExit):
        return "ends the program itself; take exit() out"
    function, place = place_of(error, path)
    if isinstance(error, SyntaxError):
        place = f"line {error.lineno}: " if error.lineno else ""
        return f"{place}not Python: {error.msg}"
    if isinstance(error, NotImplementedError) and function:
        return f"{function} is still blank"
    if isinstance(error, RecursionError):
        return f"{place}calls itself without end"
    if isinstance(error, EOFError):
        return f"{place}waits for input, and there is none while it is graded"
    return f"{place}{type(error).__name__}: {error}"


def place_of(error: BaseException, path: Path) -> tuple[str, str]:
    """Where in the file an error came from: the innermost of its functions and lines.

    returns: the function's name, and a place such as "line 30: ", with the shapes of the arrays that the line
        names where these may be the matter; "" twice where no line of the file took part
    """
    calls = [
        call for call in traceback.walk_tb(error.__traceback__) if call[0].f_code.co_filename == str(path)
    ]
    if not calls:
        return "", ""
    frame, number = calls[-1]
    note = ""
    if isinstance(error, ValueError | IndexError):
        names = dict.fromkeys(re.findall(r"[^\W\d]\w*", linecache.getline(str(path), number)))
        values = {name: frame.f_locals.get(name) for name in names}
        shapes = [f"{name} {value.shape}" for name, value in values.items() if isinstance(value, np.ndarray)]
        note = f" ({', '.join(shapes)})" if shapes else ""
    return frame.f_code.co_name, f"line {number}{note}: "


def judge(path: Path, folder: Path) -> dict:
    """Run the file on every trial. returns: the reply, whose arrays are in reply.npz"""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    with np.load(folder / "request.npz", allow_pickle=False) as file:
        arrays = dict(file)
    bounded = set_limits(request["memory"], request["seconds"])
    reply, kept = {"problem": "", "memory_bounded": bounded, "trials": []}, {}
    try:
        module = load(path, request["withheld"])
        for trial in range(len(request["numbers"])):
            found = run_trial(module, request, arrays, trial)
            problems = {}
            for name, value in found["outputs"].items():
                array = as_array(value)
                if isinstance(array, str):
                    problems[name] = array
                else:
                    kept[f"{trial}/{name}"] = array
            reply["trials"].append({"problems": problems, "changed": found["changed"]})
    except BaseException as error:  # whatever it is, it is the student's and becomes a line
        try:
            where = "on other sizes than yours: " if reply["trials"] else ""
            reply["problem"] = where + message_of(error, path)
        except BaseException:  # an exception whose own text fails
            reply["problem"] = f"{type(error).__name__}, whose message cannot be read"
    np.savez(folder / "reply.npz", **kept)
    return reply


def main():
    """Judge the file and leave at once, so that no thread or exit handler of its own keeps the process."""
    path, folder, root = Path(sys.argv[1]), Path(sys.argv[2]).resolve(), sys.argv[3]
    sys.path.append(root)
    from contract.process import end_with_parent

    end_with_parent(int(sys.argv[4]))
    # Taken aside before the file can put something else in their places.
    leave, dumps, place = os._exit, json.dumps, folder / "reply.json"
    place.write_text(dumps(judge(path, folder)), encoding="utf-8")
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    leave(0)


if __name__ == "__main__":
    main()
