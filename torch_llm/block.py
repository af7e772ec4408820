"""The transformer block: attention and feed-forward as two branches of the residual stream.

The dimension letters are explained in `contract/config.py`.
"""

from torch import nn

from contract.trace import NO_TRACE
from torch_llm.attention import Attention
from torch_llm.feed_forward import FEED_FORWARDS
from torch_llm.layers import dropout as drop
from torch_llm.layers import residual
from torch_llm.norms import Norm

# Of each choice of `block`: whether a norm stands before each branch, and after it.
BLOCKS = {"pre_norm": (True, False), "sandwich": (True, True), "post_norm": (False, True)}


class Block(nn.Module):
    """One transformer block: two branches, each of which reads a normed copy and adds to the stream.

        x = x + dropout(attention(norm_1(x)))
        y = x + dropout(feed_forward(norm_2(x)))

    A "sandwich" block norms what a branch computed too, before dropout; a "post_norm" block norms that alone.

    name: the block's place in the model, such as "blocks.0"
    layer: `contract.config.Layer`, what is particular to this one
    Source: Radford et al. 2019, section 2.3 (pre_norm); Gemma Team 2024 (Gemma 2), section 2 (sandwich).
    Twin: numpy_llm.block.block_forward and block_backward
    """

    def __init__(self, name, config, layer):
        super().__init__()
        self.name, self.config = name, config
        before, after = BLOCKS[config.block]

        def norm(present, role):
            return Norm(f"{name}.{role}", config) if present else None

        self.norm_1 = norm(before, "norm_1")
        self.attention = Attention(f"{name}.attention", config, layer)
        self.post_norm_1 = norm(after, "post_norm_1")
        self.norm_2 = norm(before, "norm_2")
        self.feed_forward = FEED_FORWARDS[config.feed_forward](f"{name}.feed_forward", config)
        self.post_norm_2 = norm(after, "post_norm_2")

    def forward(self, x, dropout=None, kv_cache=None, trace=NO_TRACE):
        """x: float (B, T, C); returns: y (B, T, C)"""
        branch = self.attention(_normed(self.norm_1, x, trace), dropout, kv_cache, trace)
        x = self._add(x, branch, self.post_norm_1, 1, dropout, trace)
        branch = self.feed_forward(_normed(self.norm_2, x, trace), trace)
        return self._add(x, branch, self.post_norm_2, 2, dropout, trace)

    def _add(self, x, branch, norm, place, dropout, trace):
        """Add to the stream what a branch computed."""
        branch = _normed(norm, branch, trace)
        branch = drop(branch, self.config.dropout, dropout, f"{self.name}.dropout_{place}")
        trace.record(f"{self.name}.dropout_{place}", branch)
        y = residual(x, branch)
        trace.record(f"{self.name}.residual_{place}", y)
        return y


def _normed(norm, x, trace):
    return x if norm is None else norm(x, trace)
