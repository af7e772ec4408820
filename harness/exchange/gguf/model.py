"""A GGUF file's model in the terms of Hugging Face: the fields of its `config.json`, made of the metadata.

What llama.cpp's converter does not write down, llama.cpp knows of the architecture, and so does this file.

Source: github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py and src/llama-model.cpp.
"""

from dataclasses import dataclass

import numpy as np

from contract.errors import UserError
from contract.schema import require, shortened
from harness.exchange.gguf.file import GGUF, GGUFTensor
from harness.exchange.gguf.rope import llama3_settings
from harness.exchange.gguf.tensors import FREQUENCIES, NAMES, as_published
from harness.exchange.published import Published

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

# Keys that change nothing, or nothing while they have this value.
_NO_EFFECT = (
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
)
_FIXED = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
}


def read_gguf(file: GGUF) -> Published:
    """The model as Hugging Face would publish it; its tensors are not read yet.

    Raises UserError naming the architecture, the metadata or the tensor that is missing or computes another function.
    """
    keys = _Keys.of(file)
    output, embedding = file.tensors.get("output.weight"), file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{file.path} lacks the tensor token_embd.weight; get the file again")
    tied = output is None or _same(output, embedding)
    fields = _gpt2_fields(keys) if keys.architecture == "gpt2" else _llama_fields(keys)
    keys.check_all_taken()
    fields |= {
        "architectures": [ARCHITECTURES[fields["model_type"]]],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": tied,
    }
    return Published(file.path, fields, as_published(file, keys.architecture, fields, tied))


def _same(output: GGUFTensor, embedding: GGUFTensor) -> bool:
    """Whether the output repeats the embedding, as GPT-2's older converter wrote a tied one."""
    alike = (output.kind, output.shape) == (embedding.kind, embedding.shape)
    return alike and np.array_equal(output.stored(), embedding.stored())


@dataclass
class _Keys:
    """The metadata of the architecture, taken key by key, so that a key that nothing took is noticed."""

    file: GGUF
    architecture: str
    left: dict[str, object]

    @classmethod
    def of(cls, file: GGUF) -> "_Keys":
        architecture = file.metadata.get("general.architecture")
        if architecture not in NAMES:
            raise UserError(
                f"{file.path} is of the architecture {shortened(architecture)}; GGUF files of {', '.join(NAMES)} "
                "can be imported"
            )
        start = f"{architecture}."
        own = {key[len(start) :]: value for key, value in file.metadata.items() if key.startswith(start)}
        return cls(file, architecture, own)

    def take(self, key: str, schema=int, default=...):
        """The value of a key without its architecture. Raises UserError if it is missing or of another type."""
        value = self.left.pop(key, default)
        if value is ...:
            raise UserError(
                f"{self.file.path} has no {self.architecture}.{key} in its metadata; get the file again"
            )
        try:
            require(value, schema if default is ... else (schema, type(default)))
        except ValueError as error:
            self.refuse(key, error)
        return value

    def refuse(self, key: str, reason):
        raise UserError(f"{self.file.path}: {self.architecture}.{key}: {reason}")

    def check_all_taken(self):
        """Refuse what is left, unless it is known to change nothing."""
        for key, value in self.left.items():
            if key in _NO_EFFECT or (key in _FIXED and value == _FIXED[key]):
                continue
            self.refuse(
                key, f"{shortened(value)} may change the function, and this project does not know how"
            )


def _n_layers(keys: _Keys) -> int:
    """The number of layers, of which the file holds the tensors."""
    n_layers = keys.take("block_count")
    found = {name.split(".")[1] for name in keys.file.tensors if name.startswith("blk.")}
    if len(found) != n_layers:
        keys.refuse(
            "block_count", f"{n_layers:,} layers, but the file holds tensors of {len(found)}; get it again"
        )
    return n_layers


def _gpt2_fields(keys: _Keys) -> dict:
    return {
        "model_type": "gpt2",
        "n_layer": _n_layers(keys),
        "n_positions": keys.take("context_length"),
        "n_embd": keys.take("embedding_length"),
        "n_inner": keys.take("feed_forward_length"),
        "n_head": keys.take("attention.head_count"),
        "layer_norm_epsilon": keys.take("attention.layer_norm_epsilon", float),
        "activation_function": "gelu_new",
    }


def _llama_fields(keys: _Keys) -> dict:
    """The fields of all but GPT-2."""
    heads, width = keys.take("attention.head_count", range(1, 1 << 32)), keys.take("embedding_length")
    head_dim = keys.take("attention.key_length", int, width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.take(key, int, head_dim) != head_dim:
            keys.refuse(key, f"differs from {head_dim}, the size of a head's keys, which is another function")
    fields = {
        "model_type": keys.architecture,
        "num_hidden_layers": _n_layers(keys),
        "max_position_embeddings": keys.take("context_length"),
        "hidden_size": width,
        "intermediate_size": keys.take("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.take("attention.head_count_kv", range(1, 1 << 32), heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.take("attention.layer_norm_rms_epsilon", float),
        "rope_parameters": _rope(keys, head_dim),
    }
    if keys.architecture == "qwen2" and head_dim * heads == width:
        del fields["head_dim"]  # no field of Qwen2's
    return fields | _FAMILIES[keys.architecture](keys, fields)


def _llama(keys: _Keys, fields: dict) -> dict:
    """Llama, or Mistral where there is a sliding window: the converter calls both llama."""
    if window := keys.take("attention.sliding_window", int, 0):
        return {"model_type": "mistral", "hidden_act": "silu", "sliding_window": window}
    biases = {name.split(".")[-2] for name in keys.file.tensors if name.endswith(".bias")}
    return {
        "hidden_act": "silu",
        "attention_bias": any(name.startswith("attn") for name in biases),
        "mlp_bias": any(name.startswith("ffn") for name in biases),
    }


def _qwen2(keys: _Keys, fields: dict) -> dict:
    return {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3(keys: _Keys, fields: dict) -> dict:
    bias = any(name.endswith("attn_q.bias") for name in keys.file.tensors)
    return {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": bias}


def _gemma2(keys: _Keys, fields: dict) -> dict:
    """Values that older files omit are llama.cpp's, those of the published models."""
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": _scalar(keys, fields, 46),  # layers of the 27B model
        "attn_logit_softcapping": keys.take("attn_logit_softcapping", float, 50.0),
        "final_logit_softcapping": keys.take("final_logit_softcapping", float, 30.0),
        "sliding_window": keys.take("attention.sliding_window", int, 4096),
        "layer_types": _layer_types(keys, fields, 2),
    }


def _gemma3(keys: _Keys, fields: dict) -> dict:
    local = {"rope_type": "default", "rope_theta": float(keys.take("rope.freq_base_swa", float, 10000.0))}
    return {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": _scalar(keys, fields, 62),  # layers of the 27B model
        "attn_logit_softcapping": keys.take("attn_logit_softcapping", float, None),
        "final_logit_softcapping": keys.take("final_logit_softcapping", float, None),
        "sliding_window": keys.take("attention.sliding_window"),
        "layer_types": _layer_types(keys, fields, 6),
        "rope_parameters": {
            "full_attention": fields["rope_parameters"],
            "sliding_attention": local,
        },
    }


_FAMILIES = {"llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "gemma2": _gemma2, "gemma3": _gemma3}


def _scalar(keys: _Keys, fields: dict, layers_of_27b: int) -> int | float:
    """Gemma's divisor of the scores, squared: a head's size, but in the 27B models the channels for each head."""
    scale = keys.take("attention.scale", float, None)
    if scale is not None:
        return round(scale**-2, 3)
    if fields["num_hidden_layers"] == layers_of_27b:
        return fields["hidden_size"] // fields["num_attention_heads"]
    return fields["head_dim"]


def _layer_types(keys: _Keys, fields: dict, default: int) -> list[str]:
    """Which layers slide: all but every n-th, or as a list says."""
    n_layers = fields["num_hidden_layers"]
    pattern = keys.take("attention.sliding_window_pattern", (int, list), default)
    if isinstance(pattern, int):
        pattern = [pattern == 0 or (layer + 1) % pattern != 0 for layer in range(n_layers)]
    if len(pattern) != n_layers:
        keys.refuse("attention.sliding_window_pattern", f"{len(pattern)} values for {n_layers} layers")
    return ["sliding_attention" if slides else "full_attention" for slides in pattern]


def _rope(keys: _Keys, head_dim: int) -> dict:
    """The rotary settings, in Hugging Face's newer spelling."""
    theta = 1e6 if keys.architecture == "gemma3" else 1e4  # llama.cpp's, where the file is silent
    theta = float(keys.take("rope.freq_base", float, theta))
    kind = keys.take("rope.scaling.type", str, "none")
    factor = keys.take("rope.scaling.factor", float, 1.0)
    factors = keys.file.tensors.get(FREQUENCIES)
    if kind not in ("none", "linear") or (kind == "linear" and factors):
        known = "llama3 (as the tensor rope_freqs.weight) or linear"
        keys.refuse("rope.scaling.type", f"{shortened(kind)} cannot be imported, only {known}, one of them")
    if factors:
        settings = llama3_settings(factors.read(), theta, head_dim)
        if settings is None:
            raise UserError(
                f"{keys.file.path}: {FREQUENCIES} scales rotary frequencies by another rule than Llama 3's, which "
                "cannot be imported"
            )
        return settings | {"rope_theta": theta}
    if kind == "linear" and factor != 1:
        return {"rope_type": "linear", "factor": factor, "rope_theta": theta}
    return {"rope_type": "default", "rope_theta": theta}
