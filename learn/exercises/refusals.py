"""What a student's file may not do: call the answer, let a library differentiate, or start another process."""

import importlib
import os
import pkgutil
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
OTHER_PROCESSES = {
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.startfile"),
    *("subprocess.Popen", "os.kill", "os.killpg"),
}
BARRED = ("operations", "learn", "tests", "parity", "harness", "commands")  # they hold the answers
AUTOGRAD = (
    "torch", "torch_llm", "jax", "jaxlib", "autograd", "tensorflow", "keras", "mxnet", "tinygrad", "theano",
    "pytensor", "mlx", "paddle",
)  # fmt: skip
# Pairs of numpy_llm that differentiate several operations at once.
COMPOSED = (
    "attend_backward", "attend_in_blocks_backward", "attention_backward", "block_backward", "two_layers_backward",
    "gated_backward", "linear_cross_entropy_backward", "norm_backward", "projection_backward",
)  # fmt: skip


class Problem(Exception):
    """Why the file cannot be judged, in a line."""


def refuse(path: Path, withheld: list[str], lent: list[str]):
    """Put all refusals in place, in this process.

    path: of the student's file; withheld: names in numpy_llm that are the answer, whoever calls them
    lent: those of `COMPOSED` that the file may call, such as attention's in a whole block
    """
    import numpy_llm

    for module in pkgutil.iter_modules(numpy_llm.__path__):
        importlib.import_module(f"numpy_llm.{module.name}")
    _replace({name: _refusal(name, "which is the answer; write it in the file") for name in withheld})
    several = "which differentiates several steps at once (fused); write them in the file"
    composed = [name for name in COMPOSED if name not in (*withheld, *lent)]
    _replace({name: _refusal(name, several, caller=str(path)) for name in composed})
    loaded = [name for name in sys.modules if name.partition(".")[0] in BARRED]
    sys.modules.update(dict.fromkeys([*BARRED, *loaded]))  # their import fails
    sys.meta_path.insert(0, _NoAutograd())
    sys.addaudithook(partial(_forbid, str(path)))


def _refusal(name: str, reason: str, caller: str = ""):
    """Function -> one that refuses to be called, or to be called by the file `caller` alone."""

    def instead(function):
        def refused(*arguments, **named):
            if not caller or sys._getframe(1).f_code.co_filename == caller:
                raise Problem(f"calls the project's own {name}, {reason}")
            return function(*arguments, **named)

        return refused

    return instead


def _replace(instead: dict):
    """Put something in place of each named function wherever a module of numpy_llm or a table in it holds it."""

    def new(value):
        make = instead.get(getattr(value, "__name__", None))
        return make(value) if make else value

    for module in [module for name, module in sys.modules.items() if name.startswith("numpy_llm")]:
        for name, value in list(vars(module).items()):
            if name.isupper() and isinstance(value, dict):
                for key, pair in value.items():
                    value[key] = tuple(map(new, pair)) if isinstance(pair, tuple) else pair
            elif new(value) is not value:
                setattr(module, name, new(value))


class _NoAutograd:
    """Finds no module of a library that differentiates, however it is imported."""

    def find_spec(self, name, path=None, target=None):
        library = name.partition(".")[0]
        if library in AUTOGRAD:
            raise Problem(
                f"imports {library}, which differentiates by itself (autograd); the exercise is to write the "
                "gradient by hand, in NumPy"
            )


_OWN = tuple(str(ROOT / folder) + os.sep for folder in ("numpy_llm", *BARRED))


def _forbid(student: str, event: str, arguments):
    """Refuse other processes, which could outlive the grading or end it, and a second copy of the project's code."""
    if event in OTHER_PROCESSES:
        raise Problem(f"calls {event}; an exercise has no use for another process")
    file = getattr(arguments[0], "co_filename", "") if event == "exec" else ""
    if file.startswith(_OWN) and file != student:
        raise Problem(
            "loads the project's own code anew (importlib.reload?), which holds the answer; write it in the file"
        )
