"""The course: every exercise, made of its entry in course.toml and of its own functions."""

import sys
import tomllib
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from contract.errors import ConfigError
from learn.exercises.composites import CODE, MISTAKES
from learn.exercises.exercise import Exercise, Mistake, made_between
from operations.catalogue import OPERATIONS
from operations.operation import Operation, made


def _pair(operation: Operation) -> dict[str, Callable]:
    """The functions of an exercise that is one pair, looked up at each call: a mistake may stand in its place."""
    module, stem = sys.modules[operation.forward.__module__], operation.name

    def forward(**inputs):
        return getattr(module, f"{stem}_forward")(**inputs)

    def backward(dy, cache):
        found = getattr(module, f"{stem}_backward")(dy, cache)
        names = [f"d{role}" for role in operation.gradients]
        return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))

    return {"forward": forward, "backward": backward, "given": operation.forward}


def _omission(operations: tuple[Operation, ...], text: str) -> Callable:
    """What makes a mistake that leaves out a term, from its name and form."""
    name, _, form = text.partition(" ")
    if name in MISTAKES:
        return partial(made_between, *MISTAKES[name])
    known = {each.name: (operation, each) for operation in operations for each in operation.mistakes}
    return partial(made, *known[name], int(form or 0))


def _exercise(name: str, entry: dict) -> Exercise:
    operations, own = tuple(OPERATIONS[each] for each in entry.get("operations", ())), CODE.get(name, {})
    pair = _pair(operations[0]) if len(operations) == 1 else {}
    given = {"given": own["forward"]} if "forward" in own else {}
    mistakes = entry.get("mistakes", {}).items()
    entry |= {
        "operations": operations,
        "mistakes": tuple(Mistake(each, hint, *MISTAKES[each]) for each, hint in mistakes),
        "omissions": {term: _omission(operations, text) for term, text in entry.get("omissions", {}).items()},
    }
    return Exercise(name, **entry | pair | given | own)


COURSE = tuple(
    _exercise(name, entry)
    for name, entry in tomllib.loads(
        Path(__file__).with_name("course.toml").read_text(encoding="utf-8")
    ).items()
)
EXERCISES = {exercise.name: exercise for exercise in COURSE}


def find_exercise(name: str) -> Exercise:
    """The exercise called `name`; raises ConfigError with the names like it, or else with all."""
    name = name.replace("_", "-")
    if name not in EXERCISES:
        near = " or ".join(get_close_matches(name, EXERCISES))
        advice = f"did you mean {near}?" if near else f"choose one of {', '.join(EXERCISES)}"
        raise ConfigError(f"unknown exercise {name!r}; {advice}")
    return EXERCISES[name]
