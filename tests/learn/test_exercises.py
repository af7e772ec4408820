"""The exercises: reference values that hold, right answers with full marks, known mistakes with their hints."""

import json
import re
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from exercise_answers import ANSWERS, filled_in
from exercise_slips import SLIPS as FIRST_SLIPS
from family_slips import SLIPS as FAMILY_SLIPS

from contract.numbers import magnitude, relative_error
from learn.exercises import composites, family, runner, steps
from learn.exercises.catalogue import COURSE, EXERCISES
from learn.exercises.diagnosis import Found, diagnose
from learn.exercises.exercise import Instance, finite_differences
from learn.exercises.grade import judge
from learn.exercises.letters import expressions
from learn.exercises.process import DEFAULT_LIMITS, Reply, write_request
from learn.exercises.start import starter

SEEDS = range(3)
SLIPS = FIRST_SLIPS + FAMILY_SLIPS


def own_mistakes(exercise):
    """The names of an exercise's mistakes that no operation has."""
    of_steps = {name for name, *_ in steps.WRONG.get(exercise.name, ())}
    return {*composites.MISTAKES, *family.MISTAKES, *of_steps}


@cache
def instance_of(name, seed):
    """An instance with its wrong outputs and differences, which take the time: many files are marked against it."""
    return Instance(EXERCISES[name], EXERCISES[name].trials(seed), seed)


each_exercise = pytest.mark.parametrize("exercise", COURSE, ids=EXERCISES)


@pytest.fixture
def mark(tmp_path):
    """A function that marks a file's text in this process: what the runner does and then the judgement."""

    def run(exercise, seed, text):
        module = ModuleType("student")
        exec(compile(text, "student.py", "exec"), module.__dict__)
        instance = instance_of(exercise.name, seed)
        write_request(tmp_path, exercise, instance.trials, DEFAULT_LIMITS, trusted=True)
        request = json.loads((tmp_path / "request.json").read_text())
        with np.load(tmp_path / "request.npz") as file:
            sent = dict(file)
        changed, arrays = [], {}
        for place in range(len(instance.trials)):
            outputs, changed_now = runner.run_trial(module, request, sent, place)
            arrays |= {f"{place}/{name}": runner.as_array(value) for name, value in outputs.items()}
            changed += changed_now
        reply = Reply("", True, {}, changed, arrays)
        return {each.name: each for each in judge(instance, reply)}

    return run


# The catalogue


def test_the_course():
    """At least twelve steps; each has a title, hints, and a slip for all but the simplest relations."""
    assert len(COURSE) >= 12
    assert len(EXERCISES) == len(COURSE)
    for exercise in COURSE:
        assert exercise.title
        assert len(exercise.hints) >= 2, exercise.name
    assert {slip.exercise for slip in SLIPS} == set(EXERCISES) == set(ANSWERS)


@each_exercise
def test_the_reference_agrees_with_finite_differences(exercise):
    """The project's gradients are those of its forward pass, on every trial of several seeds."""
    for seed in SEEDS:
        instance = instance_of(exercise.name, seed)
        for place, (trial, wanted) in enumerate(zip(instance.trials, instance.solutions, strict=True)):
            found = finite_differences(exercise, trial, seed) if place else instance.differences
            for name, differences in found.items():
                at_places = wanted[name].flat[differences.places]
                error = relative_error(differences.values, at_places, magnitude(wanted[name]))
                assert error <= 1e-7, (name, seed)  # observed at most: 2e-9


@each_exercise
def test_every_gradient_has_finite_differences(exercise):
    """No gradient is judged by the reference alone; only a step without a backward pass is."""
    trial = exercise.trials(0)[0]
    gradients = {name for name in exercise.solve(trial) if name.startswith("d")}
    assert set(finite_differences(exercise, trial, 0)) == gradients
    assert gradients or exercise.backward is None


@each_exercise
def test_terms_add_up(exercise):
    """The terms by which missing ones are told sum to the gradient."""
    for trial in exercise.trials(4):
        wanted = exercise.solve(trial)
        for name, terms in exercise.terms(trial).items():
            assert relative_error(sum(terms.values()), wanted[name]) < 1e-12, name


@each_exercise
def test_mistakes_are_mistakes(exercise):
    """Every known mistake changes an output by far more than the limit, and no two but forms of one are the same."""

    def both(trials):
        return {(place, name): each for place, found in enumerate(trials) for name, each in found.items()}

    instance = Instance(exercise, exercise.trials(5))
    wanted, seen = both(instance.solutions), []
    own = {mistake.name for mistake in exercise.mistakes} & own_mistakes(exercise)
    assert len(instance.wrong) >= len(own) + len(exercise.operations)
    for mistake in instance.wrong:
        wrong = both(mistake.trials)
        changes = [
            relative_error(each, wanted[place])
            for place, each in wrong.items()
            if each.shape == wanted[place].shape
        ]
        assert max(changes, default=1) > 1e-8, mistake.name  # PyTorch's 1e-6 beside a norm is the least
        for name, other in seen:
            assert name == mistake.name or any(
                place not in other
                or each.shape != other[place].shape
                or relative_error(each, other[place]) > 1e-7
                for place, each in wrong.items()
            ), (mistake.name, name)
        seen.append((mistake.name, wrong))


@each_exercise
def test_a_number_has_one_name(exercise):
    """No two expressions of a factor have the same values in both trials, so that none is told for another."""
    for seed in SEEDS:
        found = expressions(exercise.trials(seed))
        values = np.log([np.broadcast_to(each, 2) for each in found.values()])
        distances = np.abs(values[:, None] - values).max(axis=-1) + np.eye(len(values))
        first, second = np.unravel_index(distances.argmin(), distances.shape)
        assert distances.min() > 1e-6, ([*found][first], [*found][second])


@each_exercise
def test_known_mistakes_are_diagnosed(exercise):
    """Every form of every known mistake gets its hint, or is told as a term that is missing or a transposed output.

    It is graded as if a student had handed in the project's own functions with the mistake made in them.
    """
    instance = instance_of(exercise.name, 0)
    for mistake in instance.wrong:
        pairs = enumerate(zip(instance.solutions, mistake.trials, strict=True))
        arrays = {
            f"{place}/{name}": np.asarray(value, np.float64)
            for place, (right, wrong) in pairs
            for name, value in (right | wrong).items()
        }
        hints = [mark.hint for mark in judge(instance, Reply("", True, {}, [], arrays))]
        assert any(
            text in hint
            for hint in hints
            for text in (mistake.hint, "is missing", "has the wrong sign", "transposed, otherwise right")
        ), (mistake.name, hints)


FAMILY = (
    "rms-norm", "rotary", "swiglu", "grouped-queries", "qk-norm", "soft-cap", "attention-in-blocks", "dropout",
    "gradient-clipping", "accumulation", "key-value-cache", "modern-block",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILY)
def test_the_familys_exercises_know_three_mistakes_each(name):
    """At least, and each has been made in a student's file, too."""
    assert len({mistake.name for mistake in instance_of(name, 0).wrong}) >= 3
    assert len([slip for slip in SLIPS if slip.exercise == name]) >= 3


def test_seeds_draw_instances_of_their_own():
    """The same seed gives the same instance, another seed other numbers, and each trial other sizes."""
    for exercise in COURSE:
        first, again, other = (exercise.trials(seed) for seed in (7, 7, 8))
        for ours, same, theirs in zip(first, again, other, strict=True):
            for name, value in ours.inputs.items():
                if isinstance(value, np.ndarray):
                    np.testing.assert_array_equal(value, same.inputs[name])
                    assert not np.array_equal(value, theirs.inputs[name])
        assert all(first[0].sizes[letter] != first[1].sizes[letter] for letter in first[0].sizes)


# The file that a student gets


@each_exercise
def test_the_starter(exercise):
    """It names exercise and seed, shows every argument's shape, and its given forward pass is the project's."""
    text = starter(exercise, 12)
    assert "@SHAPES@" not in text
    assert re.search(f'^EXERCISE = "{exercise.name}"$', text, re.MULTILINE)
    assert re.search("^SEED = 12$", text, re.MULTILINE)
    trial = exercise.trials(12)[0]
    module = ModuleType("student")
    exec(compile(text, "starter.py", "exec"), module.__dict__)
    for name, value in trial.inputs.items():
        shapes = value.values() if isinstance(value, dict) else [value]
        assert all(str(each.shape) in module.__doc__ for each in shapes if isinstance(each, np.ndarray)), name
    if exercise.backward is not None and not exercise.writes_forward:
        y, _ = getattr(module, f"{exercise.function}_forward")(**trial.inputs)
        assert relative_error(np.asarray(y), exercise.solve(trial)["y"]) < 1e-12


# Answers


@each_exercise
def test_an_answer_written_in_the_blank_gets_full_marks(exercise, mark):
    """The starter alone, with nothing but its blank filled in, is marked right on every seed."""
    for seed in SEEDS:
        marks = mark(exercise, seed, filled_in(exercise, seed))
        assert [each.name for each in marks.values() if not each.right] == []
        given = set() if exercise.writes_forward else {"y"}
        assert set(marks) == set(exercise.solve(exercise.trials(seed)[0])) - given
        assert all(each.error < 1e-12 for each in marks.values())


@pytest.mark.parametrize("slip", SLIPS, ids=[f"{slip.exercise}: {slip.new.strip()[:30]}" for slip in SLIPS])
def test_a_mistake_gets_its_hint(slip, mark):
    """Each mistake takes its output's mark and gets the hint that fits it, on two seeds."""
    for seed in (0, 1):
        check_slip(slip, seed, mark)


def check_slip(slip, seed, mark):
    """The slip's output is marked wrong and gets the slip's hint; the other outputs get no other cause."""
    exercise, answer = EXERCISES[slip.exercise], ANSWERS[slip.exercise].strip() + "\n"
    assert slip.old in answer
    marks = mark(exercise, seed, filled_in(exercise, seed, answer.replace(slip.old, slip.new)))
    assert not marks[slip.output].right
    assert slip.hint in marks[slip.output].hint, (seed, marks[slip.output].hint)
    causes = {each.cause for each in marks.values() if each.cause}
    # Where two outputs stand for each other, each is told of the other; and not every error has a cause.
    causes = {each for each in causes if not each.endswith(("in what you return", "explains"))}
    # Nor does every output show the whole of a cause: query's path alone, where key's is 0.
    assert len({each for each in causes if not any(each in other for other in causes - {each})}) <= 1, causes


def test_the_places_of_an_error_are_told_in_few_words():
    """A run of wrong places by its ends, many scattered ones by those that are right, or not at all."""
    for wrong, told in (
        ([1, 4], "only places 1, 4 along the first axis are wrong: "),
        (range(5, 12), "only places 5 to 11 along the first axis are wrong: "),
        ([*range(6), *range(7, 11), 13], "all but places 6, 11, 12, 14, 15 along the first axis are wrong: "),
        ([*range(0, 16, 2)], "8 of 16 numbers are wrong: "),
    ):
        assert place_told(16, [*wrong]).startswith(f"right shape; {told}the largest error"), told


def test_a_number_that_is_0_but_for_rounding_reads_0():
    """Rounding errors of the reference are not told as the right answer."""
    assert "yours 1000, right 0 (" in place_told(16, [3], right=-3.6e-16)


def place_told(size, wrong, right=None):
    """The hint for a bias that is wrong without reason at some places, where its right values are `right`."""
    exercise = EXERCISES["linear"]
    instance = Instance(exercise, exercise.trials(0))
    found = {}
    for number, solution in enumerate(instance.solutions):
        values = np.sin(np.arange(1.0, size + 1) + number)
        if right is not None:
            values[wrong] = right
        solution["dbias"], array = values, values.copy()
        array[wrong] = 1000 + np.arange(len(wrong)) ** 2
        found[f"{number}/dbias"] = array
    return diagnose(instance, "dbias", Found(found, [])).text


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param((100, 2**63 - 1), marks=pytest.mark.slow, id="2"),
        pytest.param(range(101, 109), marks=pytest.mark.endurance, id="8"),
    ],
)
@each_exercise
def test_every_student_is_judged_alike(exercise, mark, seeds):
    """Neither full marks nor hints depend on the instance: the same on other seeds, the largest among them."""
    for seed in seeds:
        assert all(each.right for each in mark(exercise, seed, filled_in(exercise, seed)).values()), seed
        for slip in SLIPS:
            if slip.exercise == exercise.name:
                check_slip(slip, seed, mark)


def test_every_known_mistake_is_made_in_some_answer():
    """No hint of an exercise's own is without a student's file that gets it."""
    for exercise in COURSE:
        expected = [slip.hint for slip in SLIPS if slip.exercise == exercise.name]
        for mistake in exercise.mistakes:
            if mistake.name in own_mistakes(exercise):
                assert any(hint in mistake.hint for hint in expected), mistake.hint
