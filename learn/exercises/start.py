"""Writes the file in which a student solves an exercise."""

import inspect
import re
from pathlib import Path

import numpy as np

from contract.files import write_file
from learn.exercises.exercise import Exercise, Trial

STARTERS = Path(__file__).parent / "starters"


def default_path(exercise: Exercise) -> Path:
    """Where the file goes unless told otherwise."""
    return Path(f"{exercise.function}.py")


def starter(exercise: Exercise, seed: int) -> str:
    """The text of the file: equation and shapes, forward given, backward blank, and the seed of the instance."""
    path = STARTERS / f"{exercise.function}.py"
    text = path.read_text(encoding="utf-8") if path.exists() else _of_operation(exercise)
    shapes = "\n".join(f"    {line}" for line in shape_lines(exercise, seed))
    text = text.replace("@SHAPES@", f"Shapes of your instance; grade tries others too:\n\n{shapes}", 1)
    return re.sub(r"^SEED = 0$", f"SEED = {seed}", text, count=1, flags=re.MULTILINE)


def _of_operation(exercise: Exercise) -> str:
    """A starter whose forward pass is the project's own, with the operation's documentation."""
    (operation,) = exercise.operations
    forward, stem = operation.forward, operation.name
    outputs = ", ".join(f"d{role}" for role in operation.gradients)
    return f'''"""Exercise {exercise.name}: {exercise.title}.

{inspect.getdoc(forward)}

@SHAPES@

Write `{stem}_backward`. The forward pass is given: read it in {forward.__module__.replace(".", "/")}.py.
"""

import numpy as np

from {forward.__module__} import {stem}_forward

EXERCISE = "{exercise.name}"
SEED = 0


def {stem}_backward(dy, cache):
    """dy: the gradient of the loss with respect to y; cache: of {stem}_forward. returns: {outputs}"""
    raise NotImplementedError("write this function")
'''


def shape_lines(exercise: Exercise, seed: int) -> list[str]:
    """A line for each argument and for y, with the shape that it has in the first trial."""
    trials = exercise.trials(seed)
    found, others = (_values(exercise, trial) for trial in trials)
    width = max(map(len, found))
    return [f"{name:<{width}}  {_shape(found[name], others[name], trials)}" for name in found]


def _values(exercise: Exercise, trial: Trial) -> dict:
    found = {}
    for name, value in trial.inputs.items():
        if isinstance(value, dict):
            found |= {f'{name}["{inner}"]': part for inner, part in value.items()}
        else:
            found[name] = value
    if exercise.backward is not None:
        y = exercise.solve(trial)["y"]
        found |= {"y and dy": y} if y.ndim else {"loss and dloss": 0.0}
    return found


def _shape(value, other, trials: list[Trial]) -> str:
    if isinstance(value, int):
        return f"{value}, a whole number"
    if not isinstance(value, np.ndarray):
        return f"{value}, a number" if value else "a number"
    # The same axis in both trials tells its letter: no two letters have the same pair of sizes.
    first, second = (trial.sizes for trial in trials)
    letters = {(3 * first["C"], 3 * second["C"]): "3·C"}
    letters |= {(first[letter], second[letter]): letter for letter in first}
    names = [letters.get(pair, str(pair[0])) for pair in zip(value.shape, other.shape, strict=True)]
    kind = "int" if value.dtype.kind == "i" else "float"
    return f"{kind} {value.shape}  ({', '.join(names)}{',' if len(names) == 1 else ''})"


def write_starter(exercise: Exercise, seed: int, path: Path):
    """Write the file. Raises UserError where something stands at `path` already, or it cannot be written."""
    text = starter(exercise, seed)
    with write_file(path, taken="nothing is overwritten; name another file with --out") as file:
        file.write(text.encode())
