"""The faults of plumbing that the suite must find: what is wrong between operations, in decoding and in the twin."""

from parity.faults import Fault

_MODEL, _ATTENTION, _GENERATE = "numpy_llm.model", "numpy_llm.attention", "numpy_llm.generate"

# fmt: off
MODEL_FAULTS = [
    Fault("residual: branch added to the norm", f"{_MODEL}.block_forward",
          "residual_forward(x, branch)", "residual_forward(normed, branch)"),
    Fault("attention: dvalue before dropout", f"{_ATTENTION}.attend_backward",
          "cache.weighted_sum, out", "cache.weighted_sum._replace(probabilities=cache.softmax.y), out"),
    Fault("dropout: one mask for all places", f"{_MODEL}._dropout",
          "arguments = x, config.dropout, key, site", 'arguments = x, config.dropout, key, "blocks.0.dropout_1"'),
    Fault("embedding: positions' gradient lost", f"{_MODEL}.GPT.backward",
          '_add(gradients, {"position_embedding.weight": dpositions}, turn)', "pass", "transformers"),
    Fault("tied: the output's gradient lost", f"{_MODEL}.GPT.backward",
          "_add(gradients, {self.output_name: doutput}, turn)",
          "_add(gradients, {} if self.config.tie_embeddings else {self.output_name: doutput}, turn)",
          "differences"),
    Fault("tied: the embedding's gradient lost", f"{_MODEL}.GPT.backward",
          '_add(gradients, {"token_embedding.weight"',
          'self.config.tie_embeddings or _add(gradients, {"token_embedding.weight"', "transformers"),
    Fault("gradients overwritten, not added", f"{_MODEL}._add", "total += gradient", "total[...] = gradient",
          "accumulation"),
    Fault("decay decoupled in Adam", "numpy_llm.adam.Adam", "decoupled = False", "decoupled = True", "adam"),
    Fault("sign of the decay in Adam", "numpy_llm.adam.update_piece", "g + decay * weight", "g - decay * weight",
          "adam"),
]

DECODING_FAULTS = [
    Fault("cache: one position short", f"{_GENERATE}.next_token_logits",
          "+= len(tokens)", "+= len(tokens) - 1", "generation"),
    Fault("cache: keys for values", f"{_GENERATE}.KeyValueCache.extend",
          "values[:, :, self.length : stop] = value", "values[:, :, self.length : stop] = key", "generation"),
    Fault("cache: position of the new token lost", f"{_MODEL}.GPT.stream_forward",
          "kv_cache.length if kv_cache is not None else 0", "0", "generation"),
    Fault("window one token short", "contract.decoding._decode",
          "tokens[-context_length:]", "tokens[1 - context_length :]", "generation"),
    Fault("logits of the first token", f"{_GENERATE}.next_token_logits", "x[0, -1]", "x[0, 0]", "generation"),
    Fault("draw of another position", "contract.decoding._decode",
          "position=len(tokens)", "position=len(tokens) - 1", "generation"),
    Fault("draw of another sequence", f"{_GENERATE}.generate", "seed, sequence)", "seed, 0)", "generation"),
    Fault("top-k forgotten", f"{_GENERATE}.generate", "temperature, top_k,", "temperature, None,", "generation"),
]

TWIN_FAULTS = [
    Fault("twin: fused attention not causal", "torch_llm.attention.Attention.forward",
          "is_causal=T > 1", "is_causal=False"),
    Fault("twin: mask sees one token of the future", "torch_llm.attention.causal_mask", "1 + S - T", "2 + S - T"),
    Fault("twin: 1/√D forgotten where written out", "torch_llm.attention.attend",
          "config.head_size**-0.5", "1.0"),
    Fault("twin: values half cut from the graph", "torch_llm.attention.weighted_sum",
          "probabilities @ value", "probabilities @ ((value + value.detach()) / 2)"),
    Fault("twin: erf for tanh", "torch_llm.feed_forward.gelu_tanh", '"tanh"', '"none"'),
    Fault("twin: norm_eps ignored", "torch_llm.norms.layer_norm",
          ".shape, weight, bias, eps)", ".shape, weight, bias)"),
    Fault("twin: dropout of PyTorch's own draws", "torch_llm.layers.dropout",
          "x * _dropout_mask_like(x, rate, key, site)", "F.dropout(x, rate)"),
    Fault("twin: decay of biases and norms", "torch_llm.adam.Adam.__init__",
          '"weight_decay": 0.0', '"weight_decay": weight_decay', "adamw"),
    Fault("twin: clipped by norm + 1e-6", "torch_llm.adam.clip_gradients",
          "max_norm / norm", "max_norm / (norm + 1e-6)", "adam"),
    Fault("twin: cache: one position short", "torch_llm.generate.next_token_logits",
          "+= len(tokens)", "+= len(tokens) - 1", "generation"),
]
# fmt: on

FAULTS = MODEL_FAULTS + DECODING_FAULTS + TWIN_FAULTS
