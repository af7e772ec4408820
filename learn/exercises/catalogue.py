"""The course: every exercise, made of its entry in course.toml and of its own functions."""

import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from contract.errors import ConfigError
from learn.exercises import composites, family, steps
from learn.exercises.exercise import Exercise, Mistake
from learn.exercises.mistakes import SEEN_HERE
from operations.adamw import made_in_step
from operations.catalogue import OPERATIONS, UNTRACED
from operations.operation import Operation, made, replaced


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


@contextmanager
def _made_between(function: Callable, wrong: Callable, form: int = 0) -> Iterator[list]:
    """Make a mistake of `MISTAKES`, in its one form. yields: a list that gets dy of each call"""
    dys = []

    def instead(dy, cache, **named):
        dys.append(dy)
        return wrong(dys, function(dy, cache, **named))

    with nullcontext() if form else replaced(function, instead):
        yield dys


CODE = composites.CODE | family.CODE | steps.CODE
MISTAKES = composites.MISTAKES | family.MISTAKES
_BETWEEN = {name: partial(_made_between, *how) for name, how in MISTAKES.items()}


def _mistakes(name: str, entry: dict, operations: list[Operation], of_step: tuple) -> dict[str, Mistake]:
    """Every mistake of an exercise by its name, its own first."""
    own = [Mistake(each, hint, _BETWEEN[each]) for each, hint in entry.get("mistakes", {}).items()]
    known = [(each, partial(made_in_step, each)) for each in of_step]
    for operation in operations:
        of_both = (*operation.mistakes, *SEEN_HERE.get(operation.name, ()))
        written = [each for each in of_both if each.backward or entry.get("writes_forward")]
        known += [(each, partial(made, operation, each)) for each in written]
    own += [
        Mistake(each, hint, partial(steps.made_in_place, name, forms))
        for each, hint, forms in steps.WRONG.get(name, ())
    ]
    others = [Mistake(each.name, each.hint or each.text, make) for each, make in known]
    return {mistake.name: mistake for mistake in (*own, *others)}


def _exercise(name: str, entry: dict) -> Exercise:
    operations = [(OPERATIONS | UNTRACED)[each] for each in entry.get("operations", ())]
    own = dict(CODE.get(name, {}))
    pair = _pair(operations[0]) if len(operations) == 1 else {}
    given = {"given": own["forward"]} if "forward" in own else {}
    mistakes = _mistakes(name, entry, operations, own.pop("step_mistakes", ()))
    makers = _BETWEEN | {each: mistake.make for each, mistake in mistakes.items()}
    omissions = {}
    for term, omission in entry.get("omissions", {}).items():
        mistake, _, form = omission.partition(" ")
        omissions[term] = partial(makers[mistake], form=int(form or 0))
    entry |= {"operations": operations, "mistakes": [*mistakes.values()], "omissions": omissions}
    return Exercise(name, **entry | pair | given | own)


_ENTRIES = tomllib.loads(Path(__file__).with_name("course.toml").read_text(encoding="utf-8"))
COURSE = tuple(_exercise(name, entry) for name, entry in _ENTRIES.items())
EXERCISES = {exercise.name: exercise for exercise in COURSE}


def find_exercise(name: str) -> Exercise:
    """The exercise called `name`; raises ConfigError with the names like it, or else with all."""
    name = name.replace("_", "-")
    if name not in EXERCISES:
        near = " or ".join(get_close_matches(name, EXERCISES))
        advice = f"did you mean {near}?" if near else f"choose one of {', '.join(EXERCISES)}"
        raise ConfigError(f"unknown exercise {name!r}; {advice}")
    return EXERCISES[name]
