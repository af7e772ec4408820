"""`train --config FILE` and `golden make --config FILE`: every field of a model from the command line."""

import json
from dataclasses import fields

import pytest

from contract.config import ModelConfig

# No field has its default, nor what the preset `tense` has.
MODEL = {
    "context_length": 8, "n_layer": 2, "n_head": 2, "d_model": 8, "d_ff": 6, "activation": "gelu_tanh",
    "position": "rotary", "norm": "rms_norm", "bias": False, "tie_embeddings": False, "norm_eps": 0.25,
    "dropout": 0.125, "head_size": 6, "n_kv_head": 1, "query_key_value_bias": True, "block": "sandwich",
    "feed_forward": "gated", "query_key_norm": "head", "attention_scale": 0.5, "score_cap": 4.0, "logit_cap": 5.0,
    "embedding_scale": 2.0, "window": 3, "layer_pattern": ["sliding"],
    "rotary": {
        "theta": 50.0, "scaling": "llama3", "factor": 2.0, "low_frequency_factor": 1.5, "high_frequency_factor": 3.0,
        "original_context_length": 6,
    },
    "local_rotary": {
        "theta": 5.0, "scaling": "linear", "factor": 3.0, "low_frequency_factor": 1.5, "high_frequency_factor": 3.0,
        "original_context_length": 7,
    },
    "lora_rank": 3, "lora_alpha": 4.5, "lora_targets": ["query_key_value", "gate"],
}  # fmt: skip
FEW_STEPS = ("--steps", 2, "--batch-size", 4, "--threads", 1, "--tokenizer", "data/tense.tiktoken")
VOCABULARY = 768


@pytest.fixture
def train(tmp_path, run_cli, text):
    """A function that trains with a configuration file of these fields. returns: exit code, stderr and the model"""

    def train(model, *flags):
        path = tmp_path / "model.json"
        path.write_text(model if isinstance(model, str) else json.dumps(model))
        out = tmp_path / "run"
        code, _, stderr = run_cli(
            "train", "--text", text, "--out", out, "--overwrite", *FEW_STEPS, "--config", path, *flags
        )
        stdout = run_cli("info", out, "--json")[1]
        return code, stderr, json.loads(stdout)["model"] if code == 0 else None

    return train


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_every_field_can_be_set(train, run_cli, tmp_path, backend):
    """Each field of a configuration arrives in the checkpoint, and what was trained generates and resumes."""
    code, stderr, model = train(MODEL, "--backend", backend)
    assert code == 0, stderr
    expected = MODEL | {"vocab_size": VOCABULARY}
    for field in fields(ModelConfig):
        assert model[field.name] == expected[field.name], field.name
        assert model[field.name] != field.default, field.name
    assert train(expected, "--backend", backend)[2] == expected
    code, stdout, _ = run_cli("generate", tmp_path / "run", "--max-new-tokens", 12, "--backend", backend)
    assert (code, bool(stdout)) == (0, True)
    assert run_cli("train", "--resume", "--out", tmp_path / "run", "--steps", 4)[0] == 0


def test_flags_override_the_file(train):
    """A model flag goes over the file's field and leaves the others."""
    _, _, model = train(MODEL, "--n-layer", 1, "--dropout", 0, "--norm", "layer_norm")
    flags = {"n_layer": 1, "dropout": 0, "norm": "layer_norm"}
    assert model == MODEL | flags | {"vocab_size": VOCABULARY}


@pytest.mark.parametrize(
    ("model", "flags", "code", "words"),
    [
        (MODEL, ["--preset", "nano"], 2, "--preset does not go with --config, which has a model of its own"),
        (MODEL, ["--from", "runs/x"], 2, "--config does not go with --from, which has a model of its own"),
        (MODEL, ["--resume"], 2, "--overwrite does not go with --resume"),
        (MODEL | {"n_layers": 3}, [], 2, "model configuration with unknown field n_layers"),
        ({"n_layer": 3}, [], 2, "model configuration with missing field activation, context_length"),
        (MODEL | {"n_layer": 0}, [], 2, "n_layer must be a whole number of at least 1, got 0"),
        (MODEL | {"n_layer": "3"}, [], 2, "n_layer must be a whole number of at least 1, got '3'"),
        (MODEL | {"norm": ["layer_norm"]}, [], 2, "unknown norm ['layer_norm']; choose 'layer_norm'"),
        (MODEL | {"n_kv_head": 3}, [], 2, "n_kv_head 3 does not divide n_head 2"),
        (MODEL | {"rotary": {"scaling": "yarn"}}, [], 2, "rotary.scaling 'yarn' is not supported yet"),
        (MODEL, ["--d-model", "0"], 2, "d_model must be a whole number of at least 1, got 0"),
        (MODEL | {"vocab_size": 700}, [], 2, f"must be the tokenizer's {VOCABULARY}, got 700; omit it"),
        (MODEL | {"d_model": 10**9}, [], 1, "the model alone takes"),
        (MODEL | {"head_size": 10**9}, [], 1, "the model alone takes"),
        (MODEL | {"d_ff": 10**15}, [], 1, "the model alone takes"),
        (MODEL | {"d_ff": 10**400}, [], 2, "d_ff must be below 2^63, got 1000"),
        ("[1]", [], 1, "model.json is not a JSON object (it is [1], expected an object)"),
        ("{", [], 1, "model.json is not a JSON object"),
    ],
)
def test_mistakes(train, model, flags, code, words):
    """Each is one line."""
    found, stderr, _ = train(model, *flags)
    assert (found, words in stderr, stderr.count("\n")) == (code, True, 1), stderr


@pytest.mark.parametrize("command", ["train --text x.txt", "golden make mine"])
def test_a_missing_file(run_cli, tmp_path, command):
    """A file that cannot be read is named, in one line."""
    code, _, stderr = run_cli(
        *command.split(), "--config", tmp_path / "absent.json", "--out", tmp_path / "out"
    )
    assert (code, "absent.json" in stderr, stderr.count("\n")) == (1, True, 1), stderr


def test_a_pack_of_a_configuration(run_cli, tmp_path):
    """A pack of a model with heads of another size is made and is right; its vocabulary must be said."""
    path = tmp_path / "model.json"
    path.write_text(json.dumps(MODEL))
    make = ("golden", "make", "mine", "--config", path, "--out", tmp_path, "--steps", 1)
    code, _, stderr = run_cli(*make)
    assert (code, "missing field vocab_size" in stderr) == (2, True)
    path.write_text(json.dumps(MODEL | {"vocab_size": 11}))
    assert run_cli(*make)[0] == 0
    code, stdout, _ = run_cli("check", tmp_path / "mine.safetensors", "--golden", tmp_path / "mine")
    assert (code, "tensors agree" in stdout) == (0, True)
