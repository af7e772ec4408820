"""Checkpoints: what goes in comes out, and damage is named."""

import json
import os
import shutil
from contextlib import suppress

import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.files import sha256_of
from contract.schema import checksum
from contract.weights import initial_weights, weight_table
from data import tokenizers
from data.prepare import DEFAULT_RANKS
from data.tokenizers import encoding_of, identity, load_ranks, token_bytes
from harness.training.checkpoint import (
    load_checkpoint,
    save_checkpoint,
)
from tests.harness.same_checkpoints import FILES, assert_same


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(make, tmp_path, dtype):
    """Configuration, weights, moments, tokenizer and settings come back to the bit, from a moved folder too."""
    saved = make()
    weights = initial_weights(saved.config, 3, dtype)
    saved = make(
        weights=weights, optimizer={f"{m}.{name}": value / 3 for m in "mv" for name, value in weights.items()}
    )
    save_checkpoint(tmp_path / "run" / "latest", saved)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    (tmp_path / "text.txt").unlink()
    loaded = load_checkpoint(tmp_path / "elsewhere" / "latest", with_optimizer=True)
    assert_same(loaded, saved)
    assert list(loaded.optimizer) == [f"{m}.{name}" for m in "mv" for name in weight_table(saved.config)]
    for name, value in saved.optimizer.items():
        assert loaded.optimizer[name].dtype == dtype
        np.testing.assert_array_equal(loaded.optimizer[name], value)
    assert load_checkpoint(tmp_path / "elsewhere" / "latest").optimizer is None


def test_loaded_moments_stay_those_of_their_checkpoint(make, tmp_path):
    """They are read when they are asked for, even after another checkpoint has taken the place."""
    saved = make()
    save_checkpoint(tmp_path / "latest", saved)
    loaded = load_checkpoint(tmp_path / "latest", with_optimizer=True)
    save_checkpoint(
        tmp_path / "latest", make(optimizer={name: value + 1 for name, value in saved.optimizer.items()})
    )
    for name, value in saved.optimizer.items():
        np.testing.assert_array_equal(loaded.optimizer[name], value)


def test_trained_ranks_travel_with_the_checkpoint(make, tmp_path):
    """A tokenizer that is not tiktoken's own is stored, and is the same after loading."""
    ranks = load_ranks(DEFAULT_RANKS)
    save_checkpoint(tmp_path / "latest", make(tokenizer=ranks))
    assert identity(load_checkpoint(tmp_path / "latest").tokenizer) == identity(ranks)


def test_transposed_weights_keep_their_values(make, tmp_path):
    """A weight that lies in memory in another order, as a transpose does, is stored as it reads."""
    saved = make()
    turned = {name: np.asfortranarray(value) for name, value in saved.weights.items()}
    save_checkpoint(tmp_path / "latest", make(weights=turned))
    assert_same(load_checkpoint(tmp_path / "latest"), saved)


def test_gpt2_needs_no_copy_of_its_ranks(make, tmp_path, monkeypatch):
    """GPT-2's tokenizer is not stored but opened by name, and is refused where it is not the model's own."""
    tokenizer = make().tokenizer
    gpt2 = encoding_of("gpt2", token_bytes(tokenizer))  # stands in for the real one, which is not always here
    save_checkpoint(tmp_path / "latest", make(tokenizer=gpt2))
    assert not (tmp_path / "latest" / "tokenizer.tiktoken").exists()
    monkeypatch.setattr(tokenizers, "open_tokenizer", {"gpt2": gpt2}.get)
    assert load_checkpoint(tmp_path / "latest").tokenizer is gpt2
    other = encoding_of("gpt2", token_bytes(tokenizer)[::-1])
    monkeypatch.setattr(tokenizers, "open_tokenizer", {"gpt2": other}.get)
    with pytest.raises(ConfigError, match="latest is not the one that its model was trained with"):
        load_checkpoint(tmp_path / "latest")


def test_without_moments(make, tmp_path):
    """A checkpoint without moments can be used, and says that training cannot go on from it."""
    save_checkpoint(tmp_path / "best", make(optimizer=None))
    assert not (tmp_path / "best" / "optimizer.safetensors").exists()
    assert load_checkpoint(tmp_path / "best").step == 0
    with pytest.raises(UserError, match="no optimizer state"):
        load_checkpoint(tmp_path / "best", with_optimizer=True)


def assert_named(folder, name):
    """Loading fails with one line that names the file."""
    with pytest.raises(UserError) as error:
        load_checkpoint(folder, with_optimizer=True)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(make, tmp_path, name):
    """A file that is missing, cut short, longer or changed by one bit is refused by its name."""
    folder = tmp_path / "latest"
    save_checkpoint(folder, make())
    content = (folder / name).read_bytes()
    for place in np.linspace(0, len(content) - 1, 12).astype(int):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        for damaged in (bytes(flipped), content[:place]):
            (folder / name).write_bytes(damaged)
            if name != "config.json" or not _same_json(damaged, content):
                assert_named(folder, name)
    (folder / name).unlink()
    assert_named(folder, name)


def _same_json(damaged: bytes, content: bytes) -> bool:
    """Whether the damage leaves the same values: white space is free in JSON."""
    try:
        return json.loads(damaged) == json.loads(content)
    except ValueError:
        return False


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{}",
        b'{"format": "twin-gpt checkpoint"}',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"step": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: content[:12].decode("ascii", "backslashreplace") or "empty",
)
def test_a_config_that_is_none(make, tmp_path, content):
    """Whatever stands in config.json's place is refused by its name: other JSON, too deep, too long, no text."""
    save_checkpoint(tmp_path / "latest", make())
    (tmp_path / "latest" / "config.json").write_bytes(content)
    assert_named(tmp_path / "latest", "config.json")


@pytest.mark.parametrize(
    ("key", "value"), [("format", "other"), ("format_version", 2), ("format_version", "1")]
)
def test_another_format_is_refused(make, tmp_path, key, value):
    """A checkpoint of another kind or format version is refused, and told apart from damage."""
    folder = tmp_path / "latest"
    save_checkpoint(folder, make())
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {key: value}))
    with pytest.raises(UserError, match=r"config\.json is of format .* but this program reads"):
        load_checkpoint(folder)


def test_an_edited_config_is_refused(make, tmp_path):
    """A configuration changed by hand would compute another function with the same weights."""
    folder = tmp_path / "latest"
    save_checkpoint(folder, make())
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"gelu_tanh"', '"relu"'))
    with pytest.raises(UserError, match="does not match its checksum"):
        load_checkpoint(folder)


def reseal(folder, change=lambda record: None):
    """Compute the hashes and the checksum of a checkpoint that was changed by hand anew."""
    record = json.loads((folder / "config.json").read_text())
    change(record)
    with suppress(TypeError, KeyError, OSError):
        record["files"] = {name: sha256_of(folder / name) for name in record["files"]}
    record.pop("checksum")
    (folder / "config.json").write_text(json.dumps(record | {"checksum": checksum(record)}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_ff": 6}, r"blocks\.0\.feed_forward\.down\.weight "),
        ({"tie_embeddings": False}, r"output\.weight is \(7, 6\), expected none"),
        ({"bias": False}, r"blocks\.0\.attention\.output\.bias is missing, expected \(6,\)"),
    ],
)
@pytest.mark.parametrize("file", ["model", "optimizer"])
def test_tensors_that_do_not_fit_are_refused(make, tmp_path, tiny_config, file, changes, words):
    """Weights or moments of another shape, too many or too few are refused by the tensor's name, both ways."""
    folder, other = tmp_path / "latest", initial_weights(tiny_config(**changes), 0, "float32")
    moments = {f"{moment}.{name}": value for moment in "mv" for name, value in other.items()}
    save_checkpoint(folder, make())
    changed = make(weights=other) if file == "model" else make(optimizer=moments)
    with pytest.raises(ConfigError, match=r"(weights|moments) of another model: "):
        save_checkpoint(folder, changed)
    assert_same(load_checkpoint(folder), make())
    (folder / f"{file}.safetensors").unlink()
    save_file(other if file == "model" else moments, folder / f"{file}.safetensors")
    reseal(folder)
    with pytest.raises(UserError, match=rf"{file}\.safetensors does not fit .*{words}"):
        load_checkpoint(folder, with_optimizer=True)


def test_nothing_is_unpickled(make, tmp_path):
    """A pickle in a weight file's place, its hash made to fit, is refused and never run."""
    folder, planted = tmp_path / "latest", tmp_path / "planted"
    save_checkpoint(folder, make())
    program = b"cbuiltins\nopen\n(V" + str(planted).encode("raw_unicode_escape") + b"\nVw\ntR."
    (folder / "model.safetensors").write_bytes(program)
    reseal(folder)
    assert_named(folder, "model.safetensors")
    assert not planted.exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    """Nothing there is one line that says so."""
    assert_named(tmp_path / "nowhere", "nowhere")


def edits(record):
    """Every way to take a field out of a checkpoint's record, or to give it a value of another type."""
    for name in record.keys() - {"checksum"}:
        yield f"without {name}", lambda record, name=name: record.pop(name)
        for other in (None, "x", -1, 1.5, [], {}, 10**400):
            if name == "validation_loss" and other in (None, -1, 1.5):
                continue
            yield (
                f"{name} {str(other)[:9]}",
                lambda record, name=name, other=other: record.update({name: other}),
            )
    for name in record["model"]:
        for other in (None, "x", -1, [], {}, 10**400):
            if other is None and ModelConfig.__dataclass_fields__[name].default is None:
                continue
            yield (
                f"model {name}",
                lambda record, name=name, other=other: record["model"].update({name: other}),
            )


def test_any_edited_field_is_one_line(make, tmp_path):
    """Also where the author of the edit has computed the hashes anew: no field of a wrong type reaches the program."""
    folder = tmp_path / "latest"
    save_checkpoint(folder, make())
    text = (folder / "config.json").read_text()
    for title, edit in edits(json.loads(text)):
        (folder / "config.json").write_text(text)
        reseal(folder, edit)
        if title in ("training {}", "without validation_loss") or json.loads(
            (folder / "config.json").read_text()
        ) == json.loads(text):
            continue
        with pytest.raises(UserError) as error:
            load_checkpoint(folder, with_optimizer=True)
        assert "\n" not in str(error.value), title


def test_a_checkpoint_from_before_a_field_opens(make, tmp_path):
    """A model's record without the fields that came later, as earlier releases wrote it, is the same model."""
    save_checkpoint(tmp_path / "latest", make())
    reseal(
        tmp_path / "latest", lambda record: [record["model"].pop(name) for name in ("head_size", "n_kv_head")]
    )
    assert_same(load_checkpoint(tmp_path / "latest", with_optimizer=True), make())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layer": 9999}, r"n_layer 9,999, but model\.safetensors has 16 tensors"),
        ({"n_layer": 10**12}, "n_layer must be at most 10,000"),
        ({"position": "sinusoidal", "context_length": 10**12}, "are a table of more than"),
        ({"vocab_size": 10**12, "d_ff": 10**12}, "does not fit its configuration"),
        ({"vocab_size": 10**30}, r"vocab_size must be below 2\^63"),
    ],
)
def test_a_configuration_that_claims_too_much(make, tmp_path, changes, words):
    """A kilobyte that claims a million layers or a terabyte of positions costs nothing."""
    save_checkpoint(tmp_path / "latest", make())
    reseal(tmp_path / "latest", lambda record: record["model"].update(changes))
    with pytest.raises(UserError, match=words):
        load_checkpoint(tmp_path / "latest")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("file", ["model", "optimizer"])
def test_numbers_that_are_not_finite(make, tmp_path, file, value):
    """Weights and moments that compute nothing are refused where they are loaded, by name."""
    folder, saved = tmp_path / "latest", make()
    save_checkpoint(folder, saved)
    tensors = dict(saved.weights if file == "model" else saved.optimizer)
    name = list(tensors)[3]
    tensors[name].flat[1] = value
    with pytest.raises(ConfigError, match=r"must be finite, but .* is (nan|inf)"):
        save_checkpoint(folder, saved)
    (folder / f"{file}.safetensors").unlink()
    save_file(tensors, folder / f"{file}.safetensors")
    reseal(folder)
    with pytest.raises(UserError, match=f"{file}.safetensors: {name} contains nan or infinity"):
        load_checkpoint(tmp_path / "latest", with_optimizer=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes (Linux or macOS)")
@pytest.mark.parametrize("name", FILES[1:])
def test_a_pipe_in_a_files_place(make, tmp_path, name):
    """Nobody waits for ever for a pipe that stands where a file should be."""
    save_checkpoint(tmp_path / "latest", make())
    (tmp_path / "latest" / name).unlink()
    os.mkfifo(tmp_path / "latest" / name)
    assert_named(tmp_path / "latest", "not a regular file")


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "a"},
        {"step": -1},
        {"step": True},
        {"validation_loss": "x"},
        {"training": {"steps": {1, 2}}},
        {"training": {"best_loss": np.nan}},
        {"training": {"tokens": 5}},
        {"training": [1]},
        {"training": None},
        {"validation_loss": np.nan},
    ],
    ids=str,
)
def test_what_cannot_be_read_again_is_not_written(make, tmp_path, changes):
    """The earlier checkpoint stays, and nothing stands beside it."""
    save_checkpoint(tmp_path / "latest", make(1))
    with pytest.raises(ConfigError):
        save_checkpoint(tmp_path / "latest", make(2, **changes))
    weights = {name: value.astype(int) for name, value in make().weights.items()}
    with pytest.raises(ConfigError, match="int64"):
        save_checkpoint(tmp_path / "latest", make(2, weights=weights))
    assert_same(load_checkpoint(tmp_path / "latest"), make(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "text.txt"]


def test_numpy_numbers_and_plain_paths(make, tmp_path):
    """What `forward` returns is a loss, and a path may be text."""
    saved = make(
        3,
        step=np.int64(3),
        validation_loss=np.float32(1.5),
        training={"steps": np.int64(9), "source": "text"},
    )
    save_checkpoint(str(tmp_path / "model"), saved)
    assert_same(load_checkpoint(str(tmp_path / "model")), make(3))


@pytest.mark.skipif(os.name == "nt", reason="needs Linux or macOS (Windows has no such permissions)")
def test_files_have_the_usual_permissions(make, tmp_path):
    """Who may read the folder may read every file in it, as with any other program."""
    usual = tmp_path / "usual"
    usual.touch()
    save_checkpoint(tmp_path / "latest", make())
    modes = {path.stat().st_mode for path in (tmp_path / "latest").iterdir()}
    assert modes == {usual.stat().st_mode}
