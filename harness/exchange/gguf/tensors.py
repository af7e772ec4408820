"""A GGUF file's tensors as Hugging Face has them: their names, and what llama.cpp's converter did to them undone.

Source: github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py, and the table of names in gguf-py.
"""

import re
from functools import partial

import numpy as np

from contract.errors import UserError
from harness.exchange.gguf.file import GGUF, GGUFTensor

# GGUF's names to Hugging Face's; `{}` is the layer's number, a weight or a bias follows.
_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_HEAD_NORMS = {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
_SANDWICH = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}
NAMES = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | _HEAD_NORMS,
    "gemma2": _LLAMA | _SANDWICH,
    "gemma3": _LLAMA | _HEAD_NORMS | _SANDWICH,
    "gpt2": _GPT2,
}
FREQUENCIES = "rope_freqs.weight"


def as_published(file: GGUF, architecture: str, fields: dict, tied: bool) -> dict[str, GGUFTensor]:
    """The tensors by Hugging Face's names, each with what undoes its conversion."""
    stored = {}
    for name, tensor in file.tensors.items():
        if name == FREQUENCIES or (tied and name == "output.weight"):
            continue
        layer, module, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*?)\.?(weight|bias|)", name).groups()
        theirs = NAMES[architecture].get(module if layer is None else f"blk.{{}}.{module}")
        if theirs is None or not kind:
            raise UserError(
                f"{file.path} holds the tensor {name}, which is none of {architecture}'s that this project knows"
            )
        stored[f"{theirs.format(layer)}.{kind}"] = _undone(tensor, architecture, module, kind, fields)
    return stored


def _undone(tensor: GGUFTensor, architecture: str, module: str, kind: str, fields: dict) -> GGUFTensor:
    """The tensor, with what its reading has to undo."""
    if architecture == "llama" and module in ("attn_q", "attn_k"):
        heads = fields["num_attention_heads" if module == "attn_q" else "num_key_value_heads"]
        if tensor.shape[0] % (2 * heads) == 0:  # an importer refuses other shapes
            return tensor._replace(undo=partial(half_split, heads=heads))
    if architecture.startswith("gemma") and module.endswith("norm"):
        return tensor._replace(undo=_minus_one)
    if architecture == "gpt2" and kind == "weight" and len(tensor.shape) == 2 and "embd" not in module:
        return tensor._replace(undo=np.transpose, transposed=True) if module != "output" else tensor
    return tensor


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys whose rotated pairs are neighbours, as pairs half a head apart."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _minus_one(weight: np.ndarray) -> np.ndarray:
    """Gemma's norms multiply by 1 + w, which the file holds."""
    return weight - weight.dtype.type(1)
