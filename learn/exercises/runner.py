"""The other side of `grade`: runs one student's file in a process of its own, under limits.

    python -I -c "..." STUDENT_FILE FOLDER ROOT GRADER

Reads FOLDER/request.json and request.npz, writes reply.npz and, last, reply.json; no reply means that the
process did not live to write one. It ends with the process GRADER that started it, however that ends. The limits
keep accidents from hurting, an endless loop or a list that grows for ever; they are no sandbox, and the file runs
with the rights of whoever grades it.

Imports NumPy, the standard library and what stands on these alone, so that it starts quickly.
"""

import contextlib
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

from learn.exercises.earlier import accept_earlier_files
from learn.exercises.refusals import Problem, refuse

MAX_ELEMENTS = 1 << 20  # of an output; a larger one is not sent


def set_limits(memory: int, seconds: int) -> bool:
    """Bound address space (bytes), time and the size of a file. returns: whether memory is bounded"""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds + 1)  # in case the grader is gone and the system does not end this process
    try:
        import resource
    except ImportError:  # Windows
        return False
    bounded = True
    for kind, value in (("CPU", seconds), ("FSIZE", 1 << 26), ("CORE", 0), ("AS", memory)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (value, value))
        except (ValueError, OSError):  # macOS does not bound memory
            bounded = bounded and kind != "AS"
    return bounded


def load(path: Path, withheld: list[str] | None, lent: list[str]) -> types.ModuleType:
    """Run the file as a module of its own, with the answers out of reach unless `withheld` is None."""
    accept_earlier_files()
    if withheld is not None:
        refuse(path, withheld, lent)
    module = types.ModuleType("student")
    module.__file__ = str(path)
    sys.modules["student"] = module
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def flat(arguments: dict, named: str = "{}.{}") -> dict:
    """Arguments by name; those in a dict by the dict's name and their own, put into `named`."""
    return {
        named.format(name, inner) if inner else name: part
        for name, value in arguments.items()
        for inner, part in (value if isinstance(value, dict) else {"": value}).items()
    }


def arguments_of(arrays: dict, trial: int) -> dict:
    """The arguments of one trial, and dy; undoes `flat`. A number comes as an array without axes."""
    found = {}
    for key, value in arrays.items():
        place, _, name = key.partition("/")
        if place == str(trial):
            name, _, inner = name.partition(".")
            holder = found.setdefault(name, {}) if inner else found
            holder[inner or name] = value.copy() if value.ndim else value.item()
    return found


def run_trial(module, request: dict, arrays: dict, trial: int) -> tuple[dict, list]:
    """Call the student's functions once.

    returns: output's name -> what came; the arguments, and parts of the cache, that were changed
    """
    inputs = arguments_of(arrays, trial)
    sent, kept = flat(inputs), {}
    stem, names, dy = request["function"], request["outputs"], inputs.pop("dy", None)
    if dy is None:
        found = name_outputs(call(module, stem, **inputs), names, stem)
    else:
        pair = call(module, f"{stem}_forward", **inputs)
        if not isinstance(pair, tuple) or len(pair) != 2:
            advice = "; it was given, put it back" if request["given"] else ""
            raise Problem(f"{stem}_forward returns {describe(pair)}, not y and a cache{advice}")
        y = np.array(pair[0])  # the cache may hold it
        kept = {name: (part, part.copy()) for name, part in parts_of(pair[1], request["cache"]).items()}
        outputs = call(module, f"{stem}_backward", dy, pair[1])
        found = {"y": y} | name_outputs(outputs, names[1:], f"{stem}_backward")
    changed = [name for name, value in sent.items() if not np.array_equal(value, arrays[f"{trial}/{name}"])]
    own = [sent[name] for name in changed if isinstance(sent[name], np.ndarray)]
    changed += [
        name
        for name, (part, before) in kept.items()
        if not np.array_equal(part, before, equal_nan=True)
        and not any(np.may_share_memory(part, each) for each in own)
    ]
    return found, changed


def parts_of(cache, names=(), place="cache") -> dict[str, np.ndarray]:
    """The arrays of numbers in a cache, however deep, by their places in it; names: of its own parts."""
    if isinstance(cache, np.ndarray):
        return {place: cache} if cache.dtype.kind in "fiub" else {}
    if isinstance(cache, dict):
        names, cache = list(cache), tuple(cache.values())
    elif not isinstance(cache, tuple | list):
        return {}
    names = getattr(cache, "_fields", names)
    if len(names) != len(cache):
        names = map(str, range(len(cache)))
    found = {}
    for name, part in zip(names, cache, strict=True):
        found |= parts_of(part, (), f"{place}.{name}")
    return found


def call(module, name: str, *positional, **named):
    """One of the student's functions. Raises Problem where it is not there."""
    function = getattr(module, name, None)
    if not callable(function):
        raise Problem(f"no function {name}; its name is how it is found")
    return function(*positional, **named)


def name_outputs(returned, names: list[str], function: str) -> dict:
    """Give what a function returned its outputs' names; a dict in it gives them itself, as the weights have them."""
    nested = "." in "".join(names)
    wanted = f"{len(names)} array{'s' if len(names) > 1 else ''} ({', '.join(names)})"
    if nested:
        wanted = f"{names[0]} and a dict of {len(names) - 1} gradients"
    if returned is None:
        raise Problem(f"{function} returns None where {wanted} are due; is its return missing?")
    several = isinstance(returned, tuple) or (isinstance(returned, list) and len(names) > 1)
    parts = list(returned) if several else [returned]
    with_dict = len(parts) == 2 and isinstance(parts[1], dict)
    if with_dict and not nested:
        raise Problem(f"{function} returns a dict where {wanted} are due")
    if nested != with_dict or (not nested and len(parts) != len(names)):
        raise Problem(f"{function} returns {describe(returned)} where {wanted} are due")
    if not nested:
        return dict(zip(names, parts, strict=True))
    gradients = {f"d{name}": value for name, value in parts[1].items()}
    if unknown := [name for name in gradients if name not in names]:
        raise Problem(f"{function} returns a gradient for {unknown[0][1:]!r:.80}, which is no weight's name")
    return {names[0]: parts[0]} | gradients


def describe(value) -> str:
    """What kind of thing a returned value is, in a few words."""
    if isinstance(value, np.ndarray):
        return f"one array of shape {value.shape}"
    kind = f"a {type(value).__name__}"
    return f"{kind} of {len(value)}" if isinstance(value, tuple | list | dict) else kind


def as_array(value) -> np.ndarray:
    """A float64 array of a returned value. Raises Problem if it is none."""
    if value is None:
        raise Problem("None came instead of an array")
    array = np.asarray(value)
    if array.dtype.kind == "c":
        raise Problem("complex numbers came; take real ones")
    if array.dtype.kind not in "fiub":
        raise Problem(f"{describe(value)} came, which is no array of numbers")
    if array.size > MAX_ELEMENTS:
        raise Problem(f"an array of shape {array.shape} came, far too large")
    return np.array(array, np.float64)


MESSAGES = {
    SystemExit: "ends the program itself; take exit() out",
    RecursionError: "calls itself without end",
    EOFError: "waits for input, and there is none while it is graded",
}


def message_of(error: BaseException, path: Path) -> str:
    """An exception in a line: in which function and line of the file, of what kind, with its message."""
    if isinstance(error, Problem):
        return str(error)
    if isinstance(error, MemoryError):
        return "needs more memory than it may have"
    function, place = place_of(error, path)
    if isinstance(error, SyntaxError):
        return f"{f'line {error.lineno}: ' if error.lineno else ''}not Python: {error.msg}"
    if isinstance(error, NotImplementedError) and function:
        return f"{function} is still blank"
    known = next((text for kind, text in MESSAGES.items() if isinstance(error, kind)), None)
    return f"{place}{known or f'{type(error).__name__}: {error}'}"


def place_of(error: BaseException, path: Path) -> tuple[str, str]:
    """The innermost function of the file that an error came from, and its line such as "line 30 (x (2, 3)): ".

    The shapes are those of the arrays in the line, if they may be the matter. "" twice for an error from elsewhere.
    """
    function, number, values = "", 0, {}
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == str(path):
            function, number, values = frame.f_code.co_name, line, frame.f_locals
    if not function:
        return "", ""
    note = ""
    if isinstance(error, ValueError | IndexError):
        names = dict.fromkeys(re.findall(r"[^\W\d]\w*", linecache.getline(str(path), number)))
        arrays = {name: values[name] for name in names if isinstance(values.get(name), np.ndarray)}
        note = f" ({', '.join(f'{name} {array.shape}' for name, array in arrays.items())})" if arrays else ""
    return function, f"line {number}{note}: "


def judge(path: Path, folder: Path) -> dict:
    """Run the file on every trial. returns: the reply, whose arrays are in reply.npz"""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    with np.load(folder / "request.npz", allow_pickle=False) as file:
        arrays = dict(file)
    bounded = set_limits(request["memory"], request["seconds"])
    reply = {"problem": "", "memory_bounded": bounded, "trials": 0, "problems": {}, "changed": []}
    kept = {}
    try:
        module = load(path, request["withheld"], request["lent"])
        for trial in range(request["trials"]):
            outputs, changed = run_trial(module, request, arrays, trial)
            for name, value in outputs.items():
                try:
                    kept[f"{trial}/{name}"] = as_array(value)
                except Problem as problem:
                    reply["problems"][f"{trial}/{name}"] = str(problem)
            reply["trials"] += 1
            reply["changed"] += changed
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
    path, folder = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    from contract.process import end_with_parent

    end_with_parent(int(sys.argv[4]))
    # Taken aside before the file can put something else in their places.
    leave, dumps, place = os._exit, json.dumps, folder / "reply.json"
    place.write_text(dumps(judge(path, folder)), encoding="utf-8")
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    leave(0)
