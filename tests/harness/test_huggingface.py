"""The Hugging Face layout: names, fields, damage and fetching. That the numbers agree, parity/ proves."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.presets import PRESETS, preset
from contract.weights import initial_weights, weight_table
from data.tokenizers import encoding_of
from harness.exchange.export import export
from harness.exchange.families.gpt2 import (
    config_from_published,
    published_config,
    published_places,
    published_terms,
)
from harness.exchange.hub import find_source, origin
from harness.exchange.huggingface_import import import_gpt2
from harness.training.checkpoint import Checkpoint
from harness.training.tensor_file import stored_tensors
from tests.shared_files import CACHE, require_cache

ROOT = Path(__file__).parents[2]
MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


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


def edit_json(path, **changes):
    """Change fields of a JSON file; None stands for null, ... takes the field away."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_tensors(folder, change):
    """Rewrite the weights as `change` leaves their dictionary."""
    tensors = load_file(folder / MODEL)
    change(tensors)
    save_file(tensors, folder / MODEL)


def one_line(error):
    """Fail where an error's message is more than a line."""
    assert "\n" not in str(error)
    return True


def expect_refusal(folder, *words, **options):
    """Import fails with one line that names all of `words`; returns it."""
    with pytest.raises(UserError) as error:
        import_gpt2(folder, **options)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# --- names ---


def test_names_are_the_published_ones():
    """The names of GPT-2's 148 tensors, as its files list them, and which of them are transposed."""
    places = published_places(preset("gpt2", vocab_size=50257))
    assert len(places) == 148
    assert {place.name for name, place in places.items() if not name.startswith("blocks")} == {
        "wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias",
    }  # fmt: skip
    layer = {place.name: place.transposed for name, place in places.items() if name.startswith("blocks.11.")}
    assert layer == {
        "h.11.ln_1.weight": False, "h.11.ln_1.bias": False,
        "h.11.attn.c_attn.weight": True, "h.11.attn.c_attn.bias": False,
        "h.11.attn.c_proj.weight": True, "h.11.attn.c_proj.bias": False,
        "h.11.ln_2.weight": False, "h.11.ln_2.bias": False,
        "h.11.mlp.c_fc.weight": True, "h.11.mlp.c_fc.bias": False,
        "h.11.mlp.c_proj.weight": True, "h.11.mlp.c_proj.bias": False,
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_form_of_the_files(published, prefix, shards):
    """With the prefix or without, in one file or in shards, masks and a tied output beside: the same weights."""
    folder = published(n_layer=2)
    expected = import_gpt2(folder).weights
    tensors = {
        prefix + name.removeprefix("transformer."): value for name, value in load_file(folder / MODEL).items()
    }
    tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"]
    for layer in range(2):
        tensors[f"{prefix}h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 4, 4), np.uint8))
        tensors[f"{prefix}h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    if shards == 1:
        save_file(tensors, folder / MODEL)
    else:
        write_shards(folder, tensors, shards)
    found = import_gpt2(folder).weights
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def write_shards(folder, tensors, count):
    """Spread tensors over files, with their index, in place of the one file."""
    (folder / MODEL).unlink(missing_ok=True)
    weight_map = {}
    for shard in range(count):
        part = dict(list(tensors.items())[shard::count])
        name = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(published, dtype):
    """Weights of half precision keep their values in float32, and the user is told."""
    folder, said = published(), []
    original = load_file(folder / MODEL)
    if dtype == "float16":
        expected = {name: value.astype(np.float16).astype(np.float32) for name, value in original.items()}
        save_file({name: value.astype(np.float16) for name, value in original.items()}, folder / MODEL)
    else:
        torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
        from safetensors.torch import save_file as save_tensors

        halves = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in original.items()}
        expected = {name: value.float().numpy() for name, value in halves.items()}
        save_tensors(halves, folder / MODEL)
    found = import_gpt2(folder, note=said.append)
    np.testing.assert_array_equal(
        found.weights["token_embedding.weight"], expected["transformer.wte.weight"], strict=True
    )
    np.testing.assert_array_equal(
        found.weights["blocks.0.feed_forward.up.weight"],
        expected["transformer.h.0.mlp.c_fc.weight"].T,
        strict=True,
    )
    assert said == [f"the weights are {dtype}; they become float32, which holds the same numbers"]


# --- configuration ---


def test_published_sizes_are_the_presets():
    """The fields with which the four sizes are published give the presets of the same names."""
    for name, layers, heads, width in (
        ("gpt2", 12, 12, 768), ("gpt2-medium", 24, 16, 1024), ("gpt2-large", 36, 20, 1280), ("gpt2-xl", 48, 25, 1600),
    ):  # fmt: skip
        fields = {
            "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
            "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": width, "n_head": heads,
            "n_layer": layers, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
            "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
            "summary_use_proj": True, "task_specific_params": {"text-generation": {"do_sample": True}},
            "vocab_size": 50257,
        }  # fmt: skip
        assert config_from_published(fields) == preset(name, vocab_size=50257, dropout=0.1)
    assert config_from_published({"model_type": "gpt2"}) == preset("gpt2", vocab_size=50257, dropout=0.1)


def test_fields_are_those_of_transformers():
    """Each field that GPT2Config knows is read, refused, or without effect on what is computed."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    fields = transformers.GPT2Config().to_dict()
    harmless = {
        "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label",
        "initializer_range", "label2id", "output_attentions", "output_hidden_states", "pad_token_id",
        "problem_type", "reorder_and_upcast_attn", "return_dict", "summary_activation", "summary_first_dropout",
        "summary_proj_to_labels", "summary_type", "summary_use_proj", "transformers_version", "use_cache",
        "_name_or_path",
    }  # fmt: skip
    read = {
        "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function",
        "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "tie_word_embeddings",
    }  # fmt: skip
    refused = {
        "model_type", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention",
        "is_encoder_decoder",
    }  # fmt: skip
    assert fields.keys() <= harmless | read | refused
    assert config_from_published(fields) == preset("gpt2", vocab_size=50257, dropout=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation_function", "gelu"),
        ("activation_function", "silu"),
        ("activation_function", ["gelu_new"]),
        ("scale_attn_weights", False),
        ("scale_attn_weights", 1),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("is_causal", False),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
        ("model_type", "gpt_neo"),
        ("model_type", ...),
        ("architectures", ["GPT2ForSequenceClassification"]),
        ("architectures", "GPT2LMHeadModel"),
        ("attn_pdrop", 0.5),
        ("n_head", 4),
        ("n_head", "2"),
        ("n_layer", 0),
        ("n_embd", None),
        ("n_inner", -1),
        ("n_positions", True),
        ("n_positions", float("nan")),
        ("hidden_size", 12),
        ("layer_norm_epsilon", 0),
        ("tie_word_embeddings", None),
    ],
)
def test_another_function_is_refused_by_the_field(published, field, value):
    """A field that is impossible or computes another function is named, with what it says."""
    folder = published()
    edit_json(folder / "config.json", **{field: value})
    names = {"layer_norm_epsilon": "norm_eps", "tie_word_embeddings": "tie_embeddings"}
    message = expect_refusal(folder, "config.json", names.get(field, field))
    if value is not ... and field != "n_head":
        assert str(value) in message
    if value == "gelu":
        assert "exact-erf" in message


def test_dropout_can_be_chosen(published):
    """Three different rates are refused, unless the user says which one later training should have."""
    folder = published(dropout=0.25)
    edit_json(folder / "config.json", embd_pdrop=0)
    message = expect_refusal(folder, "embd_pdrop 0,", "attn_pdrop 0.25", "--dropout")
    assert "resid_pdrop 0.25" in message
    assert import_gpt2(folder, dropout=0.125).config.dropout == 0.125
    edit_json(folder / "config.json", attn_pdrop=0, resid_pdrop=0.0)
    assert import_gpt2(folder).config.dropout == 0.0


@pytest.mark.parametrize("name", PRESETS)
def test_configuration_there_and_back(name):
    """Every preset survives the translation, once put into GPT-2's terms."""
    config = preset(name, vocab_size=77, dropout=0.2, tie_embeddings=False)
    assert config_from_published(published_config(config, "float32", None)) == published_terms(config)


# --- what GPT-2's files cannot say ---

FIXED = {"position": "sinusoidal", "bias": False, "activation": "relu"}


def test_trained_positions_and_biases_are_kept(published):
    """Positions or biases that somebody trained after the export are weights, whatever the export was made from."""
    folder, said = published(**FIXED), []
    assert import_gpt2(folder, note=said.append).config.position == "sinusoidal"
    assert not said

    def train(tensors):
        tensors["transformer.wpe.weight"] += np.float32(1e-3)
        tensors["transformer.h.0.mlp.c_fc.bias"][1] = 1e-3

    edit_tensors(folder, train)
    found = import_gpt2(folder, note=said.append)
    assert (found.config.position, found.config.bias, found.config.activation) == ("learned", True, "relu")
    assert found.weights.keys() == weight_table(found.config).keys()
    assert found.weights["blocks.0.feed_forward.up.bias"][1] == np.float32(1e-3)
    assert len(said) == 2


@pytest.mark.parametrize("own", [{}, "x", 3, {"n_layer": 5}, ...])
def test_the_published_fields_hold(published, own):
    """Our own field is a help, never needed and never trusted against the others."""
    folder = published(**FIXED)
    edit_json(folder / "config.json", twin_gpt=own)
    assert import_gpt2(folder).config.position == "learned"


def test_own_field_of_another_model(published):
    """A configuration of ours that does not fit the published fields is left aside, and said so."""
    folder, said = published(**FIXED), []
    other = json.loads((published("other", **FIXED | {"d_ff": 9}) / "config.json").read_text())["twin_gpt"]
    edit_json(folder / "config.json", twin_gpt=other)
    assert import_gpt2(folder, note=said.append).config.d_ff == 5
    assert len(said) == 1


# --- damage ---


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
    assert not import_gpt2(folder).config.tie_embeddings


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
    import_gpt2(folder)


def test_a_flipped_bit_in_the_header(published):
    """Whichever byte of the header is damaged: one line, or the same weights where the byte says nothing."""
    folder = published()
    expected = import_gpt2(folder).weights.flat.copy()
    content = (folder / MODEL).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refusals = 0
    places = [*range(8), *range(8, header, 3)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place * 5 % 8)
        (folder / MODEL).write_bytes(damaged)
        try:
            found = import_gpt2(folder).weights.flat
        except UserError as error:
            refusals += one_line(error)
        else:
            np.testing.assert_array_equal(found, expected)
    assert refusals > 0.9 * len(places)


def test_heads_that_gpt2_cannot_express():
    """GPT-2's files have no field for a head size of its own, so a model with one is not written as GPT-2."""
    config = preset("nano", vocab_size=9, head_size=16)
    with pytest.raises(
        UserError, match="need n_head · head_size = d_model, got 4 · 16 and 128; choose --format npz"
    ):
        published_config(config, "float32", None)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_configuration_ends_in_a_line(data):
    """Whatever JSON stands in the fields: a configuration, or one line."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=3,
    )
    known = published_config(preset("nano", vocab_size=9), "float32", None)
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


# --- the model's vocabulary ---


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
    assert import_gpt2(folder, note=said.append).tokenizer.n_vocab == 6
    assert "7 ids, the vocabulary 6" in said[0]
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
    assert import_gpt2(folder, note=said.append).tokenizer.name == "gpt2"
    assert "no vocabulary files" in said[0]


# --- the hub, of which nothing is asked here ---


@pytest.fixture
def hub(monkeypatch):
    """`huggingface_hub`, and a function that sets what its `snapshot_download` does."""
    module = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (pip install -e '.[dev]')")
    # the progress bars' switch is the process's
    monkeypatch.setattr("huggingface_hub.utils.disable_progress_bars", lambda: None)
    return lambda download: monkeypatch.setattr(module, "snapshot_download", download)


def test_fetching(hub, published):
    """A hub name is fetched, at a revision where one is given, its weights for other programs left there."""
    folder, calls = published(), []

    def download(name, *, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        return str(folder)

    hub(download)
    assert find_source("openai-community/gpt2") == find_source("openai-community/gpt2", "v1") == folder
    (name, revision, patterns), (_, second, _) = calls
    assert (name, revision, second) == ("openai-community/gpt2", None, "v1")
    where = origin("openai-community/gpt2", folder)
    assert where == {"source": "openai-community/gpt2", "revision": folder.name}
    assert import_gpt2(folder, origin=where).training["source"] == "openai-community/gpt2"
    with pytest.raises(ConfigError, match="omit it"):
        find_source(str(folder), "v1")
    from huggingface_hub.utils import filter_repo_objects

    listed = [
        "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
        "pytorch_model.bin", "tf_model.h5", "onnx/decoder.onnx", "64.tflite", "README.md",
    ]  # fmt: skip
    assert list(filter_repo_objects(listed, allow_patterns=patterns)) == listed[:9]


@pytest.mark.parametrize(
    "error", ["LocalEntryNotFoundError", "OfflineModeIsEnabled", "RepositoryNotFoundError"]
)
def test_no_network(hub, error):
    """Without a network, or without such a model, one line says so."""
    import huggingface_hub.errors

    kind = getattr(huggingface_hub.errors, error)

    def download(name, **options):
        raise kind.__new__(kind)

    hub(download)
    with pytest.raises(UserError, match="no folder nobody/nothing here, and") as raised:
        find_source("nobody/nothing")
    assert "\n" not in str(raised.value)


def test_without_the_hub_package(monkeypatch):
    """The extra to install is named."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub, which is not installed.*\[hub\]"):
        find_source("gpt2")


@pytest.mark.parametrize("source", ["./absent", "/absent", "a/b/c", "../x", "", "a b", ".", "..x/y"])
def test_neither_folder_nor_name(hub, source, tmp_path, monkeypatch):
    """A path that is not there is never asked of the hub."""
    monkeypatch.chdir(tmp_path)
    hub(lambda name, **options: pytest.fail(f"the hub was asked for {name}"))
    if source in ("", "."):  # the current folder
        assert find_source(source) == Path(source)
        return
    with pytest.raises(ConfigError, match="no hub name"):
        find_source(source)


def test_a_file_is_no_source(published):
    """The weights' file in place of its folder is named."""
    with pytest.raises(ConfigError, match="is a file; name the folder"):
        find_source(str(published() / MODEL))
