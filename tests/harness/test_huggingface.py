"""The Hugging Face layout: names, fields, and what they cannot say. That the numbers agree, parity/ proves."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contract.presets import PRESETS, preset
from contract.weights import weight_table
from harness.exchange.families.gpt2 import (
    config_from_published,
    published_config,
    published_places,
    published_terms,
)
from harness.exchange.huggingface_import import import_folder
from tests.harness.published_models import (
    MODEL,
    edit_json,
    edit_tensors,
    expect_refusal,
    write_shards,
)

ROOT = Path(__file__).parents[2]


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
    expected = import_folder(folder).weights
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
    found = import_folder(folder).weights
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


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
    found = import_folder(folder, note=said.append)
    np.testing.assert_array_equal(
        found.weights["token_embedding.weight"], expected["transformer.wte.weight"], strict=True
    )
    np.testing.assert_array_equal(
        found.weights["blocks.0.feed_forward.up.weight"],
        expected["transformer.h.0.mlp.c_fc.weight"].T,
        strict=True,
    )
    assert said == [f"the weights are {dtype}; they become float32, which holds the same numbers"]


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
        ("scale_attn_by_inverse_layer_idx", 3),
        ("rotary_dim", 4),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("is_causal", False),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
        ("model_type", "gpt_neo"),
        ("model_type", ...),
        ("architectures", ["GPT2ForSequenceClassification"]),
        ("architectures", "GPT2LMHeadModel"),
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
    """Three different rates become none, which is said; the user may choose one for later training."""
    folder, said = published(dropout=0.25), []
    edit_json(folder / "config.json", embd_pdrop=0)
    assert import_folder(folder, note=said.append).config.dropout == 0.0
    (line,) = said
    assert "embd_pdrop 0, attn_pdrop 0.25, resid_pdrop 0.25" in line
    assert "--dropout" in line
    assert import_folder(folder, dropout=0.125).config.dropout == 0.125
    edit_json(folder / "config.json", attn_pdrop=0, resid_pdrop=0.0)
    assert import_folder(folder).config.dropout == 0.0


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name]["position"] != "rotary"])
def test_configuration_there_and_back(name):
    """Every preset survives the translation, once put into GPT-2's terms."""
    config = preset(name, vocab_size=77, dropout=0.2, tie_embeddings=False)
    assert config_from_published(published_config(config, "float32")) == published_terms(config)


FIXED = {"position": "sinusoidal", "bias": False, "activation": "relu"}


def test_trained_positions_and_biases_are_kept(published):
    """Positions or biases that somebody trained after the export are weights, whatever the export was made from."""
    folder, said = published(**FIXED), []
    assert import_folder(folder, note=said.append).config.position == "sinusoidal"
    assert not said

    def train(tensors):
        tensors["transformer.wpe.weight"] += np.float32(1e-3)
        tensors["transformer.h.0.mlp.c_fc.bias"][1] = 1e-3

    edit_tensors(folder, train)
    found = import_folder(folder, note=said.append)
    assert (found.config.position, found.config.bias, found.config.activation) == ("learned", True, "relu")
    assert found.weights.keys() == weight_table(found.config).keys()
    assert found.weights["blocks.0.feed_forward.up.bias"][1] == np.float32(1e-3)
    assert len(said) == 2


@pytest.mark.parametrize("own", [{}, "x", 3, {"n_layer": 5}, ...])
def test_the_published_fields_hold(published, own):
    """Our own field is a help, never needed and never trusted against the others."""
    folder = published(**FIXED)
    edit_json(folder / "config.json", twin_gpt=own)
    assert import_folder(folder).config.position == "learned"


def test_own_field_of_another_model(published):
    """A configuration of ours that does not fit the published fields is left aside, and said so."""
    folder, said = published(**FIXED), []
    other = json.loads((published("other", **FIXED | {"d_ff": 9}) / "config.json").read_text())["twin_gpt"]
    edit_json(folder / "config.json", twin_gpt=other)
    assert import_folder(folder, note=said.append).config.d_ff == 5
    assert len(said) == 1
