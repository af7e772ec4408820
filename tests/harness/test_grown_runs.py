"""Runs whose vocabulary grows with the text that they go on with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ConfigError
from contract.weights import initial_weights
from data.tokenizers import encode, token_bytes
from harness.exchange.export import export
from harness.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from harness.training.fine_tuning import draw_rows
from harness.training.runs import open_model, resume_run, start_run
from tests.harness.small_runs import BACKENDS, THREADS

NEW = "Größe und 日本 sind 7 Dinge, die Größe hat.\n" * 40


@pytest.fixture
def base(start):
    """A trained run whose tokenizer has the bytes of its text."""
    trainer = start("base", steps=10)
    trainer.train()
    return trainer.run.path


@pytest.fixture
def new(tmp_path):
    path = tmp_path / "new.txt"
    path.write_text(NEW, newline="")
    return path


def go_on(base, text, out, backend="numpy", grow_vocabulary=0, **training):
    """A run from `base` on another text."""
    training = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "eval_interval": 3} | training
    names = ("overrides", "held_out")
    more = {name: training.pop(name) for name in names if name in training}
    return start_run(
        base.with_name(out),
        start=base,
        text=text,
        grow_vocabulary=grow_vocabulary,
        training=training,
        backend=backend,
        threads=THREADS[backend],
        **more,
    )


@pytest.mark.parametrize("grow_vocabulary", [0, 20])
def test_old_rows_keep_their_bits(base, new, grow_vocabulary):
    """All that the model had stays, new rows are drawn by the seed, and both backends start from the same."""
    old = load_checkpoint(base / "best")
    starts = {
        name: go_on(base, new, name, grow_vocabulary=grow_vocabulary, seed=seed)
        for name, seed in (("one", 0), ("other", 1))
    }
    one, other = (trainer.backend.weights() for trainer in starts.values())
    tokenizer = starts["one"].tokenizer
    count = old.tokenizer.n_vocab
    assert token_bytes(tokenizer)[:count] == token_bytes(old.tokenizer)
    assert tokenizer.n_vocab > count + grow_vocabulary
    assert starts["one"].backend.config == replace(old.config, vocab_size=tokenizer.n_vocab)
    for name, weight in old.weights.items():
        np.testing.assert_array_equal(one[name][: len(weight)], weight, err_msg=name)
        assert len(one[name]) == (tokenizer.n_vocab if name == "token_embedding.weight" else len(weight))
    rows, others = (weights["token_embedding.weight"][count:] for weights in (one, other))
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert not np.array_equal(rows, others)


def test_both_backends_start_from_the_same_bits(base, new):
    """The rows are drawn before a backend has them."""
    pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    ours, theirs = (
        go_on(base, new, backend, backend, grow_vocabulary=9).backend.weights()
        for backend in ("numpy", "torch")
    )
    for name, weight in ours.items():
        np.testing.assert_array_equal(np.asarray(theirs[name]), weight, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_grown_run_resumes_and_writes(base, new, backend):
    """An interrupted run ends with the weights of an uninterrupted one; what it has learnt to write comes out."""
    whole = go_on(base, new, "whole", backend, grow_vocabulary=9)
    whole.train()
    parts = go_on(base, new, "parts", backend, grow_vocabulary=9)
    parts.interrupted = lambda: parts.step == 4
    parts.train()
    resumed = resume_run(parts.run.path)
    assert resumed.record["new_tokens"] == whole.record["new_tokens"] == whole.tokenizer.n_vocab - 37
    resumed.train()
    ours, theirs = (load_checkpoint(each.run.latest) for each in (parts, whole))
    for name, weight in theirs.weights.items():
        np.testing.assert_array_equal(ours.weights[name], weight, err_msg=name)
    assert ours.training["new_tokens"] == theirs.training["new_tokens"]
    _, checkpoint = open_model(whole.run.path)
    ids = encode(checkpoint.tokenizer, NEW)
    assert max(ids) >= 37
    assert checkpoint.tokenizer.decode(ids.tolist()) == NEW


def test_nothing_to_grow(base, text):
    """A text that lacks nothing starts from the same bits with and without the option."""
    grown = go_on(base, text, "grown")
    assert grown.record["new_tokens"] == 0
    plain = go_on(base, text, "plain", grow_vocabulary=None)
    assert "new_tokens" not in plain.record
    for trainer in (grown, plain):
        trainer.train()
    ours, theirs = (load_checkpoint(trainer.run.latest).weights for trainer in (grown, plain))
    np.testing.assert_array_equal(ours.flat, theirs.flat)


def test_a_shorter_context_grows_too(base, new):
    """Rows of positions go, rows of tokens come."""
    trainer = go_on(base, new, "short", overrides={"context_length": 4})
    assert trainer.backend.config.context_length == 4
    assert trainer.backend.config.vocab_size == trainer.tokenizer.n_vocab > 37
    trainer.train()


def checkpoint_with(base, folder, **changes):
    """A checkpoint of the run's tokenizer, whose model is another."""
    old = load_checkpoint(base / "best")
    config = replace(old.config, **changes)
    made = Checkpoint(config, initial_weights(config, 3, "float32"), old.tokenizer)
    save_checkpoint(folder, made)
    return made


def test_untied_and_padded(base, new, tmp_path):
    """An output matrix gets rows too; ids that stood for no text are taken first and drawn anew, the others stay."""
    new.write_text("Größe\n" * 300, newline="")
    old = checkpoint_with(base, tmp_path / "odd", tie_embeddings=False, vocab_size=48)
    trainer = go_on(tmp_path / "odd", new, "untied")
    assert trainer.tokenizer.n_vocab == 37 + 4  # G, and three bytes of ö and ß
    assert trainer.backend.config.vocab_size == 48
    for name in ("token_embedding.weight", "output.weight"):
        before, after = old.weights[name], trainer.backend.weights()[name]
        same = (before == after).all(axis=1)
        assert [place for place in range(48) if not same[place]] == [*range(37, 41)], name


def test_drawn_rows_have_the_covariance_of_the_others():
    """Mean and covariance, correlated channels included; a rank that is not full stays so."""
    random = np.random.default_rng(0)
    old, new = 300, 6000
    mixing = random.normal(size=(2, 3)) * [1, 2, 0.5]  # three channels of rank two
    table = np.zeros((old + new, 3))
    table[:old] = random.normal(size=(old, 2)) @ mixing + [1, -2, 3]
    kept = table[:old].copy()
    draw_rows(table, old, old + new, seed=4)
    np.testing.assert_array_equal(table[:old], kept)
    drawn, size = table[old:], np.sqrt(np.diag(np.cov(kept.T)))
    np.testing.assert_allclose(drawn.mean(axis=0), kept.mean(axis=0), atol=4 * size.max() / np.sqrt(new))
    error = np.cov(drawn.T) - np.cov(kept.T, bias=True)
    assert np.abs(error / np.outer(size, size)).max() < 5 * np.sqrt(2 / new)
    assert np.linalg.matrix_rank(drawn - kept.mean(axis=0)) == 2


def test_drawn_rows_do_not_depend_on_how_many_there_are():
    """A token's row is of its id and the seed; input and output are drawn together."""
    table = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
    few, many, twice = table.copy(), table.copy(), np.concatenate([table, 2 * table], axis=1)
    draw_rows(few, 4800, 4810, seed=0)
    draw_rows(many, 4800, 5000, seed=0)
    draw_rows(twice, 4800, 4810, seed=0)
    np.testing.assert_allclose(few[4800:4810], many[4800:4810], rtol=1e-6)
    np.testing.assert_allclose(twice[4800:4810, 4:], 2 * twice[4800:4810, :4], rtol=1e-5)


def test_what_cannot_grow(base, new, run_cli, tmp_path):
    """Without trained weights there is nothing to grow, and a token file has its tokens already."""
    with pytest.raises(
        ConfigError, match="--grow-vocabulary is of a trained model; name its run with --from"
    ):
        start_run(tmp_path / "a", text=new, grow_vocabulary=0)
    shutil.copy(base / "tokens.bin", tmp_path / "a.bin")
    shutil.copy(base / "tokens.json", tmp_path / "a.json")
    with pytest.raises(ConfigError, match="is a token file, whose text has its tokens already"):
        go_on(base, tmp_path / "a.bin", "b")
    code, _, err = run_cli("train", "--resume", "--out", base, "--grow-vocabulary", 0)
    assert code == 2
    assert "--grow-vocabulary does not go with --resume" in err
    code, _, err = run_cli("train", "--from", base, "--text", new, "--out", tmp_path / "c")
    assert code == 1
    assert "or give them tokens with --grow-vocabulary 0\n" in err


@pytest.mark.parametrize("grow_vocabulary", [0, 9])
def test_export_of_a_grown_run(base, new, tmp_path, grow_vocabulary):
    """What `transformers` reads has the grown tokenizer's tokens, and as many rows."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    trainer = go_on(base, new, "grown", grow_vocabulary=grow_vocabulary)
    trainer.train()
    export(load_checkpoint(trainer.run.latest), "huggingface", tmp_path / "exported")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert read(NEW)["input_ids"] == encode(trainer.tokenizer, NEW).tolist()
    config = json.loads(Path(tmp_path / "exported" / "config.json").read_text())
    assert config["vocab_size"] == trainer.tokenizer.n_vocab
