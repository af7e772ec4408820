"""What several test files need: a model small enough to check every number of it, the command line, packs."""

import sys

import numpy as np
import pytest

import cli
from contract.config import ModelConfig
from data.grammar import corpus
from parity.golden.packs import load_pack, pack_names

TINY = {
    "vocab_size": 7,
    "context_length": 4,
    "n_layer": 1,
    "n_head": 2,
    "d_model": 6,
    "d_ff": 5,
    "activation": "gelu_tanh",
    "position": "learned",
}


@pytest.fixture(scope="session")
def tiny_config():
    """A function that makes a tiny configuration, with changes by field name."""
    return lambda **changes: ModelConfig(**{**TINY, **changes})


@pytest.fixture(scope="session")
def lively_weights():
    """A function that draws every weight of a model large enough for each term of a gradient to matter.

    At their initial values biases are 0 and attention is nearly even: errors there would not show.
    """

    def draw(weights, seed):
        random = np.random.default_rng(seed)
        for name, weight in weights.items():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight[...] = random.normal(mean, 0.5, weight.shape)
        return weights

    return draw


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text of a thousand sentences."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in corpus()[:1000]), newline="")
    return path


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """A function that runs the command line in this process: exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def packs():
    """The committed golden packs by name."""
    return {name: load_pack(name) for name in pack_names()}
