"""The configurations that published models have, old keys and all, are the presets of their names."""

import pytest

from contract.presets import PRESETS, preset
from harness.exchange.families import family_for, family_of

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
    "mlp_bias": False, "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-05, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip
_QWEN = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "hidden_act": "silu", "initializer_range": 0.02,
    "rms_norm_eps": 1e-06, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
_GEMMA = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "use_cache": True,
}  # fmt: skip
PUBLISHED = {
    "smollm2-135m": _LLAMA | {
        "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192,
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "rope_interleaved": False,
        "rope_scaling": None, "rope_theta": 100000, "transformers_version": "4.40.1", "vocab_size": 49152,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    },
    "llama-3.2-1b": _LLAMA | {
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "transformers_version": "4.45.0.dev0", "vocab_size": 128256,
    },
    "qwen2.5-0.5b": _QWEN | {
        "architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151643, "hidden_size": 896, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0, "sliding_window": 32768,
        "transformers_version": "4.40.1", "use_mrope": False,
    },
    "qwen3-0.6b": _QWEN | {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "eos_token_id": 151645, "head_dim": 128,
        "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "transformers_version": "4.51.0",
    },
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    "gemma-2-2b": _GEMMA | {
        "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 2304,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "rope_theta": 10000.0,
        "sliding_window": 4096, "torch_dtype": "float32", "transformers_version": "4.42.4", "vocab_size": 256000,
    },
    "gemma-3-270m": _GEMMA | {
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None,
        "dtype": "bfloat16", "final_logit_softcapping": None, "hidden_size": 640, "intermediate_size": 2048,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 3, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
        "transformers_version": "4.55.0.dev0", "use_bidirectional_attention": False, "vocab_size": 262144,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_the_presets(name):
    """Every field is taken; what they give is the preset, and what is written of it gives the same again."""
    fields = PUBLISHED[name]
    family = family_of(fields)
    config = preset(name, vocab_size=fields["vocab_size"])
    assert family.config_from_published(fields) == config
    assert family_for(config) is family
    assert family.config_from_published(family.published_config(config, "bfloat16")) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_family(name):
    """A model of any preset can be exported for `transformers`."""
    config = preset(name, vocab_size=300)
    family = family_for(config)
    written = family.published_config(config, "float32")
    assert family_of(written).config_from_published(written) == family.published_terms(config)
