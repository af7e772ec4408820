"""Runs of the command line that several test files need."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.grammar import corpus
from tests.commands.small_runs import SMALL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text of four hundred sentences, whose held-out part one evaluation covers."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in corpus()[:400]), newline="")
    return path


@pytest.fixture
def succeed(run_cli):
    """A function that runs a command which must go well: stdout and stderr."""

    def run(*arguments):
        code, out, err = run_cli(*arguments)
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def train(succeed, text, tmp_path):
    """A function that trains a small run: its folder, stdout and stderr."""

    def train(flags="--steps 5", name="run"):
        folder = tmp_path / name
        return folder, *succeed("train", "--text", text, "--out", folder, *SMALL.split(), *flags.split())

    return train


@pytest.fixture(scope="session")
def trained(text, tmp_path_factory):
    """A small run that several tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "cli.py", "train", "--text", text, "--out", folder, *SMALL.split()]
    command += ["--steps", "30", "--eval-interval", "15"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return folder, result
