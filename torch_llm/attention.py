"""Causal multi-head self-attention: heads split and merged, and the layer.

Source: Vaswani et al. 2017, sections 3.2.2 and 3.2.3. The dimension letters are explained in
`contract/config.py`; S is the number of tokens attended to: T, or more when a key/value cache holds earlier
ones.
"""

from torch import nn

from contract.trace import NO_TRACE
from torch_llm.attend import attend
from torch_llm.attend_in_blocks import attend_in_blocks
from torch_llm.norms import Norm
from torch_llm.positions import rotate
from torch_llm.projection import Projection


def split_heads(qkv, n_head, n_kv_head):
    """Read a token's (H+2K)·D channels as H queries, K keys and K values of D channels each, side by side.

    qkv: float (B, T, (H+2K)·D)
    returns: query (B, H, T, D), key, value (B, K, T, D), each a view of qkv
    Source: Vaswani et al. 2017, section 3.2.2; Ainslie et al. 2023, section 2.2.
    Twin: numpy_llm.attention.split_heads_forward and split_heads_backward
    """
    H, K = n_head, n_kv_head
    # Cut before the axes change places: the other way round autograd copies the gradients once more.
    parts = qkv.unflatten(-1, (H + 2 * K, -1)).split([H, K, K], dim=2)  # of (B, T, H+2K, D)
    return tuple(part.transpose(1, 2) for part in parts)


def merge_heads(heads):
    """Lay a token's heads side by side in its channels: head h in channels h·D to (h+1)·D.

    heads: float (B, H, T, D); returns: merged (B, T, H·D)
    Source: Vaswani et al. 2017, section 3.2.2.
    Twin: numpy_llm.attention.merge_heads_forward and merge_heads_backward
    """
    B, H, T, D = heads.shape
    return heads.transpose(1, 2).reshape(B, T, H * D)


class Attention(nn.Module):
    """Each token gathers the values of the tokens up to itself, weighted by how its query fits their keys.

        query, key, value = split_heads(x W_qkvᵀ + b_qkv)
        query, key = rotate(norm(query)), rotate(norm(key))          (where the configuration has them)
        y = merge_heads(attend(query, key, value)) W_outputᵀ + b_output

    name: the layer's place in the model, such as "blocks.0.attention"
    layer: contract.config.Layer, the layer's window and rotation
    Source: Vaswani et al. 2017, section 3.2.2.
    Twin: numpy_llm.attention.attention_forward and attention_backward
    """

    def __init__(self, name, config, layer):
        super().__init__()
        self.name, self.config, self.layer = name, config, layer
        self.query_key_value = Projection(f"{name}.query_key_value", config)
        if config.query_key_norm == "head":
            self.query_norm = Norm(f"{name}.query_norm", config, config.head_size)
            self.key_norm = Norm(f"{name}.key_norm", config, config.head_size)
        self.output = Projection(f"{name}.output", config)

    def forward(self, x, dropout=None, kv_cache=None, trace=NO_TRACE):
        """The layer's output for the tokens of x.

        x: float (B, T, C)
        dropout: DropoutKey, or None for evaluation
        kv_cache: keys and values of earlier tokens, extended here with those of x; None to attend within x
        returns: y (B, T, C)
        """
        name, config = self.name, self.config
        qkv = self.query_key_value(x, trace, traced=False)
        query, key, value = split_heads(qkv, config.n_head, config.n_kv_head)
        trace.record(f"{name}.query", query)
        trace.record(f"{name}.key", key)
        trace.record(f"{name}.value", value)
        start = kv_cache.length if kv_cache is not None else 0
        query, key = self._place(query, key, start, trace)
        if kv_cache is not None:
            key, value = kv_cache.extend(name, key, value)

        dropping = dropout is not None and config.dropout > 0
        if trace is NO_TRACE and not dropping and config.score_cap is None:
            heads = attend_in_blocks(query, key, value, config.score_scale, window=self.layer.window)
        else:
            heads = attend(query, key, value, name, config, self.layer.window, dropout, trace)

        y = self.output(merge_heads(heads), trace)
        return y

    def _place(self, query, key, start, trace):
        """Norm each head of queries and keys, and turn them by their places, where the configuration says so."""
        if self.config.query_key_norm == "head":
            query, key = self.query_norm(query, trace), self.key_norm(key, trace)
        if self.layer.rotary is not None:
            query, key = (rotate(x, self.layer.rotary, start) for x in (query, key))
            trace.record(f"{self.name}.rotated_query", query)
            trace.record(f"{self.name}.rotated_key", key)
        return query, key
