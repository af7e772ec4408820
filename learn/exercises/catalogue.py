"""The course: every exercise in the order of its difficulty."""

from difflib import get_close_matches

from contract.errors import ConfigError
from learn.exercises.elementary import EMBEDDING, LINEAR, POSITION, RELU, RESIDUAL, SOFTMAX
from learn.exercises.exercise import Exercise
from learn.exercises.heads import ATTENTION, MERGE_HEADS, SCORES, SPLIT_HEADS
from learn.exercises.losses import DERIVED
from learn.exercises.whole import ADAM, BLOCK, TIED_OUTPUT

COURSE = (
    RELU,
    LINEAR,
    EMBEDDING,
    POSITION,
    RESIDUAL,
    SOFTMAX,
    *DERIVED,
    SPLIT_HEADS,
    MERGE_HEADS,
    SCORES,
    TIED_OUTPUT,
    ADAM,
    ATTENTION,
    BLOCK,
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
