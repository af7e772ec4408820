"""Small GGUF files, written of `transformers` models as llama.cpp's converter writes them."""

from itertools import cycle

import numpy as np

# What makes the small models of an architecture: H · D differs from C where the family has its own D.
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"sliding_window": 4, "query_pre_attn_scalar": 32, "hidden_activation": "gelu_pytorch_tanh"}
GPT2 = {
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 96,
    "n_positions": 64,
    "vocab_size": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CHANGES = {
    "llama": {"head_dim": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    "mistral": {"sliding_window": 4, "rms_norm_eps": 1e-5},
    "qwen2": {"head_dim": ...},
    "qwen3": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA | {"num_hidden_layers": 7},
    "gpt2": {},
}


def small_model(model_type, **changes):
    """A random model, on which every weight, also a norm's or a bias, matters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = (GPT2 if model_type == "gpt2" else SIZES | CHANGES[model_type]) | changes
    config = AutoConfig.for_model(
        model_type, **{key: value for key, value in fields.items() if value is not ...}
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            mean = float((weight == 1).all())
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.3 + mean)
    return model


def write_gguf(path, model, kinds=None, *, vocabulary=None, more=None, tensors=None):
    """Write a model as its converter would.

    kinds: of the matrices, in turn; None for F32
    vocabulary: a function that adds a tokenizer to the writer; more: one that adds whatever else
    tensors: one that changes the dictionary of GGUF's tensors
    """
    import gguf

    config = model.config
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("small")
    (_gpt2_metadata if arch == "gpt2" else _metadata)(writer, config)
    for change in (vocabulary or _some_tokens, more):
        if change:
            change(writer)
    found = converted(model, arch)
    if tensors:
        tensors(found)
    kinds = cycle(kinds or ["F32"])
    for name, value in found.items():
        kind = gguf.GGMLQuantizationType[next(kinds) if value.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(model, arch):
    """The tensors by GGUF's names, as the file holds them."""
    import gguf

    config = model.config
    key = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names, found = gguf.get_tensor_name_map(key, config.num_hidden_layers), {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if "gemma" in arch and name.endswith("norm.weight"):
            value = value + 1
        if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            value = value.T
        found[names.get_name(name, (".weight", ".bias"))] = np.ascontiguousarray(value)
    return found


def _metadata(writer, config):
    import gguf

    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, cap, None):
            getattr(writer, f"add_{cap}")(getattr(config, cap))
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _gpt2_metadata(writer, config):
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _some_tokens(writer):
    """A vocabulary that nobody reads, of the size of the small models'."""
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{token}>" for token in range(128)])
    writer.add_token_merges([])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
