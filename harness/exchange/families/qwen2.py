"""Qwen2 and 2.5, as Hugging Face publishes them: Llama with biases on query, key and value."""

from contract.config import ModelConfig
from contract.errors import UserError
from contract.schema import shortened
from harness.exchange.families.decoder import Decoder, layer_types, sizes_of, windows
from harness.exchange.families.fields import Fields
from harness.exchange.hub import CONFIG


def read_windows(fields: Fields, sizes: dict) -> dict:
    """The last layers slide, from `max_window_layers` on, if any does."""
    used, window = fields.take("use_sliding_window", False), fields.take("sliding_window", 4096)
    first, n_layer = fields.take("max_window_layers", 28), sizes["n_layer"]
    if type(first) is not int or first < 0:
        raise UserError(
            f"{CONFIG}: max_window_layers must be a whole number of at least 0, got {shortened(first)}"
        )
    window = window if used else None
    full = n_layer if window is None else min(first, n_layer)
    return windows(fields.layers(n_layer, ("full",) * full + ("sliding",) * (n_layer - full)), window)


def write_windows(config: ModelConfig) -> dict:
    """The same fields of a configuration."""
    return {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "max_window_layers": [*layer_types(config), "sliding_attention"].index("sliding_attention"),
        "layer_types": layer_types(config),
    }


QWEN2 = Decoder(
    model_type="qwen2",
    title="Qwen2",
    class_name="Qwen2",
    defaults=sizes_of("151936 4096 22016 32 32 32 - 32768") | {"tie_word_embeddings": False},
    ours={"query_key_value_bias": True},
    read=read_windows,
    write=write_windows,
)
