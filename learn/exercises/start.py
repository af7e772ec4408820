"""Writes the file in which a student solves an exercise: shapes, the forward pass with its equation, and a blank."""

import inspect
from collections.abc import Callable
from pathlib import Path
from textwrap import fill, indent
from types import ModuleType

import numpy as np

from contract.files import write_file
from learn.exercises.exercise import Exercise, Trial
from learn.exercises.runner import flat

BLANK = '    raise NotImplementedError("write this function")\n'


def default_path(exercise: Exercise) -> Path:
    """Where the file goes unless told otherwise."""
    return Path(f"{exercise.function}.py")


def starter(exercise: Exercise, seed: int) -> str:
    """The text of the file for the instance that `seed` draws."""
    given, trial = exercise.given, exercise.trials(seed)[0]
    returned = ", ".join(name for name in exercise.solve(trial) if name != "y")
    if exercise.backward is None:
        equation, imports, source, unpacked = f"{inspect.getdoc(given)}\n\n", "import numpy as np", "", ""
        blank, told = f"{exercise.function}{inspect.signature(given)}", "returns: the new "
    else:
        equation, (imports, source) = "", _head(given) if exercise.writes_forward else _source(exercise)
        dy, y = ("dy", "y") if np.ndim(trial.dy) else ("dloss", "this one")
        blank, unpacked = f"{exercise.function}_backward({dy}, cache)", _unpacked(exercise)
        told = f"{dy}: the gradient of the loss with respect to {y}\n    returns: "
        if "." in returned:
            returned = "dx, and a dict of the weights' gradients by the names that they have in `weights`"
    shapes = "\n".join(f"    {line}" for line in shape_lines(exercise, seed))
    tasks = [f"`{given.__name__}`"] * exercise.writes_forward + [f"`{blank.partition('(')[0]}`"]
    task = fill(f"Write {' and '.join(tasks)}. {exercise.note}", 110)
    return f'''"""Exercise {exercise.name}: {exercise.title}.

{equation}Shapes of your instance; grade tries others too:

{shapes}

{task}
Derived with numbers: python cli.py study; search its page for "{exercise.name}".
"""

{imports}

EXERCISE = "{exercise.name}"
SEED = {seed}


{source}def {blank}:
    """{told}{returned}"""
{unpacked}{BLANK}'''


def _head(forward: Callable) -> tuple[str, str]:
    """The imports for a forward pass that is to be written, and its first lines."""
    told = indent(f'"""{inspect.getdoc(forward)}\n"""', "    ")
    return "import numpy as np", f"def {forward.__name__}{inspect.signature(forward)}:\n{told}\n{BLANK}\n\n"


def _source(exercise: Exercise) -> tuple[str, str]:
    """The imports that the given forward pass needs, and its source with that of what its module alone defines."""
    given, sources, standard, own = exercise.given, [], [], []
    for name, value in inspect.getclosurevars(inspect.unwrap(given)).globals.items():
        if isinstance(value, ModuleType):
            own += [] if value is np else [f"from numpy_llm import {name}"]
        elif value.__module__ == given.__module__:
            if not name.endswith("_forward"):  # another exercise's, whose name is an attribute here
                sources.append(f"{inspect.getsource(value)}\n\n")
        elif value.__module__.startswith("numpy_llm"):
            backward = name.replace("_forward", "_backward")
            earlier = f"{backward}, {name}  # an earlier step" if backward != name else name
            own.append(f"from {value.__module__} import {earlier}")
        else:
            standard.append(f"from {value.__module__} import {name}")
    if any("(NamedTuple)" in source for source in sources):
        standard.append("from typing import NamedTuple")
    groups = ["\n".join(sorted(group)) for group in (standard, ["import numpy as np"], own) if group]
    remark = f"# Given. Returns y, and the cache that {exercise.function}_backward gets.\n"
    return "\n\n".join(groups), f"{''.join(sources)}{remark}{inspect.getsource(given)}\n\n"


def _unpacked(exercise: Exercise) -> str:
    """The line that names the parts of the cache."""
    names = exercise.cache_names
    return f"    {names[0]} = cache.{names[0]}\n" if len(names) == 1 else f"    {', '.join(names)} = cache\n"


def shape_lines(exercise: Exercise, seed: int) -> list[str]:
    """A line for each argument and for y, with the shape that it has in the first trial."""
    trials = exercise.trials(seed)
    found, others = (_values(exercise, trial) for trial in trials)
    width = max(map(len, found))
    return [f"{name:<{width}}  {_shape(found[name], others[name], trials)}" for name in found]


def _values(exercise: Exercise, trial: Trial) -> dict:
    found = flat(trial.inputs, '{}["{}"]')
    if exercise.backward is None:
        return found
    y = exercise.solve(trial)["y"]
    return found | ({"y and dy": y} if y.ndim else {"loss and dloss": 0.0})


def _shape(value, other, trials: list[Trial]) -> str:
    if isinstance(value, int):
        return f"{value}, a whole number"
    if not isinstance(value, np.ndarray):
        return f"{value}, a number" if value else "a number"
    # The same axis in both trials tells its letter: no two letters have the same pair of sizes.
    first, second = (trial.sizes for trial in trials)
    letters = {(3 * first["C"], 3 * second["C"]): "3·C"}
    letters |= {(4 * first["T"], 4 * second["T"]): "4·T", (first["T"] + 4, second["T"] + 4): "T+4"}
    letters |= {(2 * first[letter], 2 * second[letter]): f"2·{letter}" for letter in "DH"}
    letters |= {(first[letter], second[letter]): letter for letter in first}
    names = [letters.get(pair, str(pair[0])) for pair in zip(value.shape, other.shape, strict=True)]
    kind = "int" if value.dtype.kind == "i" else "float"
    return f"{kind} {value.shape}  ({', '.join(names)}{',' if len(names) == 1 else ''})"


def write_starter(exercise: Exercise, seed: int, path: Path):
    """Write the file. Raises UserError where something stands at `path` already, or it cannot be written."""
    text = starter(exercise, seed)
    with write_file(path, taken="nothing is overwritten; name another file with --out") as file:
        file.write(text.encode())
