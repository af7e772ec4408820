"""Low-rank pairs in the model's configuration."""

import json

import pytest

from contract.config import ModelConfig
from contract.errors import ConfigError

TARGETS = "lora_targets must be a list of query_key_value, output, up, down, got"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_rank": 0}, "lora_rank must be a whole number of at least 1, got 0"),
        ({"lora_rank": "4"}, "got '4'"),
        ({"lora_rank": True}, "got True"),
        ({"lora_rank": 7}, "lora_rank must be at most d_model, 6"),
        *(
            ({"lora_rank": 2, "lora_alpha": value}, f"lora_alpha .* got {value!r}")
            for value in (0, -1, "2", 1e999)
        ),
        ({"lora_rank": 2, "lora_alpha": float("nan")}, "lora_alpha .* got nan"),
        *(
            ({"lora_rank": 2, "lora_targets": value}, TARGETS)
            for value in ((), ["gate"], "up", [["up"]], ["up", "x"])
        ),
        ({"lora_alpha": 4}, "lora_alpha is set, but lora_rank is not"),
        ({"lora_targets": ["up"]}, "lora_targets is set, but lora_rank is not"),
    ],
)
def test_what_does_not_fit(tiny_config, fields, words):
    """Each is one line that names the field."""
    with pytest.raises(ConfigError, match=words) as error:
        tiny_config(**fields)
    assert "\n" not in str(error.value)


def test_what_is_filled_in(tiny_config):
    """alpha is twice the rank unless given; targets are in the model's order, a gate's only where there is one."""
    config = tiny_config(lora_rank=2)
    assert (config.lora_alpha, config.lora_scale) == (4, 2)
    assert config.lora_targets == ("query_key_value", "output", "up", "down")
    gated = tiny_config(lora_rank=2, lora_alpha=1, feed_forward="gated")
    assert (gated.lora_scale, gated.lora_targets) == (
        0.5,
        ("query_key_value", "output", "gate", "up", "down"),
    )
    assert tiny_config(lora_rank=2, lora_targets=["up", "output", "up"]).lora_targets == ("output", "up")
    assert ModelConfig.from_dict(json.loads(json.dumps(gated.to_dict()))) == gated
