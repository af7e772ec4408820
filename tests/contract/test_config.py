"""The model's configuration: what it refuses and says, its dictionary, its presets."""

import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.presets import PRESETS, preset
from contract.rotary import Rotary
from contract.weights import parameter_count

SIZES = ("vocab_size", "context_length", "n_layer", "n_head", "d_model", "d_ff")
NO_SIZES = (0, -1, 2.0, "4", None, True)

INVALID = [
    *[pytest.param({name: value}, [name], id=f"{name}={value!r}") for name in SIZES for value in NO_SIZES],
    pytest.param({"n_head": 4}, ["d_model 6", "n_head 4"], id="heads that do not divide"),
    *[
        pytest.param({name: value}, [name, repr(value)], id=f"{name}={value!r}")
        for name in ("head_size", "n_kv_head")
        for value in NO_SIZES
        if value is not None
    ],
    pytest.param({"n_head": 6, "n_kv_head": 4}, ["n_kv_head 4 does not divide n_head 6"], id="K divides H"),
    pytest.param(
        {"position": "sinusoidal", "d_model": 5, "n_head": 1},
        ["even d_model", "5"],
        id="odd sinusoidal width",
    ),
    pytest.param({"activation": "gelu"}, ["activation 'gelu'", "exact-erf", "gelu_tanh"], id="erf gelu"),
    pytest.param(
        {"activation": "gelu_erf"}, ["activation 'gelu_erf'", "exact-erf", "gelu_tanh"], id="erf gelu by name"
    ),
    pytest.param(
        {"activation": "swish"}, ["activation 'swish'", "relu", "gelu_tanh"], id="unknown activation"
    ),
    pytest.param({"activation": None}, ["activation None"], id="no activation"),
    pytest.param(
        {"position": "rope"}, ["position 'rope'", "sinusoidal", "learned", "rotary"], id="unknown position"
    ),
    pytest.param({"position": "gelu"}, ["position 'gelu'"], id="an activation as position"),
    *[
        pytest.param({name: value}, [name, repr(value)], id=f"{name}={value!r}")
        for name in ("bias", "tie_embeddings")
        for value in (1, 0, "true", None)
    ],
    pytest.param(
        {"position": "rotary", "head_size": 3}, ["rotary positions need an even head_size", "3"], id="odd D"
    ),
    *[
        pytest.param(
            {name: {"theta": 5.0}}, [f"{name} is set, but position is 'learned'"], id=f"{name} unused"
        )
        for name in ("rotary", "local_rotary")
    ],
    *[
        pytest.param({"position": "rotary", "rotary": value}, words, id=f"rotary={value!r}")
        for value, words in (
            ({"scaling": "yarn"}, ["rotary.scaling 'yarn' is not supported yet", "'linear' or 'llama3'"]),
            ({"scaling": "longrope"}, ["rotary.scaling 'longrope' is not supported yet"]),
            ({"scaling": "dynamic"}, ["rotary.scaling 'dynamic' is not supported yet"]),
            ({"scaling": "ntk"}, ["rotary.scaling 'ntk' is unknown", "'linear' or 'llama3'"]),
            ({"theta": 0}, ["rotary.theta must be a number above 0", "got 0"]),
            ({"theta": 1e30}, ["rotary.theta must be", "below 1e30, got 1e+30"]),
            ({"theta": "1e4"}, ["rotary.theta must be a number above 0", "got '1e4'"]),
            ({"factor": -1}, ["rotary.factor must be a number above 0", "got -1"]),
            ({"original_context_length": 0}, ["rotary.original_context_length", "from 1", "got 0"]),
            (
                {"low_frequency_factor": 4},
                ["low_frequency_factor must be below high_frequency_factor 4", "4"],
            ),
            ({"base": 5.0}, ["rotary with unknown field base; its fields are theta, scaling, factor"]),
            (5.0, ['rotary must be an object such as {"theta": 10000}', "got 5.0"]),
        )
    ],
    pytest.param(
        {"position": "rotary", "local_rotary": {"theta": 0}}, ["local_rotary.theta must be"], id="local theta"
    ),
    *[
        pytest.param(
            {"window": value, "layer_pattern": ["sliding"]}, ["window", repr(value)], id=f"window={value!r}"
        )
        for value in (0, -1, 2.5, "4", True)
    ],
    pytest.param({"window": 3}, ["window 3 does not fit layer_pattern ['full']"], id="a window unused"),
    pytest.param(
        {"layer_pattern": ["sliding"]}, ["window None does not fit layer_pattern ['sliding']"], id="no window"
    ),
    *[
        pytest.param(
            {"layer_pattern": value}, ["layer_pattern must be a list", repr(value)], id=f"pattern={value!r}"
        )
        for value in ([], "full", ["local"], [["full"]], [{}], None)
    ],
    pytest.param(
        {"layer_pattern": ["full"] * 3, "n_layer": 2},
        ["layer_pattern has 3 entries", "n_layer 2"],
        id="a pattern longer than the layers",
    ),
    pytest.param(
        {"position": "rotary", "head_size": 2, "local_rotary": {"theta": 5.0}},
        ["local_rotary is set", "no sliding layers"],
        id="local rotary unused",
    ),
    *[
        pytest.param({name: value}, [name, repr(value)], id=f"{name}={value!r}")
        for name in ("score_cap", "logit_cap", "attention_scale", "embedding_scale")
        for value in (0, -1.0, float("nan"), float("inf"), 1e30, 1e-30, "2", True)
    ],
    *[pytest.param({name: 2**63}, [name, "below 2^63"], id=f"{name} of 64 bits") for name in SIZES],
    pytest.param({"norm": "x" * 5000}, ["unknown norm 'xxx", "x…; choose"], id="a long name"),
    pytest.param({"block": "parallel"}, ["unknown block 'parallel'", "sandwich"], id="unknown block"),
    pytest.param({"feed_forward": "moe"}, ["unknown feed_forward 'moe'", "gated"], id="unknown feed-forward"),
    pytest.param(
        {"query_key_norm": True}, ["unknown query_key_norm True", "head"], id="unknown norm of heads"
    ),
    *[
        pytest.param({"norm_eps": value}, ["norm_eps", repr(value)], id=f"norm_eps={value!r}")
        for value in (0, 0.0, -1e-5, 1, float("nan"), float("inf"), "1e-5", None, True)
    ],
    *[
        pytest.param({"dropout": value}, ["dropout", repr(value)], id=f"dropout={value!r}")
        for value in (-0.1, 1, 1.5, float("nan"), "0.1", None, False)
    ],
]


@pytest.mark.parametrize(("changes", "words"), INVALID)
def test_invalid_field(tiny_config, changes, words):
    """An impossible value is refused in one line that names the field and what was found."""
    with pytest.raises(ConfigError) as error:
        tiny_config(**changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0},
        {"dropout": 0.999},
        {"norm_eps": 1e-12},
        {"norm_eps": 0.999},
        {"d_model": 5, "n_head": 1},
        {"n_head": 6},
        {"n_head": 4, "head_size": 5},
        {"n_head": 3, "n_kv_head": 3},
        {"position": "sinusoidal"},
        {"activation": "relu"},
        dict.fromkeys(SIZES, 1),
    ],
    ids=str,
)
def test_valid_limits(tiny_config, changes):
    """The edges of what is possible are accepted, and survive as they are."""
    config = tiny_config(**changes)
    assert {name: getattr(config, name) for name in changes} == changes
    if "head_size" not in changes:
        assert config.head_size * config.n_head == config.d_model
    assert config.n_kv_head == config.n_head


def test_head_size_is_always_an_integer(tiny_config):
    """What is omitted is filled in at once, so that a config is equal to the one that says it."""
    config = tiny_config(n_head=3, head_size=None, n_kv_head=None)
    assert (config.head_size, config.n_kv_head) == (2, 3)
    assert config == tiny_config(n_head=3, head_size=2, n_kv_head=3)
    assert config != tiny_config(n_head=3, head_size=4)
    wider = replace(config, d_model=9, head_size=None)
    assert wider == tiny_config(n_head=3, d_model=9)


def test_defaults():
    """What is left out is as GPT-2 has it: biases, tied embeddings, eps 1e-5, and no dropout."""
    config = preset("gpt2", vocab_size=50257)
    assert (config.bias, config.tie_embeddings, config.norm_eps, config.dropout) == (True, True, 1e-5, 0.0)


def test_errors_are_for_people():
    """A ConfigError is a UserError of wrong usage, and a ValueError for callers in Python."""
    assert issubclass(ConfigError, UserError)
    assert issubclass(ConfigError, ValueError)
    assert (UserError.exit_code, ConfigError.exit_code) == (1, 2)


def test_config_is_frozen(tiny_config):
    """A configuration cannot be changed behind a model's back, and equal ones are equal."""
    config = tiny_config()
    with pytest.raises(FrozenInstanceError):
        config.n_layer = 2
    assert config == tiny_config()
    assert config != tiny_config(dropout=0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_dictionary_round_trip(name):
    """from_dict(to_dict()) is the same configuration, also through JSON."""
    config = preset(name, vocab_size=11, dropout=0.1, bias=False)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_numbers_of_numpy_are_written(tiny_config):
    """A rotation may be given in NumPy's numbers, and is written as JSON all the same."""
    rotary = Rotary(theta=np.float32(50), original_context_length=np.int64(9))
    config = tiny_config(position="rotary", head_size=2, rotary=rotary)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_dictionary_with_wrong_fields(tiny_config):
    """A dictionary with an unknown field, or without one that has no default, is refused by that field's name."""
    values = tiny_config().to_dict()
    with pytest.raises(ConfigError, match="unknown field rotary_base"):
        ModelConfig.from_dict(values | {"rotary_base": 1})
    required = (*SIZES, "activation", "position")
    for name in required:
        with pytest.raises(ConfigError, match=f"missing field {name}$"):
            ModelConfig.from_dict({other: value for other, value in values.items() if other != name})
    assert ModelConfig.from_dict({name: values[name] for name in required}) == tiny_config()
    with pytest.raises(ConfigError, match="dropout"):
        ModelConfig.from_dict(values | {"dropout": 2})


def test_dictionary_of_an_older_file():
    """A file from before head_size, n_kv_head and low-rank pairs opens as the same model."""
    config, later = (
        preset("nano", vocab_size=11),
        ("head_size", "n_kv_head", "lora_rank", "lora_alpha", "lora_targets"),
    )
    older = {name: value for name, value in config.to_dict().items() if name not in later}
    assert len(older) == len(config.to_dict()) - len(later)
    assert ModelConfig.from_dict(older) == config


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tense", (32, 3, 4, 96, 384, "relu", "sinusoidal")),
        ("nano", (64, 4, 4, 128, 512, "gelu_tanh", "learned")),
        ("gpt2", (1024, 12, 12, 768, 3072, "gelu_tanh", "learned")),
        ("gpt2-medium", (1024, 24, 16, 1024, 4096, "gelu_tanh", "learned")),
        ("gpt2-large", (1024, 36, 20, 1280, 5120, "gelu_tanh", "learned")),
        ("gpt2-xl", (1024, 48, 25, 1600, 6400, "gelu_tanh", "learned")),
    ],
)
def test_presets(name, sizes):
    """Each preset is a valid configuration with the sizes it is known by."""
    config = preset(name, vocab_size=50257)
    fields = ("context_length", "n_layer", "n_head", "d_model", "d_ff", "activation", "position")
    assert tuple(getattr(config, field) for field in fields) == sizes
    assert config.vocab_size == 50257


def test_every_preset_is_tested():
    """The table above has all presets."""
    sized = {"tense", "nano", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"}
    assert PRESETS.keys() == sized | {"modern"} | PUBLISHED.keys()


# As published, with the vocabulary of each.
PUBLISHED = {
    "llama-3.2-1b": (128_256, 1_235_814_400),
    "smollm2-135m": (49_152, 134_515_008),
    "qwen2.5-0.5b": (151_936, 494_032_768),
    "qwen3-0.6b": (151_936, 596_049_920),
    "mistral-7b": (32_000, 7_241_732_096),
    "gemma-2-2b": (256_000, 2_614_341_888),
    "gemma-3-270m": (262_144, 268_098_176),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    """A preset of a published model has as many parameters as it."""
    vocab_size, parameters = PUBLISHED[name]
    assert parameter_count(preset(name, vocab_size=vocab_size)) == parameters


def test_modern_is_as_large_as_nano():
    """The two presets that are compared have the same number of parameters, within 2 %."""
    modern, nano = (parameter_count(preset(name, vocab_size=65)) for name in ("modern", "nano"))
    assert abs(modern / nano - 1) < 0.02


def test_layers_of_a_pattern():
    """A pattern repeats over the layers; sliding layers have the window and their own theta."""
    config = preset("gemma-3-270m", vocab_size=9)
    assert [config.layer(place).window for place in range(12)] == [*[512] * 5, None] * 2
    assert [config.layer(place).rotary.theta for place in (0, 4, 5, 6)] == [1e4, 1e4, 1e6, 1e4]
    fewer = preset("gemma-3-270m", vocab_size=9, n_layer=2)
    assert [fewer.layer(place).window for place in (0, 1)] == [512, 512]
    assert preset("gemma-2-2b", vocab_size=9, n_layer=1).layer(0).window == 4096
    assert config.with_layers(6).layer(5).window is None


def test_preset_overrides():
    """Overrides replace fields; a new width keeps the feed-forward at four times, unless it is given too."""
    config = preset("nano", vocab_size=11, n_layer=2, dropout=0.2)
    assert (config.n_layer, config.dropout, config.d_ff) == (2, 0.2, 512)
    assert preset("tense", vocab_size=11, d_model=8).d_ff == 32
    assert preset("tense", vocab_size=11, d_model=8, d_ff=10).d_ff == 10
    gemma = preset("gemma-2-2b", vocab_size=11, d_model=64)
    assert (gemma.d_ff, gemma.embedding_scale) == (256, 8.0)  # √64
    assert preset("gemma-2-2b", vocab_size=11, d_model=64, embedding_scale=2.0).embedding_scale == 2.0
    assert preset("tense", vocab_size=11).d_model == 96  # an override leaves no trace in the preset


def test_preset_refuses():
    """An unknown preset is refused with the names there are; an impossible override by its field."""
    with pytest.raises(ConfigError, match="unknown preset 'gpt3'; choose one of tense, nano, modern, gpt2"):
        preset("gpt3", vocab_size=11)
    with pytest.raises(ConfigError, match="n_head 5"):
        preset("nano", vocab_size=11, n_head=5)
    for name in ("d_model", "n_head", "n_layer"):
        for value in (0, "4", 2.5, None, 10**400):
            with pytest.raises(ConfigError, match=f"{name} must be a whole number from 1"):
                preset("gemma-2-2b", vocab_size=11, **{name: value})
