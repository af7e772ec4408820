"""The other side of `grade`: runs one student's file in a process of its own, under limits.

    python -I runner.py STUDENT_FILE FOLDER ROOT GRADER

Reads FOLDER/request.json and request.npz, writes reply.npz and, last, reply.json; no reply means that the
process did not live to write one. It ends with the process GRADER that started it, however that ends. The limits
keep accidents from hurting, an endless loop or a list that grows for ever; they are no sandbox, and the file runs
with the rights of whoever grades it.

Imports NumPy, the standard library and what stands on these alone, so that it starts quickly and by its path.
"""

import contextlib
import functools
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

MAX_ELEMENTS = 1 << 20  # of an output; a larger one is not sent
OTHER_PROCESSES = {
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.startfile"),
    *("subprocess.Popen", "os.kill", "os.killpg"),
}
BARRED = ("operations", "learn", "tests", "parity", "harness", "commands")  # they hold the answers


class Problem(Exception):
    """Why the file cannot be judged, in a line."""


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


def load(path: Path, withheld: list[str] | None) -> types.ModuleType:
    """Run the file as a module of its own, with the answers out of reach unless `withheld` is None."""
    accept_earlier_files()
    if withheld is not None:
        sys.modules.update(dict.fromkeys(BARRED))  # their import fails
        withhold(withheld)
    sys.addaudithook(forbid_subprocesses)
    module = types.ModuleType("student")
    module.__file__ = str(path)
    sys.modules["student"] = module
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def forbid_subprocesses(event: str, _):
    """Refuse to start or signal another process, which could outlive the grading or end it."""
    if event in OTHER_PROCESSES:
        raise Problem(f"calls {event}; an exercise has no use for another process")


def accept_earlier_files():
    """Run files that an earlier version started: names that numpy_llm.layers had, and caches that have no names."""
    from numpy_llm import attend, attention, feed_forward, layers, losses, norms, positions

    for module, stem, named in (
        (attend, "softmax", attend.SoftmaxCache),
        (layers, "linear", layers.LinearCache),
        (layers, "embedding", layers.EmbeddingCache),
    ):
        name = f"{stem}_backward"
        setattr(module, name, _with_any_cache(getattr(module, name), named))
    attention.attention_forward = _with_any_config(attention.attention_forward)
    attention.softmax_forward, attention.softmax_backward = attend.softmax_forward, attend.softmax_backward
    for module in (attend, attention, feed_forward, losses, norms, positions):
        for name, value in vars(module).items():
            if name.endswith(("_forward", "_backward")):
                vars(layers).setdefault(name, value)
    layers.gelu_forward, layers.gelu_backward = layers.gelu_tanh_forward, layers.gelu_tanh_backward


def _with_any_cache(backward, named):
    """A backward function that takes its cache as a plain tuple or array too."""

    @functools.wraps(backward)
    def accepting(dy, cache):
        if not isinstance(cache, named):
            cache = named(*cache) if isinstance(cache, tuple) else named(cache)
        return backward(dy, cache)

    return accepting


def _with_any_config(forward):
    """`attention_forward` that takes its configuration as a few attributes too."""
    from contract.config import ModelConfig

    @functools.wraps(forward)
    def accepting(x, weights, name, config):
        if not isinstance(config, ModelConfig):
            config = ModelConfig(
                vocab_size=1, context_length=x.shape[1], n_layer=1, n_head=config.n_head, d_model=x.shape[2], d_ff=1,
                activation="relu", position="learned",
            )  # fmt: skip
        return forward(x, weights, name, config)

    return accepting


def withhold(names: list[str]):
    """Put a refusal in place of each named function wherever a module of numpy_llm or a table in it holds it."""

    def refused(value):
        name = getattr(value, "__name__", None)
        if name not in names:
            return value

        def refuse(*arguments, **named):
            raise Problem(f"calls the project's own {name}, which is the answer; write it in the file")

        return refuse

    for module in [module for name, module in sys.modules.items() if name.startswith("numpy_llm")]:
        for name, value in list(vars(module).items()):
            if name.isupper() and isinstance(value, dict):
                for key, pair in value.items():
                    value[key] = tuple(map(refused, pair)) if isinstance(pair, tuple) else pair
            elif refused(value) is not value:
                setattr(module, name, refused(value))


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
    """Call the student's functions once. returns: output's name -> what came, and the arguments changed"""
    inputs = arguments_of(arrays, trial)
    sent = flat(inputs)
    stem, names, dy = request["function"], request["outputs"], inputs.pop("dy", None)
    if dy is None:
        found = name_outputs(call(module, stem, **inputs), names, stem)
    else:
        pair = call(module, f"{stem}_forward", **inputs)
        if not isinstance(pair, tuple) or len(pair) != 2:
            advice = "; it was given, put it back" if request["given"] else ""
            raise Problem(f"{stem}_forward returns {describe(pair)}, not y and a cache{advice}")
        outputs = call(module, f"{stem}_backward", dy, pair[1])
        found = {"y": pair[0]} | name_outputs(outputs, names[1:], f"{stem}_backward")
    changed = [name for name, value in sent.items() if not np.array_equal(value, arrays[f"{trial}/{name}"])]
    return found, changed


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
        module = load(path, request["withheld"])
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
