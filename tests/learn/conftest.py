"""What the tests of the exercises share."""

import sys

import pytest
from exercise_answers import filled_in

import cli
from learn.exercises.catalogue import EXERCISES


@pytest.fixture
def write(tmp_path):
    """A function that writes a student's file with an answer, for ReLU unless told, and gives its path."""

    def put(answer, name="relu.py", exercise=EXERCISES["relu"], seed=0):
        path = tmp_path / name
        path.write_text(filled_in(exercise, seed, answer), encoding="utf-8")
        return path

    return put


@pytest.fixture
def run_cli(capsys, monkeypatch, tmp_path):
    """A function that runs the command line in an empty folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cli.py", "exercise", *map(str, arguments)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run
