"""Every field of the families' config classes in `transformers`, and what import makes of a change to it."""

from typing import NamedTuple

GELU = "gelu_pytorch_tanh"


class Change(NamedTuple):
    """A field with another value.

    outcome: "config" (ours follows it), "weights" (they do), "harmless" (the function is the same) or "refused"
    beside: fields that must change with it
    """

    field: str
    value: object
    outcome: str
    beside: dict = {}  # noqa: RUF012  never written to

    @property
    def fields(self) -> dict:
        return {self.field: self.value, **self.beside}

    @property
    def title(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.fields.items())


def _changes(outcome: str, *rows: dict) -> list[Change]:
    """One change for each field of the first row; each further row is one change, of its first field."""
    first, *others = rows
    several = [(*next(iter(row.items())), outcome, dict(list(row.items())[1:])) for row in others]
    return [Change(name, value, outcome) for name, value in first.items()] + [Change(*row) for row in several]


SMALL = {
    "vocab_size": 19, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
_GEMMA = {"head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 11}

# A small model of each family, as the fields of its config.json.
BASES: dict[str, dict] = {
    "gpt2": {"vocab_size": 19, "n_positions": 64, "n_embd": 16, "n_layer": 3, "n_head": 4},
    "llama": SMALL | {"head_dim": 6},
    "mistral": SMALL | {"head_dim": 6, "sliding_window": 5},
    "qwen2": SMALL | _SLIDING,
    "qwen3": SMALL | _SLIDING | {"head_dim": 6},
    "gemma2": SMALL | _GEMMA,
    "gemma3_text": SMALL | _GEMMA | {"num_hidden_layers": 6},
}
BASES = {family: {"model_type": family} | fields for family, fields in BASES.items()}
CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    **{
        family: (f"{name}{text}Config", f"{name}ForCausalLM")
        for family, name, text in (
            ("llama", "Llama", ""), ("mistral", "Mistral", ""), ("qwen2", "Qwen2", ""), ("qwen3", "Qwen3", ""),
            ("gemma2", "Gemma2", ""), ("gemma3_text", "Gemma3", "Text"),
        )
    },
}  # fmt: skip

# Fields that every class has.
_EVERYWHERE = [
    *_changes(
        "harmless",
        {
            "transformers_version": "4.0.0", "output_hidden_states": True, "return_dict": False, "dtype": "float16",
            "chunk_size_feed_forward": 1, "id2label": {"0": "a"}, "label2id": {"a": 0}, "problem_type": "regression",
            "initializer_range": 0.5, "use_cache": False, "pad_token_id": 3, "bos_token_id": 4, "eos_token_id": [5, 6],
            "_name_or_path": "a/b", "output_attentions": True,
        },
    ),
    *_changes(
        "refused",
        {
            "is_encoder_decoder": True, "model_type": "opt", "architectures": ["LlamaForSequenceClassification"],
            "is_causal": False, "quantization_config": {"bits": 4}, "per_layer_config": {"1": {"hidden_act": "relu"}},
        },
    ),
    *_changes("config", {"vocab_size": 17}),
]  # fmt: skip
_DECODERS = [
    *_EVERYWHERE,
    *_changes(
        "config",
        {
            "hidden_size": 24, "intermediate_size": 7, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 4, "max_position_embeddings": 32, "rms_norm_eps": 0.1, "attention_dropout": 0.25,
        },
        {"num_key_value_heads": 1},
    ),
    *_changes("refused", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, {"hidden_size": 0}),
]  # fmt: skip
_ONE_ROTATION = _changes(
    "config",
    {
        "hidden_act": "relu",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 9.0},
    },
    {"hidden_act": GELU},
)
_EXACT = _changes("refused", {"hidden_act": "gelu"}, {"hidden_act": "gelu_python"})
_HEAD = _changes("config", {"head_dim": 4})
_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_QWEN = _changes(
    "config",
    {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 2, "layer_types": _LAYERS},
    {"max_window_layers": 0},
)
_GEMMAS = [
    *_changes(
        "config",
        {
            "head_dim": 4, "hidden_activation": "silu", "tie_word_embeddings": False, "query_pre_attn_scalar": 5,
            "final_logit_softcapping": 0.5, "sliding_window": 3,
        },
    ),
    *_changes("harmless", {"hidden_act": "gelu"}),
    *_changes(
        "refused",
        {"attention_bias": True, "use_bidirectional_attention": True, "sliding_window": None},
        {"hidden_activation": "gelu"},
    ),
]  # fmt: skip
_SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0}

CHANGES: dict[str, list[Change]] = {
    "gpt2": [
        *_EVERYWHERE,
        *_changes(
            "config",
            {
                "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_inner": 10,
                "activation_function": "relu", "layer_norm_epsilon": 0.1, "tie_word_embeddings": False,
                "resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2,
            },
        ),
        *_changes("weights", {"scale_attn_by_inverse_layer_idx": True}),
        *_changes(
            "harmless",
            {
                "summary_type": "mean", "summary_use_proj": False, "summary_activation": "tanh",
                "summary_proj_to_labels": False, "summary_first_dropout": 0.5, "reorder_and_upcast_attn": True,
                "activation_function": GELU,
            },
        ),
        *_changes(
            "refused",
            {"scale_attn_weights": False, "add_cross_attention": True, "activation_function": "gelu"},
            {"activation_function": "gelu_python"},
        ),
    ],
    "llama": [
        *_DECODERS, *_ONE_ROTATION, *_EXACT, *_HEAD,
        *_changes("refused", {"attention_bias": True, "mlp_bias": True}),
        *_changes("config", {}, {"attention_bias": True, "mlp_bias": True}),
        *_changes("harmless", {"pretraining_tp": 2, "is_llama_config": True}),
    ],
    "mistral": [
        *_DECODERS, *_ONE_ROTATION, *_EXACT, *_HEAD,
        *_changes("config", {"sliding_window": 3}, {"sliding_window": None}),
    ],
    "qwen2": [*_DECODERS, *_ONE_ROTATION, *_EXACT, *_QWEN],
    "qwen3": [*_DECODERS, *_ONE_ROTATION, *_EXACT, *_HEAD, *_QWEN, *_changes("refused", {"attention_bias": True})],
    "gemma2": [
        *_DECODERS, *_GEMMAS,
        *_changes(
            "config",
            {"rope_parameters": _SCALED, "layer_types": [_LAYERS[1], *_LAYERS[:2]], "attn_logit_softcapping": 0.25},
            {"final_logit_softcapping": None}, {"attn_logit_softcapping": None},
        ),
    ],
    "gemma3_text": [
        *_DECODERS, *_GEMMAS,
        *_changes(
            "config",
            {
                "rope_parameters": {"full_attention": _SCALED, "sliding_attention": {"rope_theta": 30.0}},
                "layer_types": _LAYERS * 2, "sliding_window_pattern": 3,
            },
        ),
        *_changes("harmless", {"_sliding_window_pattern": 3}),
        *_changes("refused", {"attn_logit_softcapping": 50.0}),  # their model reads it, and then does not apply it
    ],
}  # fmt: skip
