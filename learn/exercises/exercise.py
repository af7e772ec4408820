"""What an exercise is, the instances of it that a seed draws, and the values that judge an answer.

An instance has two trials of different sizes. A student sees the first one's shapes; the second catches a
size written as a number, and tells apart explanations that agree by chance in the first.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from types import ModuleType
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError
from contract.numbers import relative_error, slope
from contract.randomness import generator
from learn.exercises.inputs import draw, instance_sizes
from learn.exercises.runner import flat
from operations.operation import Operation

TRIALS = 2
ROUNDING = 1e-12  # relative; what differs by no more is the same
STEP = 3e-4  # h of the differences
PLACES = 40  # a tensor's finite differences are taken at this many of its elements, drawn by the seed

Outputs = dict[str, np.ndarray]


class Trial(NamedTuple):
    """inputs: arguments of the forward pass; dy: of the backward pass, or None; sizes: dimension letter -> int"""

    inputs: dict
    dy: np.ndarray | float | None
    sizes: dict[str, int]


class Mistake(NamedTuple):
    """hint: what a teacher says to it; make: form -> context in which numpy_llm makes it, empty after the last form"""

    name: str
    hint: str
    make: Callable


@dataclass(frozen=True)
class Exercise:
    """One step of the course; what is not explained here is in course.toml.

    name: as the command line takes it
    forward: the reference: (**inputs) -> y, cache; for a step of Adam, -> outputs
    backward: the reference: (dy, cache) -> outputs by name; None where there is no pair
    given: the forward pass that a student's file holds
    writes_forward: the student writes the forward pass, too: the file holds the head of `given` alone
    omissions: a term -> what makes the mistake that leaves it out: () -> context
    decompose: (trial, right outputs) -> output -> {what a term is: its value}, in place of omissions
    mistakes: what people get wrong in putting the operations together, the likeliest first, then in each
    """

    name: str
    title: str
    hints: list[str]
    inputs: Mapping[str, object]
    forward: Callable
    backward: Callable | None
    given: Callable
    writes_forward: bool = False
    note: str = ""
    omissions: Mapping[str, Callable] = field(default_factory=dict)
    rest: str = ""
    decompose: Callable[[Trial, Outputs], Mapping[str, Outputs]] | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)
    chained: bool = False

    @property
    def function(self) -> str:
        """The stem of the names of the functions in a student's file."""
        return self.name.replace("-", "_")

    @cached_property
    def cache_names(self) -> list[str]:
        """The names of the parts of the cache of `given`; none where there is no such pass."""
        if self.backward is None:
            return []
        _, cache = self.given(**self.trials(0)[0].inputs)
        if names := getattr(cache, "_fields", None):
            return [*names]
        # A tuple whose parts are named where it is made.
        source = inspect.getsource(self.given)
        return re.search(r"return .*, \((.*)\)$", source, re.MULTILINE)[1].rstrip(",").split(", ")

    @property
    def lent(self) -> list[str]:
        """The backward functions of numpy_llm that a student's file may call: those of what `given` calls."""
        found = []
        for name, value in inspect.getclosurevars(inspect.unwrap(self.given)).globals.items():
            if isinstance(value, ModuleType) and value.__name__.startswith("numpy_llm"):
                found += [each for each in vars(value) if each.endswith("_backward")]
            elif name.endswith("_forward"):
                found.append(name.replace("_forward", "_backward"))
        return found

    def hint(self, number: int) -> str:
        """Hint `number`, from 1, and how many there are. Raises ConfigError for a number out of range."""
        count = len(self.hints)
        if not 1 <= number <= count:
            raise ConfigError(f"--hint must be from 1 to {count} for {self.name}, got {number}")
        return f"{number} of {count}: {self.hints[number - 1]}"

    def trials(self, seed: int) -> list[Trial]:
        """The two trials of the instance that `seed` draws. Raises ConfigError for a seed out of range."""
        if not 0 <= seed < 2**63:
            raise ConfigError(f"--seed must be from 0 to 2^63 - 1, got {seed}")
        return [self._trial(seed, number) for number in range(TRIALS)]

    def _trial(self, seed: int, number: int) -> Trial:
        random = generator(seed, f"exercise.{self.name}", number)
        sizes = instance_sizes(seed, number)
        inputs = {name: draw(spec, random, sizes, number) for name, spec in self.inputs.items()}
        if self.backward is None:
            return Trial(inputs, None, sizes)
        y, _ = self.forward(**inputs)
        # A loss that is its own output gets a factor that is not 1, so that dropping it shows.
        dy = random.normal(size=y.shape) if np.ndim(y) else float(random.uniform(0.3, 0.7))
        return Trial(inputs, dy, sizes)

    def solve(self, trial: Trial) -> Outputs:
        """The right outputs, the forward pass's y first."""
        if self.backward is None:
            return self.forward(**trial.inputs)
        y, cache = self.forward(**trial.inputs)
        return {"y": np.asarray(y), **self.backward(trial.dy, cache)}

    @cached_property
    def points(self) -> int:
        """How many outputs a student writes: y only where the forward pass is theirs, too."""
        return len([name for name in self.solve(self.trials(0)[0]) if name != "y" or self.writes_forward])

    def terms(self, trial: Trial) -> Mapping[str, Outputs]:
        """Output -> {what a term is: its value}: terms that add up to that output."""
        right, found = self.solve(trial), {}
        if self.decompose:
            return self.decompose(trial, right)
        for term, omit in self.omissions.items():
            with omit():
                wrong = _differing(self.solve(trial), right)
            for output, value in wrong.items():
                found.setdefault(output, {})[term] = right[output] - value
        if self.rest:
            for output, parts in found.items():
                found[output] = {self.rest: right[output] - sum(parts.values())} | parts
        return found


class WrongOutputs(NamedTuple):
    """What one form of a mistake makes of an exercise. trials: for each, the outputs that it changes"""

    name: str
    hint: str
    trials: list[Outputs]


@dataclass(frozen=True)
class Instance:
    """An exercise with the trials that a seed draws, and its outputs, right and wrong."""

    exercise: Exercise
    trials: list[Trial]
    seed: int = 0

    @cached_property
    def differences(self) -> "dict[str, Differences]":
        """The finite differences of the first trial, at places that the seed draws."""
        return finite_differences(self.exercise, self.trials[0], self.seed)

    @cached_property
    def solutions(self) -> list[Outputs]:
        """The right outputs of each trial."""
        return [self.exercise.solve(trial) for trial in self.trials]

    @cached_property
    def terms(self) -> list[Mapping[str, Outputs]]:
        """Of each trial `Exercise.terms`."""
        return [self.exercise.terms(trial) for trial in self.trials]

    @cached_property
    def wrong(self) -> list[WrongOutputs]:
        """The outputs of each form of each known mistake, the exercise's own first.

        A mistake is made in numpy_llm's functions, so the exercise must call these through their modules.
        """
        found = []
        for mistake in self.exercise.mistakes:
            for form in count():
                outputs, made_in = [], []
                for trial in self.trials:
                    with mistake.make(form) as calls:
                        outputs.append(self.exercise.solve(trial))
                    made_in += calls
                if not made_in:  # there are no more forms
                    break
                changed = [*map(_differing, outputs, self.solutions)]
                if any(changed):
                    found.append(WrongOutputs(mistake.name, mistake.hint, changed))
        return found


def _differing(found: Outputs, right: Outputs) -> Outputs:
    """The outputs that differ from the right ones."""
    return {name: each for name, each in found.items() if relative_error(each, right[name]) > ROUNDING}


class Differences(NamedTuple):
    """Central differences of one tensor. places: indices into it, flat; values: the slopes there"""

    places: np.ndarray
    values: np.ndarray


def finite_differences(exercise: Exercise, trial: Trial, seed: int) -> dict[str, Differences]:
    """The gradient of Σ dy · y by every float input, at `PLACES` of its elements: "d" + input's name -> differences"""
    if exercise.backward is None:
        return {}
    random = generator(seed, f"exercise.{exercise.name}.places")

    def loss() -> float:
        return float(np.sum(trial.dy * exercise.forward(**trial.inputs)[0]))

    found = {}
    for name, tensor in float_tensors(trial.inputs).items():
        places = np.sort(random.permutation(tensor.size)[:PLACES])
        places = places[tensor.flat[places] != 0]  # only a kink is drawn as 0, and there is no slope there
        slopes = [slope(loss, tensor, STEP, index=np.unravel_index(place, tensor.shape)) for place in places]
        found[f"d{name}"] = Differences(places, np.array(slopes))
    return found


def float_tensors(inputs: dict) -> Outputs:
    """The float arrays among the arguments, those in a dict by their name in it."""
    tensors = flat(inputs, "{1}").items()
    return {name: each for name, each in tensors if isinstance(each, np.ndarray) and each.dtype.kind == "f"}
