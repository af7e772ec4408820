"""Starting a run: nothing of the user's is lost, the seed decides, and what cannot work is refused."""

import os
import shutil

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from contract.presets import preset
from data.prepare import DEFAULT_RANKS, DEFAULT_TEXT, default_tokenizer, open_prepared, prepare
from data.sources import Texts
from data.tokenizers import encode
from harness.training.checkpoint import load_checkpoint
from harness.training.memory import fitting_length
from harness.training.metrics import plot_metrics
from harness.training.run_corpus import evaluation_tokens
from harness.training.runs import (
    open_model,
    resume_run,
    start_run,
)
from harness.training.settings import TrainingSettings
from tests.harness.small_runs import rows


def test_another_text_is_not_taken_for_the_runs_own(start, text, tmp_path):
    """A token file prepared anew from an edited text is refused on resume, though the tokenizer is the same."""
    prepared, edited = tmp_path / "text.bin", tmp_path / "edited.txt"
    prepare(text, "bytes", prepared)
    tokenizer = open_prepared(prepared)[1]
    trainer = start(text=prepared)
    trainer.interrupted = lambda: trainer.step == 3
    trainer.train()
    edited.write_text(text.read_text()[1000:], newline="")
    prepare(edited, tokenizer, prepared, overwrite=True)
    with pytest.raises(UserError, match="holds another text than the one that"):
        resume_run(trainer.run.path)


@pytest.mark.parametrize("source", [{"text": "tokens.bin"}, {"start": ""}, {"start": "best"}], ids=str)
def test_a_run_is_not_replaced_by_what_starts_from_it(start, source):
    """Neither the tokens nor the weights that a run is to start from go with the run that it replaces."""
    trainer = start()
    trainer.train()
    folder = trainer.run.path
    arguments = {name: str(folder / part) for name, part in source.items()}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    with pytest.raises(ConfigError, match="is of the run that --overwrite replaces"):
        start_run(str(folder), training={"steps": 2, "batch_size": 2}, overwrite=True, **arguments)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"} == before


@pytest.mark.parametrize("name", ["latest", "best"])
def test_a_folder_of_the_users_in_a_checkpoints_place(start, name):
    """It is told before the first step, not when the first checkpoint finds no place."""
    trainer = start()
    trainer.train()
    place = trainer.run.path / name
    (place / "config.json").unlink()
    with pytest.raises(
        UserError, match=rf"{name} is in the place of a checkpoint, but is none; move it away"
    ):
        resume_run(trainer.run.path, training={"steps": 30})
    shutil.move(place, trainer.run.path / "away")
    assert resume_run(trainer.run.path, training={"steps": 30}).train().finished


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes (Linux or macOS)")
def test_a_pipe_in_a_runs_folder(start):
    """Nobody waits for it: the log's is told in a line, the plot's costs the plot alone."""
    trainer = start()
    trainer.train()
    trainer.run.plot.unlink(missing_ok=True)
    os.mkfifo(trainer.run.plot)
    with pytest.raises(UserError, match="no run drew it"):
        plot_metrics(trainer.run.metrics, trainer.run.plot)
    trainer.run.metrics.unlink()
    os.mkfifo(trainer.run.metrics)
    with pytest.raises((UserError, OSError), match=r"not a regular file|no run wrote it"):
        resume_run(trainer.run.path, training={"steps": 30}).train()


def test_a_folder_in_the_runs_place(start, tmp_path):
    """Where the run's folder was moved away and another stands in its place, nothing is written there."""
    trainer = start()

    def move_away():
        if trainer.step == 7:
            trainer.run.path.rename(tmp_path / "away")
            trainer.run.path.mkdir()
        return False

    trainer.interrupted = move_away
    with pytest.raises(UserError, match="was moved or removed while the run was training"):
        trainer.train()
    assert list(trainer.run.path.iterdir()) == []
    assert load_checkpoint(tmp_path / "away" / "latest").step == 5


def test_the_seed_decides(start):
    """The same seed gives the same losses; another seed gives others."""
    found = []
    for number, seed in enumerate((1, 1, 2)):
        trainer = start(f"run-{number}", seed=seed, steps=3)
        trainer.train()
        found.append(rows(trainer.run))
    assert found[0] == found[1] != found[2]


def test_the_seed_decides_all(start):
    """Initial weights, the order of windows and dropout each follow the seed."""
    first, second = start("first", seed=1), start("second", seed=2)
    assert (first.backend.seed, second.backend.seed) == (1, 2)
    assert (first.windows.batch(0, 4)[0] != second.windows.batch(0, 4)[0]).any()
    name = "token_embedding.weight"
    assert (first.backend.weights()[name] != second.backend.weights()[name]).any()


@pytest.mark.parametrize(
    ("content", "context_length", "words"),
    [
        ("abcabcab" * 2, 16, "14 tokens to train on, but one sequence takes 17"),
        ("abcabcab" * 2, 14, "14 tokens to train on, but one sequence takes 15"),
        ("abab", 2, "0 tokens to validate on"),
        ("abcabcab" * 2, 13, None),
        ("abcabca" * 2, 2, "1 tokens to validate on"),
    ],
)
def test_a_text_that_is_too_short(start, tmp_path, content, context_length, words):
    """A text shorter than a context, or without two tokens to validate on, starts nothing; just enough does."""
    short = tmp_path / "short.txt"
    short.write_text(content)
    if words is None:
        assert start(text=short, overrides={"context_length": context_length}, steps=1).train().finished
        return
    with pytest.raises(UserError, match=words):
        start(text=short, overrides={"context_length": context_length})
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_prepared_text(start, text, tmp_path):
    """A token file brings its tokenizer, and the run uses it where it lies."""
    prepare(text, "bytes", tmp_path / "sentences.bin")
    trainer = start(text=tmp_path / "sentences.bin")
    trainer.train()
    assert not trainer.run.tokens.exists()
    other = start("other")
    other.train()
    assert rows(trainer.run) == rows(other.run)
    with pytest.raises(ConfigError, match="omit --tokenizer"):
        start("third", text=tmp_path / "sentences.bin", tokenizer="bytes")

    path = trainer.run.path
    _, checkpoint = open_model(path)
    with evaluation_tokens(path, checkpoint, None) as held_out:
        np.testing.assert_array_equal(held_out, other.validation)
    del trainer, held_out  # Windows removes no file that is still open
    (tmp_path / "sentences.bin").unlink()
    with (
        pytest.raises(UserError, match=r"sentences\.bin is missing: the text of .* cannot be found"),
        evaluation_tokens(path, checkpoint, None),
    ):
        pytest.fail("the block was entered")


def test_a_run_is_replaced_only_when_asked(start, tmp_path):
    """A second run in the same folder is refused, one that cannot start replaces nothing, another one does."""
    trainer = start()
    trainer.train()
    with pytest.raises(UserError, match="already holds a run"):
        start()
    with pytest.raises(ConfigError, match="does not divide"):
        start(overwrite=True, overrides={"n_head": 3})
    assert load_checkpoint(trainer.run.latest).step == 20
    del trainer  # Windows removes no file that is still open
    again = start(overwrite=True)
    assert not again.run.latest.exists()
    assert list(tmp_path.iterdir()) == [again.run.path]
    assert again.train().finished


def test_tokens_of_another_tokenizer_are_refused(start, text, tmp_path):
    """A token file prepared anew with another tokenizer is not taken for the run's own."""
    prepare(text, "bytes", tmp_path / "sentences.bin")
    trainer = start(text=tmp_path / "sentences.bin")
    trainer.interrupted = iter([False, False, True]).__next__
    trainer.train()
    path = trainer.run.path
    del trainer  # Windows removes no file that is still open
    for name in (".bin", ".json", ".tiktoken"):
        (tmp_path / "sentences").with_suffix(name).unlink()
    prepare(text, str(DEFAULT_RANKS), tmp_path / "sentences.bin")
    with pytest.raises(UserError, match=r"sentences\.bin was made by another tokenizer than the model's"):
        resume_run(path)


def test_what_is_evaluated(start, tmp_path):
    """The run's held-out split, for a checkpoint's own folder too; of a text that is named, all of it."""
    trainer = start(dtype="float64")
    trainer.train()
    backend, checkpoint = open_model(trainer.run.latest)
    assert all(value.dtype == "float64" for value in backend.weights().values())
    for path in (trainer.run.path, trainer.run.latest):
        with evaluation_tokens(path, checkpoint, None) as tokens:
            np.testing.assert_array_equal(tokens, trainer.validation)
    (tmp_path / "other.txt").write_text("He is sad.\nThe girl is sad.\n", newline="")
    with evaluation_tokens(trainer.run.path, checkpoint, tmp_path / "other.txt") as tokens:
        wanted = encode(checkpoint.tokenizer, "He is sad.\nThe girl is sad.\n")
        np.testing.assert_array_equal(tokens, wanted)


def test_default_tokenizer(text):
    """The shipped text has its shipped ranks, any other its bytes."""
    assert default_tokenizer(Texts.of(DEFAULT_TEXT)) == str(DEFAULT_RANKS)
    assert default_tokenizer(Texts.of(text)) == "bytes"


def test_further_training_takes_what_the_text_holds(start, text, tmp_path):
    """A sequence as long as the model's context would be refused; a shorter one is taken unasked."""
    trainer = start(overrides={"context_length": 4096}, sequence_length=16, steps=1)
    trainer.train()
    short = tmp_path / "short.txt"
    short.write_text(text.read_text()[:3000], newline="")
    further = start_run(tmp_path / "further", start=trainer.run.path, text=short, training={"steps": 1})
    T = further.settings.sequence_length
    assert T < len(further.windows.tokens) <= 2 * T
    assert further.windows.sequence_length == T


@pytest.mark.parametrize(
    ("megabytes", "batch_size", "length"),
    [(1000, 4, None), (450, 4, 1024), (360, 4, 256), (360, 1, 512), (200, 4, None)],
)
def test_further_training_fits_half_of_the_memory(monkeypatch, megabytes, batch_size, length):
    """The longest sequences that it holds; None for the context, and where nothing fits, which is then refused."""
    monkeypatch.setattr("harness.training.memory.available_memory", lambda: megabytes * 1_000_000)
    config = preset("modern", vocab_size=1000, context_length=2048)
    settings = TrainingSettings(steps=1, batch_size=batch_size)
    assert fitting_length("numpy", config, settings, 1, 10_000) == length


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_further_training_with_a_shorter_context(start, text, tmp_path, position):
    """It starts from the same function of the shorter texts; a longer context than the model's is refused."""
    trainer = start(overrides={"context_length": 16, "position": position})
    trainer.train()
    source = {"start": trainer.run.path, "text": text, "training": {"steps": 1}, "threads": 1}
    further = start_run(tmp_path / "further", overrides={"context_length": 8}, **source)
    model, _ = open_model(trainer.run.path, threads=1)
    tokens = np.arange(27).reshape(3, 9) % 20
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    assert further.backend.config.context_length == 8
    assert further.backend.evaluate(inputs, targets) == model.evaluate(inputs, targets)
    with pytest.raises(ConfigError, match="--context-length 17 contradicts --from"):
        start_run(tmp_path / "longer", overrides={"context_length": 17}, **source)
