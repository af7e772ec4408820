"""The faults of plumbing that the suite must find: what is wrong between operations, in decoding and in the twin."""

from parity.faults import Fault

_MODEL, _BLOCK, _GENERATE = "numpy_llm.model", "numpy_llm.block", "numpy_llm.generate"
_ATTEND, _ATTENTION = "numpy_llm.attend", "numpy_llm.attention"

# fmt: off
MODEL_FAULTS = [
    Fault("residual: branch added to the norm", f"{_BLOCK}.block_forward",
          "_add_forward(x, branch", "_add_forward(read, branch"),
    Fault("attention: dvalue before dropout", f"{_ATTEND}.attend_backward",
          "cache.weighted_sum, out", "cache.weighted_sum._replace(probabilities=cache.softmax.y), out"),
    Fault("dropout: one mask for all places", f"{_BLOCK}._add_forward",
          'dropout, f"{name}.dropout_{place}"', 'dropout, "blocks.0.dropout_1"'),
    Fault("embedding: positions' gradient lost", f"{_MODEL}.GPT.backward_layers",
          'yield {"position_embedding.weight": dpositions}', "pass", "transformers"),
    Fault("tied: the output's gradient lost", f"{_MODEL}.GPT.backward_layers",
          "yield {self.output_name: doutput}",
          "yield {} if self.config.tie_embeddings else {self.output_name: doutput}",
          "differences"),
    Fault("tied: the embedding's gradient lost", f"{_MODEL}.GPT.backward_layers",
          'yield {"token_embedding.weight"',
          'yield {} if self.config.tie_embeddings else {"token_embedding.weight"', "transformers"),
    Fault("gradients overwritten, not added", "numpy_llm.gradients._add_arrays", "total += gradient",
          "total[...] = gradient",
          "accumulation"),
    Fault("windows and thetas on the wrong layers", f"{_MODEL}.GPT.stream_forward",
          "config.layer(place)", "config.layer(place + 1)"),
    Fault("gate and up exchanged", "numpy_llm.projection.projection_forward",
          'parameters = weights[f"{name}.weight"]',
          'layer, _, role = name.rpartition(".")\n'
          '    other = layer + {"gate": ".up.weight", "up": ".gate.weight"}.get(role, "")\n'
          '    parameters = weights.get(other, weights[f"{name}.weight"])'),
    Fault("heads normed after they are turned", f"{_ATTENTION}._place_forward",
          'if config.query_key_norm == "head":',
          'if rotary is not None:\n'
          '        query, query_rotation = _rotate(query, rotary, start, f"{name}.rotated_query", trace)\n'
          '        key, key_rotation = _rotate(key, rotary, start, f"{name}.rotated_key", trace)\n'
          '        rotary = None\n'
          '    if config.query_key_norm == "head":'),
    Fault("scaled by C/H for the head size", f"{_ATTEND}.attend_forward",
          "config.score_scale", "(config.d_model / config.n_head) ** -0.5"),
    Fault("norm behind a branch put behind the sum", f"{_BLOCK}._add_forward",
          "norms_after, branch,", "norms_after, branch.__iadd__(x) if norms_after else branch,"),
    Fault("decay decoupled in Adam", "numpy_llm.adam.Adam", "decoupled = False", "decoupled = True", "adam"),
    Fault("sign of the decay in Adam", "numpy_llm.adam.update_piece", "g + decay * weight", "g - decay * weight",
          "adam"),
]

DECODING_FAULTS = [
    Fault("cache: one position short", f"{_GENERATE}.next_token_logits",
          "+= tokens.shape[1]", "+= tokens.shape[1] - 1", "generation"),
    Fault("cache: keys for values", f"{_GENERATE}._LayerCache.extend",
          "(key, value)", "(key, key)", "generation"),
    Fault("cache: a window one token short", f"{_GENERATE}._LayerCache.extend",
          "self._window - 1", "self._window - 2", "generation"),
    Fault("cache: position of the new token lost", f"{_MODEL}.GPT.stream_forward",
          "kv_cache.length if kv_cache is not None else 0", "0", "generation"),
    Fault("window one token short", "contract.decoding._decode",
          "tokens[-context_length:]", "tokens[1 - context_length :]", "generation"),
    Fault("logits of the first token", f"{_GENERATE}.next_token_logits", "x[:, -1]", "x[:, 0]", "generation"),
    Fault("draw of another position", "contract.decoding._decode",
          '"position": len(tokens)', '"position": len(tokens) - 1', "generation"),
    Fault("samples: all draw alike", "contract.decoding._decode",
          "sampling.sequence + number", "sampling.sequence", "samples"),
    Fault("samples: rows of those that stopped", "contract.decoding._decode",
          "kv_cache.select(rows)", "kv_cache.select(rows if len(set(rows)) == 1 else list(range(len(rows))))",
          "samples"),
    Fault("samples: none stops", "contract.decoding._decode", "token in stop", "False", "samples"),
    Fault("samples: rows in another order", f"{_GENERATE}._LayerCache.select",
          "self._kept[:, rows]", "self._kept[:, rows[::-1]]", "samples"),
    Fault("draw of another sequence", f"{_GENERATE}.generate", "seed, sequence, ", "seed, 0, ", "generation"),
    Fault("top-k forgotten", f"{_GENERATE}.generate", "temperature, top_k,", "temperature, None,", "generation"),
]

TWIN_FAULTS = [
    Fault("twin: fused attention not causal", "torch_llm.attend_in_blocks.attend_in_blocks",
          "is_causal=causal", "is_causal=False"),
    Fault("twin: mask sees one token of the future", "torch_llm.attend.causal_mask", "1 + S - T", "2 + S - T"),
    Fault("twin: 1/√D forgotten where written out", "torch_llm.attend.attend",
          "config.score_scale", "1.0"),
    Fault("twin: values half cut from the graph", "torch_llm.attend.weighted_sum",
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
          "+= tokens.shape[1]", "+= tokens.shape[1] - 1", "generation"),
]
# fmt: on

FAULTS = MODEL_FAULTS + DECODING_FAULTS + TWIN_FAULTS
