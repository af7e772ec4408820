"""Named configurations: two for a laptop, and published models in their own shapes.

Sizes are those of the published configuration files; the vocabulary is the tokenizer's, so it is not part of them.
"""

from contract.checks import check_whole
from contract.config import ModelConfig
from contract.errors import ConfigError


def _gpt2_shape(n_layer: int, n_head: int, d_model: int) -> dict:
    """A size as published by Radford et al. 2019 (table 2): GELU, learned positions, context 1024."""
    return {
        "context_length": 1024,
        "n_layer": n_layer,
        "n_head": n_head,
        "d_model": d_model,
        "d_ff": 4 * d_model,
        "activation": "gelu_tanh",
        "position": "learned",
    }


# What Llama, Mistral and Qwen share (Touvron et al. 2023, section 2.2).
_LLAMA = {
    "activation": "silu",
    "position": "rotary",
    "norm": "rms_norm",
    "feed_forward": "gated",
    "bias": False,
}
# What Gemma 2 and 3 share (Gemma Team 2024, section 2).
_GEMMA = _LLAMA | {
    "activation": "gelu_tanh",
    "norm": "rms_norm_plus_one",
    "norm_eps": 1e-6,
    "block": "sandwich",
    "attention_scale": 256**-0.5,
}

PRESETS: dict[str, dict] = {
    "tense": {
        "context_length": 32,
        "n_layer": 3,
        "n_head": 4,
        "d_model": 96,
        "d_ff": 384,
        "activation": "relu",
        "position": "sinusoidal",
    },
    "nano": {**_gpt2_shape(4, 4, 128), "context_length": 64},
    "modern": _LLAMA
    | {
        "context_length": 64,
        "n_layer": 4,
        "n_head": 4,
        "n_kv_head": 2,
        "d_model": 128,
        "d_ff": 384,
        "query_key_norm": "head",
    },
    "gpt2": _gpt2_shape(12, 12, 768),
    "gpt2-medium": _gpt2_shape(24, 16, 1024),
    "gpt2-large": _gpt2_shape(36, 20, 1280),
    "gpt2-xl": _gpt2_shape(48, 25, 1600),
    "llama-3.2-1b": _LLAMA
    | {
        "context_length": 131_072,
        "n_layer": 16,
        "n_head": 32,
        "n_kv_head": 8,
        "d_model": 2048,
        "d_ff": 8192,
        "rotary": {"theta": 500_000.0, "scaling": "llama3", "factor": 32.0},
    },
    "smollm2-135m": _LLAMA
    | {
        "context_length": 8192,
        "n_layer": 30,
        "n_head": 9,
        "n_kv_head": 3,
        "d_model": 576,
        "d_ff": 1536,
        "rotary": {"theta": 100_000.0},
    },
    "qwen2.5-0.5b": _LLAMA
    | {
        "context_length": 32_768,
        "n_layer": 24,
        "n_head": 14,
        "n_kv_head": 2,
        "d_model": 896,
        "d_ff": 4864,
        "norm_eps": 1e-6,
        "query_key_value_bias": True,
        "rotary": {"theta": 1_000_000.0},
    },
    "qwen3-0.6b": _LLAMA
    | {
        "context_length": 40_960,
        "n_layer": 28,
        "n_head": 16,
        "n_kv_head": 8,
        "head_size": 128,
        "d_model": 1024,
        "d_ff": 3072,
        "norm_eps": 1e-6,
        "query_key_norm": "head",
        "rotary": {"theta": 1_000_000.0},
    },
    "mistral-7b": _LLAMA
    | {
        "context_length": 32_768,
        "n_layer": 32,
        "n_head": 32,
        "n_kv_head": 8,
        "d_model": 4096,
        "d_ff": 14_336,
        "tie_embeddings": False,
        "window": 4096,
        "layer_pattern": ("sliding",),
    },
    "gemma-2-2b": _GEMMA
    | {
        "context_length": 8192,
        "n_layer": 26,
        "n_head": 8,
        "n_kv_head": 4,
        "head_size": 256,
        "d_model": 2304,
        "d_ff": 9216,
        "embedding_scale": 2304**0.5,
        "score_cap": 50.0,
        "logit_cap": 30.0,
        "window": 4096,
        "layer_pattern": ("sliding", "full"),
    },
    "gemma-3-270m": _GEMMA
    | {
        "context_length": 32_768,
        "n_layer": 18,
        "n_head": 4,
        "n_kv_head": 1,
        "head_size": 256,
        "d_model": 640,
        "d_ff": 2048,
        "query_key_norm": "head",
        "embedding_scale": 640**0.5,
        "window": 512,
        "layer_pattern": ("sliding",) * 5 + ("full",),
        "rotary": {"theta": 1_000_000.0},
        "local_rotary": {"theta": 10_000.0},
    },
}


def preset(name: str, *, vocab_size: int, **overrides) -> ModelConfig:
    """The configuration called `name`, with `overrides` put over its fields.

    What follows from a field that is overridden follows it: d_ff and n_kv_head keep their proportion to d_model and
    n_head, Gemma's embedding_scale stays √C, and fewer layers keep the beginning of the pattern.
    Raises ConfigError for an unknown name or an impossible combination.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    fields = PRESETS[name]
    for size in ("d_model", "n_head", "n_layer"):  # others are computed from them
        if size in overrides:
            check_whole(size, overrides[size], 1)
    if "d_model" in overrides:
        overrides.setdefault("d_ff", fields["d_ff"] * overrides["d_model"] // fields["d_model"])
        if "embedding_scale" in fields:
            overrides.setdefault("embedding_scale", overrides["d_model"] ** 0.5)  # Gemma's √C
    if "n_head" in overrides and "n_kv_head" in fields:
        H = overrides["n_head"]
        most = max(1, fields["n_kv_head"] * H // fields["n_head"])
        overrides.setdefault("n_kv_head", next((K for K in range(most, 0, -1) if H % K == 0), 1))
    n_layer = overrides.pop("n_layer", None)
    config = ModelConfig(vocab_size=vocab_size, **{**fields, **overrides})
    return config if n_layer is None else config.with_layers(n_layer)
