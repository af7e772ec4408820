"""What the tests of the exercises share."""

import pytest
from exercise_answers import filled_in

from learn.exercises.catalogue import EXERCISES


@pytest.fixture
def write(tmp_path):
    """A function that writes a student's file with an answer, for ReLU unless told, and gives its path."""

    def put(answer, name="relu.py", exercise=EXERCISES["relu"], seed=0):
        path = tmp_path / name
        path.write_text(filled_in(exercise, seed, answer), encoding="utf-8")
        return path

    return put
