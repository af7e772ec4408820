"""Hugging Face's classes of the modern families as witnesses: code that nobody here wrote.

Their norms, softmax and rotary angles are computed in float32 whatever the model's type. So they are held against the
twins twice: in float32 as they are, and in float64 with those casts lifted (`lifted`), where all formulas stay theirs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from unittest.mock import patch

import numpy as np

from contract.config import ModelConfig
from contract.weights import weight_table

# What each family computes, on shapes that can see its porters' mistakes: texts longer than the window, H·D ≠ C,
# 1 < K < H, positions past the scaling's knee, several layers of each kind.
_SHAPE = {
    "vocab_size": 19, "context_length": 80, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "d_model": 16, "d_ff": 20,
    "head_size": 6, "activation": "silu", "position": "rotary", "norm": "rms_norm", "feed_forward": "gated",
    "bias": False,
}  # fmt: skip
_GEMMA = {
    "norm": "rms_norm_plus_one", "block": "sandwich", "activation": "gelu_tanh", "norm_eps": 1e-6, "window": 5,
    "embedding_scale": 4.0,
}  # fmt: skip
_LLAMA_3 = {"scaling": "llama3", "theta": 50.0, "factor": 8.0, "original_context_length": 24}
FAMILIES: dict[str, tuple[str, dict]] = {
    "Llama": ("llama", {}),
    "Llama 3": ("llama", {"rotary": _LLAMA_3, "tie_embeddings": False}),
    "Llama, linear scaling": ("llama", {"rotary": {"scaling": "linear", "factor": 4.0}, "norm_eps": 1e-3}),
    "Mistral": ("mistral", {"window": 5, "layer_pattern": ["sliding"], "tie_embeddings": False}),
    "Qwen 2": ("qwen2", {"query_key_value_bias": True, "rotary": {"theta": 100.0}, "head_size": 4}),
    "Qwen 3": ("qwen3", {"query_key_norm": "head", "rotary": {"theta": 100.0}, "d_model": 18}),
    "Gemma 2": (
        "gemma2",
        _GEMMA | {
            "score_cap": 2.0, "logit_cap": 3.0, "attention_scale": 11**-0.5, "layer_pattern": ["sliding", "full"],
        },
    ),
    "Gemma 3": (
        "gemma3",
        _GEMMA | {
            "query_key_norm": "head", "attention_scale": 11**-0.5, "layer_pattern": ["sliding", "sliding", "full"],
            "rotary": {"theta": 300.0, "scaling": "linear", "factor": 2.0}, "local_rotary": {"theta": 30.0},
            "n_layer": 6,
        },
    ),
}  # fmt: skip
_CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2", "gemma3": "Gemma3",
}  # fmt: skip


def family_config(title: str) -> ModelConfig:
    """The configuration of one of `FAMILIES`."""
    return ModelConfig(**{**_SHAPE, **FAMILIES[title][1]})


def published_model(title: str, weights, dtype: str):
    """Hugging Face's model of one of `FAMILIES` with these weights, its attention written out; in evaluation."""
    import torch
    import transformers

    family, _ = FAMILIES[title]
    config, text = family_config(title), "Text" if family == "gemma3" else ""
    name = _CLASSES[family]
    settings = getattr(transformers, f"{name}{text}Config")(**_fields(family, config))
    model = getattr(transformers, f"{name}ForCausalLM")(settings).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for ours, theirs in _places(family, config).items():
            rows = weights[ours]
            for parameter in map(model.get_parameter, theirs):
                parameter.copy_(torch.tensor(rows[: len(parameter)]))
                rows = rows[len(parameter) :]
    return model


def published_gradients(title: str, model) -> dict[str, np.ndarray]:
    """Its gradients by our names, in our layout."""
    family, _ = FAMILIES[title]
    places = _places(family, family_config(title))
    return {
        ours: np.concatenate([model.get_parameter(name).grad.numpy() for name in theirs])
        for ours, theirs in places.items()
    }


def _fields(family: str, config: ModelConfig) -> dict:
    """The configuration in their words."""
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": _rope(config.rotary),
        "attn_implementation": "eager",
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    kinds = [
        "full_attention" if config.layer(place).window is None else "sliding_attention"
        for place in range(config.n_layer)
    ]
    if family in ("qwen2", "qwen3", "gemma2", "gemma3"):
        fields |= {"layer_types": kinds}
    if config.window:
        fields |= {"sliding_window": config.window}
    if family.startswith("gemma"):
        fields |= {
            "query_pre_attn_scalar": round(config.attention_scale**-2),
            "attn_logit_softcapping": config.score_cap,
            "final_logit_softcapping": config.logit_cap,
            "hidden_activation": "gelu_pytorch_tanh",
        }
    if family == "gemma3":
        ropes = {"full_attention": config.rotary, "sliding_attention": config.local_rotary}
        fields |= {"rope_parameters": {kind: _rope(rotary) for kind, rotary in ropes.items()}}
    return fields


def _rope(rotary) -> dict:
    fields = {"rope_type": "default", "rope_theta": rotary.theta}
    if rotary.scaling != "none":
        fields |= {"rope_type": rotary.scaling, "factor": rotary.factor}
    if rotary.scaling == "llama3":
        fields |= {
            "low_freq_factor": rotary.low_frequency_factor,
            "high_freq_factor": rotary.high_frequency_factor,
            "original_max_position_embeddings": rotary.original_context_length,
        }
    return fields


def _places(family: str, config: ModelConfig) -> dict[str, list[str]]:
    """Our name of each weight -> theirs, whose rows ours holds one below the other."""
    sandwich = config.block == "sandwich"
    layer = {
        "norm_1.weight": ["input_layernorm.weight"],
        "attention.query_key_value.weight": [f"self_attn.{role}_proj.weight" for role in "qkv"],
        "attention.query_key_value.bias": [f"self_attn.{role}_proj.bias" for role in "qkv"],
        "attention.query_norm.weight": ["self_attn.q_norm.weight"],
        "attention.key_norm.weight": ["self_attn.k_norm.weight"],
        "attention.output.weight": ["self_attn.o_proj.weight"],
        # The same name in both kinds of block, for two different norms.
        "post_norm_1.weight": ["post_attention_layernorm.weight"],
        "norm_2.weight": [f"{'pre_feedforward' if sandwich else 'post_attention'}_layernorm.weight"],
        "feed_forward.gate.weight": ["mlp.gate_proj.weight"],
        "feed_forward.up.weight": ["mlp.up_proj.weight"],
        "feed_forward.down.weight": ["mlp.down_proj.weight"],
        "post_norm_2.weight": ["post_feedforward_layernorm.weight"],
    }
    outside = {
        "token_embedding.weight": ["model.embed_tokens.weight"],
        "final_norm.weight": ["model.norm.weight"],
        "output.weight": ["lm_head.weight"],
    }
    places = {}
    for name in weight_table(config):
        _, _, inside = name.partition("blocks.")
        place, _, role = inside.partition(".")
        places[name] = (
            [f"model.layers.{place}.{theirs}" for theirs in layer[role]] if inside else outside[name]
        )
    return places


@contextmanager
def lifted() -> Iterator[None]:
    """Inside, Hugging Face's modules compute in float64 what they cast to float32; no formula of theirs is touched.

    Their name `torch` stands for a module whose float32 is float64, and `Tensor.float` gives float64. A model must be
    made inside too, since it computes its frequencies and scales when it is made.
    """
    import torch

    class Lifted(ModuleType):
        float32 = float = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    modules = [f"{name}.modeling_{name}" for name in _CLASSES]
    with ExitStack() as stack:
        for module in [
            *(import_module(f"transformers.models.{name}") for name in modules),
            import_module("transformers.modeling_rope_utils"),
        ]:
            stack.enter_context(patch.object(module, "torch", Lifted("torch")))
        stack.enter_context(patch.object(torch.Tensor, "float", torch.Tensor.double))
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
