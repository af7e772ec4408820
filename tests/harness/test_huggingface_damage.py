"""Published models that are damaged, incomplete, or have another vocabulary."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from contract.config import ModelConfig
from contract.errors import UserError
from contract.presets import preset
from harness.exchange.families.gpt2 import (
    config_from_published,
    published_config,
)
from harness.exchange.huggingface_import import import_folder
from harness.training.tensor_file import stored_tensors
from tests.harness.published_models import (
    INDEX,
    MODEL,
    edit_json,
    edit_tensors,
    expect_refusal,
    one_line,
    write_shards,
)
from tests.shared_files import CACHE, require_cache

ROOT = Path(__file__).parents[2]


def test_every_wrong_tensor_is_named(published):
    """Missing, extra, of a wrong shape, of integers: all in one message."""
    folder = published()

    def damage(tensors):
        del tensors["transformer.h.0.ln_2.bias"], tensors["transformer.ln_f.weight"]
        tensors["transformer.h.1.ln_1.bias"] = np.zeros(6, np.float32)
        tensors["score.weight"] = np.zeros(6, np.float32)
        tensors["transformer.wpe.weight"] = np.zeros((5, 6), np.float32)
        # the shape that a transpose forgotten would have
        tensors["transformer.h.0.attn.c_attn.weight"] = np.zeros((18, 6), np.float32)
        tensors["transformer.wte.weight"] = np.zeros((7, 6), np.int32)

    edit_tensors(folder, damage)
    expect_refusal(
        folder,
        "missing h.0.ln_2.bias, ln_f.weight",
        "not GPT-2's h.1.ln_1.bias, score.weight",
        "wpe.weight is (5, 6), wanted (4, 6)",
        "h.0.attn.c_attn.weight is (18, 6), wanted (6, 18)",
        "wte.weight is of I32",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(published, value):
    """A weight that is not finite is named."""
    folder = published()

    def damage(tensors):
        tensors["transformer.h.0.mlp.c_proj.weight"][2, 3] = value

    edit_tensors(folder, damage)
    expect_refusal(folder, "h.0.mlp.c_proj.weight", str(value))


def test_a_tied_output_that_differs(published):
    """An output that is not the embedding contradicts tie_word_embeddings, which says that it is."""
    folder = published()

    def damage(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + np.float32(1)

    edit_tensors(folder, damage)
    expect_refusal(folder, "lm_head.weight differs from wte.weight", "tie_word_embeddings")
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert not import_folder(folder).config.tie_embeddings


def test_both_prefixed_and_not(published):
    """One weight under two names is refused: which one counts?"""
    folder = published()
    edit_tensors(folder, lambda tensors: tensors.update({"ln_f.bias": np.zeros(6, np.float32)}))
    expect_refusal(folder, "both ln_f.bias and transformer.ln_f.bias")


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..\\x", "C:x", "..", ".", "", "a\0b"],
)
def test_a_shard_that_leaves_the_folder(published, shard):
    """The index can only name files that lie beside it."""
    folder = published()
    tensors = load_file(folder / MODEL)
    write_shards(folder, tensors, 2)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder.parent / "x.safetensors")
    index = json.loads((folder / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = shard
    (folder / INDEX).write_text(json.dumps(index))
    expect_refusal(folder, INDEX, "leaves the folder")


def test_shards_that_are_not_as_listed(published):
    """A shard that is missing, lacks a tensor or holds another's is named."""
    folder = published()
    tensors = load_file(folder / MODEL)
    write_shards(folder, tensors, 2)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    content = load_file(folder / second)
    name, value = content.popitem()
    save_file(content, folder / second)
    expect_refusal(folder, second, name)
    save_file(load_file(folder / first) | {name: value}, folder / first)
    expect_refusal(folder, first, name)
    write_shards(folder, tensors, 2)
    (folder / second).unlink()
    expect_refusal(folder, second)
    for weight_map in (None, {}, [], {"a": 1}):
        edit_json(folder / INDEX, weight_map=weight_map)
        expect_refusal(folder)


def test_truncated(published):
    """Cut anywhere, the weights are refused in a line that names the file; so is the configuration."""
    folder = published()
    for name in (MODEL, "config.json", "vocab.json"):
        content = (folder / name).read_bytes()
        for length in np.linspace(0, len(content) - 3, 25).astype(int):
            (folder / name).write_bytes(content[:length])
            expect_refusal(folder, name)
        (folder / name).write_bytes(content)
    import_folder(folder)


def test_a_flipped_bit_in_the_header(published):
    """Whichever byte of the header is damaged: one line, or the same weights where the byte says nothing."""
    folder = published()
    expected = import_folder(folder).weights.flat.copy()
    content = (folder / MODEL).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refusals = 0
    places = [*range(8), *range(8, header, 3)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place * 5 % 8)
        (folder / MODEL).write_bytes(damaged)
        try:
            found = import_folder(folder).weights.flat
        except UserError as error:
            refusals += one_line(error)
        else:
            np.testing.assert_array_equal(found, expected)
    assert refusals > 0.9 * len(places)


def test_heads_that_gpt2_cannot_express():
    """GPT-2's files have no field for a head size of its own, so a model with one is not written as GPT-2."""
    config = preset("nano", vocab_size=9, head_size=16)
    with pytest.raises(UserError, match="cannot express head_size 16; choose --format npz"):
        published_config(config, "float32")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_configuration_ends_in_a_line(data):
    """Whatever JSON stands in the fields: a configuration, or one line."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=3,
    )
    known = published_config(preset("nano", vocab_size=9), "float32")
    fields = data.draw(
        st.dictionaries(st.sampled_from([*known, "is_causal", "hidden_size"]), values, max_size=3)
    )
    try:
        assert isinstance(config_from_published(known | fields), ModelConfig)
    except UserError as error:
        one_line(error)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"a": ', "[" * 100_000, "\xff"])
@pytest.mark.parametrize("name", ["config.json", "vocab.json", "tokenizer_config.json"])
def test_files_that_are_no_objects(published, name, content):
    """A JSON file that is empty, cut, deep, or something else is named."""
    folder = published()
    (folder / name).write_bytes(content.encode("latin-1"))
    expect_refusal(folder, name)


def test_missing_files(published, tmp_path):
    """What is missing is named, and a pickle is not read in its place."""
    folder = published()
    (folder / "merges.txt").rename(tmp_path / "merges.txt")
    expect_refusal(folder, "merges.txt is missing beside vocab.json")
    (folder / "vocab.json").unlink()
    expect_refusal(folder, "no vocabulary files", "vocab.json")
    (folder / MODEL).rename(folder / "pytorch_model.bin")
    expect_refusal(folder, MODEL, "pytorch_model.bin is a pickle, which is never read")
    (folder / "config.json").unlink()
    expect_refusal(folder, "config.json")


def test_stored_tensors_of_what_is_no_file(tmp_path):
    """A file that cannot be opened is one line too."""
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            stored_tensors(path)


def test_a_prefix_space_is_refused(published):
    """A tokenizer that puts a space before every text gives other tokens than ours would."""
    folder = published()
    edit_json(folder / "tokenizer_config.json", add_prefix_space=True)
    expect_refusal(folder, "tokenizer_config.json", "add_prefix_space")


def test_vocabularies_of_another_size(published):
    """More tokens than the model has are refused; fewer leave ids without text, which is said."""
    folder, said = published(), []
    vocab = json.loads((folder / "vocab.json").read_text())
    del vocab["g"]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    assert import_folder(folder, note=said.append).tokenizer.n_vocab == 6
    assert "7 ids, the tokenizer 6" in said[0]
    (folder / "vocab.json").write_text(json.dumps(vocab | {"g": 6, "h": 7}))
    expect_refusal(folder, "8 tokens", "vocab_size", "7")
    (folder / "added_tokens.json").write_text('{"i": 8}')
    expect_refusal(folder, "9 tokens")


def test_gpt2_without_its_files(published, monkeypatch):
    """A folder without vocabulary files has GPT-2's where its size is GPT-2's; the user is told."""
    require_cache()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    folder, said = published(), []
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    edit_json(folder / "config.json", vocab_size=50257, twin_gpt=...)

    def widen(tensors):
        tensors["transformer.wte.weight"] = np.zeros((50257, 6), np.float32)

    edit_tensors(folder, widen)
    assert import_folder(folder, note=said.append).tokenizer.name == "gpt2"
    assert "no vocabulary files" in said[0]
