"""Causal multi-head self-attention.

Source: Vaswani et al. 2017, sections 3.2.1 to 3.2.3. The dimension letters are explained in
`contract/config.py`; S is the number of tokens attended to: T, or more when a key/value cache holds earlier
ones.
"""

import torch
import torch.nn.functional as F
from torch import nn

from contract.trace import NO_TRACE
from torch_llm import layers


def softmax(x):
    """Turn the last axis into probabilities: y = exp(x) / Σ exp(x).

    x: float (..., S); -inf becomes exactly 0; every row holds at least one finite value
    returns: y (..., S)
    Twin: numpy_llm.attention.softmax_forward and softmax_backward
    """
    return F.softmax(x, dim=-1)


def causal_mask(T, S, device=None):
    """What to add to the scores: 0 where query t may see key s, -inf where s lies in its future.

    The T queries are the last of the S tokens, so query t stands at place S - T + t.
    returns: float32 (T, S)
    Twin: numpy_llm.attention.causal_mask
    """
    return torch.full((T, S), -torch.inf, device=device).triu(1 + S - T)


class Attention(nn.Module):
    """Each token gathers the values of the tokens up to itself, weighted by how its query fits their keys.

        query, key, value = split_heads(x W_qkvᵀ + b_qkv)
        y = merge_heads(softmax(query keyᵀ / √D + mask) value) W_outputᵀ + b_output

    name: the layer's place in the model, such as "blocks.0.attention"
    Source: Vaswani et al. 2017, equation 1.
    Twin: numpy_llm.attention.attention_forward and attention_backward
    """

    def __init__(self, name, config):
        super().__init__()
        self.name, self.config = name, config
        C = config.d_model
        self.query_key_value = nn.Linear(C, 3 * C, bias=config.bias)
        self.output = nn.Linear(C, C, bias=config.bias)

    def forward(self, x, dropout=None, kv_cache=None, trace=NO_TRACE):
        """The layer's output for the tokens of x.

        x: float (B, T, C)
        dropout: DropoutKey, or None for evaluation
        kv_cache: keys and values of earlier tokens, extended here with those of x; None to attend within x
        returns: y (B, T, C)
        """
        name, config = self.name, self.config
        B, T, C = x.shape
        qkv = layers.linear(x, self.query_key_value.weight, self.query_key_value.bias)
        # (B, T, 3·C) -> (B, T, 3, H, D) -> (3, B, H, T, D)
        query, key, value = qkv.reshape(B, T, 3, config.n_head, config.head_size).permute(2, 0, 3, 1, 4)
        if kv_cache is not None:
            key, value = kv_cache.extend(name, key, value)
        trace.record(f"{name}.query", query)
        trace.record(f"{name}.key", key)
        trace.record(f"{name}.value", value)

        dropping = dropout is not None and config.dropout > 0
        if trace is NO_TRACE and not dropping and T in (1, key.shape[2]):
            # The same function in one kernel, which keeps no (T, S) tensor. A single query is the last token
            # and sees every key; between that and T = S the kernel would align its mask the other way.
            heads = F.scaled_dot_product_attention(query, key, value, is_causal=T > 1)
        else:
            heads = self._written_out(query, key, value, dropout, trace)

        merged = heads.transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, H, D) -> (B, T, C)
        y = layers.linear(merged, self.output.weight, self.output.bias)
        trace.record(f"{name}.output", y)
        return y

    def _written_out(self, query, key, value, dropout, trace):
        """Attention step by step: what a trace records, and where masks of our own drop probabilities."""
        name, config = self.name, self.config
        T, S = query.shape[2], key.shape[2]
        scale = config.head_size**-0.5
        scores = query @ key.transpose(-1, -2)  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
        scores = scores * scale
        trace.record(f"{name}.scores", scores)
        if T > 1:
            scores = scores + causal_mask(T, S, scores.device)
        probabilities = softmax(scores)
        trace.record(f"{name}.probabilities", probabilities)
        kept = layers.dropout(probabilities, config.dropout, dropout, f"{name}.probabilities")
        trace.record(f"{name}.probabilities_dropout", kept)
        heads = kept @ value  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)
        trace.record(f"{name}.heads", heads)
        return heads
