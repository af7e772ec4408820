"""Causal multi-head self-attention.

Source: Vaswani et al. 2017, sections 3.2.1 to 3.2.3. The dimension letters are explained in
`contract/config.py`; S is the number of tokens attended to: T, or more when a key/value cache holds earlier
ones.
"""

import torch
import torch.nn.functional as F
from torch import nn

from contract.trace import NO_TRACE
from torch_llm.layers import dropout as drop
from torch_llm.layers import linear


def split_heads(qkv, n_head):
    """Read a token's 3·H·D channels as query, key and value, each of H heads side by side.

    qkv: float (B, T, 3·H·D); returns: query, key, value, each (B, H, T, D) and a view of qkv
    Source: Vaswani et al. 2017, section 3.2.2.
    Twin: numpy_llm.attention.split_heads_forward and split_heads_backward
    """
    B, T, channels = qkv.shape
    # (B, T, 3·H·D) -> (B, T, 3, H, D) -> (3, B, H, T, D)
    return qkv.reshape(B, T, 3, n_head, channels // (3 * n_head)).permute(2, 0, 3, 1, 4).unbind()


def scores(query, key, scale):
    """How well each query fits each key: scores = query keyᵀ · scale.

    query: float (B, H, T, D); key: float (B, H, S, D); scale: 1/√D
    returns: scores (B, H, T, S), before the mask
    Source: Vaswani et al. 2017, section 3.2.1.
    Twin: numpy_llm.attention.scores_forward and scores_backward
    """
    return query @ key.transpose(-1, -2) * scale  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)


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


def masked_softmax(scores):
    """The share of each key that a query may see: softmax(scores + mask).

    scores: float (B, H, T, S); returns: probabilities (B, H, T, S)
    Source: Vaswani et al. 2017, section 3.2.3.
    Twin: numpy_llm.attention.masked_softmax_forward and masked_softmax_backward
    """
    T, S = scores.shape[-2:]
    return softmax(scores + causal_mask(T, S, scores.device) if T > 1 else scores)  # the last token sees all


def weighted_sum(probabilities, value):
    """What each query gathers: heads = probabilities value.

    probabilities: float (B, H, T, S); value: float (B, H, S, D)
    returns: heads (B, H, T, D)
    Source: Vaswani et al. 2017, equation 1.
    Twin: numpy_llm.attention.weighted_sum_forward and weighted_sum_backward
    """
    return probabilities @ value  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)


def merge_heads(heads):
    """Lay a token's heads side by side in its channels: head h in channels h·D to (h+1)·D.

    heads: float (B, H, T, D); returns: merged (B, T, H·D)
    Source: Vaswani et al. 2017, section 3.2.2.
    Twin: numpy_llm.attention.merge_heads_forward and merge_heads_backward
    """
    B, H, T, D = heads.shape
    return heads.transpose(1, 2).reshape(B, T, H * D)


def attend(query, key, value, name, config, dropout=None, trace=NO_TRACE):
    """Weigh the values by how well each query fits their keys: heads = softmax(query keyᵀ / √D + mask) value.

    Written out step by step: what a trace records, and where masks of our own drop probabilities.

    query: float (B, H, T, D); key, value: float (B, H, S, D); the rest as in `Attention.forward`
    returns: heads (B, H, T, D)
    Source: Vaswani et al. 2017, equation 1.
    Twin: numpy_llm.attention.attend_forward and attend_backward
    """
    fits = scores(query, key, config.head_size**-0.5)
    trace.record(f"{name}.scores", fits)
    probabilities = masked_softmax(fits)
    trace.record(f"{name}.probabilities", probabilities)
    kept = drop(probabilities, config.dropout, dropout, f"{name}.probabilities")
    trace.record(f"{name}.probabilities_dropout", kept)
    heads = weighted_sum(kept, value)
    trace.record(f"{name}.heads", heads)
    return heads


class Attention(nn.Module):
    """Each token gathers the values of the tokens up to itself, weighted by how its query fits their keys.

        query, key, value = split_heads(x W_qkvᵀ + b_qkv)
        y = merge_heads(attend(query, key, value)) W_outputᵀ + b_output

    name: the layer's place in the model, such as "blocks.0.attention"
    Source: Vaswani et al. 2017, section 3.2.2.
    Twin: numpy_llm.attention.attention_forward and attention_backward
    """

    def __init__(self, name, config):
        super().__init__()
        self.name, self.config = name, config
        C, width = config.d_model, config.n_head * config.head_size
        self.query_key_value = nn.Linear(C, 3 * width, bias=config.bias)
        self.output = nn.Linear(width, C, bias=config.bias)

    def forward(self, x, dropout=None, kv_cache=None, trace=NO_TRACE):
        """The layer's output for the tokens of x.

        x: float (B, T, C)
        dropout: DropoutKey, or None for evaluation
        kv_cache: keys and values of earlier tokens, extended here with those of x; None to attend within x
        returns: y (B, T, C)
        """
        name, config = self.name, self.config
        T = x.shape[1]
        qkv = linear(x, self.query_key_value.weight, self.query_key_value.bias)
        query, key, value = split_heads(qkv, config.n_head)
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
            heads = attend(query, key, value, name, config, dropout, trace)

        y = linear(merge_heads(heads), self.output.weight, self.output.bias)
        trace.record(f"{name}.output", y)
        return y
