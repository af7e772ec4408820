"""What the tests of training and exchange share."""

import pytest

from contract.weights import initial_weights
from data.tokenizers import encoding_of, open_tokenizer
from harness.exchange.export import export
from harness.training import trainer as trainer_module
from harness.training.checkpoint import (
    Checkpoint,
)
from harness.training.runs import (
    start_run,
)
from tests.harness.small_runs import SMALL, THREADS, TRAINING


@pytest.fixture
def start(text, tmp_path, monkeypatch):
    """A function that starts a small run in a folder of its own; a test that wants a plot puts that back."""
    monkeypatch.setattr(trainer_module, "plot_metrics", lambda metrics, image: None)

    def start(name="run", overrides=None, out=None, **changes):
        names = {"text", "tokenizer", "backend", "overwrite", "threads", "compile", "preset_name"}
        options = {key: changes.pop(key) for key in names & changes.keys()}
        options = {"threads": THREADS[options.get("backend", "numpy")]} | options
        training = TRAINING | changes
        if "epochs" in training:
            del training["steps"]
        return start_run(
            out or tmp_path / name,
            overrides=SMALL | (overrides or {}),
            training=training,
            **({"text": text, "preset_name": "nano"} | options),
        )

    return start


@pytest.fixture
def make(tiny_config, tmp_path):
    """A function that makes a checkpoint whose weights are of a seed."""
    text = tmp_path / "text.txt"
    text.write_text("abcdefg")
    tokenizer, config = open_tokenizer("bytes", text), tiny_config()

    def make(seed=0, **changes):
        weights = initial_weights(config, seed, "float32")
        moments = {f"{moment}.{name}": value + 1 for moment in "mv" for name, value in weights.items()}
        fields = {
            "config": config,
            "weights": weights,
            "tokenizer": tokenizer,
            "step": seed,
            "training": {"steps": 9, "source": "text"},
            "optimizer": moments,
            "validation_loss": 1.5,
        }
        return Checkpoint(**(fields | changes))

    return make


@pytest.fixture
def published(tiny_config, tmp_path):
    """A function that exports a tiny model, with changes to its configuration, and gives the folder."""

    def publish(name="model", dtype="float32", **changes):
        config = tiny_config(**changes)
        tokenizer = encoding_of("bytes", [b"%c" % (97 + n) for n in range(config.vocab_size)])
        weights = initial_weights(config, 3, dtype)
        export(
            Checkpoint(config, weights, tokenizer, training={"dtype": dtype}), "huggingface", tmp_path / name
        )
        return tmp_path / name

    return publish
