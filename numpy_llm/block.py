"""The transformer block: attention and feed-forward as two branches of the residual stream.

The dimension letters are explained in `contract/config.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

from contract.config import PLAIN_LAYER
from contract.trace import NO_TRACE
from numpy_llm.attention import AttentionCache, attention_backward, attention_forward
from numpy_llm.feed_forward import FEED_FORWARDS
from numpy_llm.layers import (
    DropoutCache,
    dropout_backward,
    dropout_forward,
    residual_backward,
    residual_forward,
)
from numpy_llm.norms import NormCache, norm_backward, norm_forward

# Of each choice of `block`: whether a norm stands before each branch, and after it.
BLOCKS = {"pre_norm": (True, False), "sandwich": (True, True), "post_norm": (False, True)}


class AddCache(NamedTuple):
    name: str
    place: int
    norm: NormCache | None
    dropout: DropoutCache
    residual: None


class BlockCache(NamedTuple):
    norm_1: NormCache | None
    attention: AttentionCache
    add_1: AddCache
    norm_2: NormCache | None
    feed_forward_backward: Callable
    feed_forward: NamedTuple
    add_2: AddCache


def block_forward(x, weights, name, config, layer=PLAIN_LAYER, dropout=None, kv_cache=None, trace=NO_TRACE):
    """One transformer block: two branches, each of which reads a normed copy and adds to the stream.

        x = x + dropout(attention(norm_1(x)))
        y = x + dropout(feed_forward(norm_2(x)))

    A "sandwich" block norms what a branch computed too, before dropout; a "post_norm" block norms that alone.

    x: float (B, T, C); weights: mapping that holds this block's under `name`, such as "blocks.0"
    layer: `contract.config.Layer`, what is particular to this one
    returns: y (B, T, C), cache
    Source: Radford et al. 2019, section 2.3 (pre_norm); Gemma Team 2024 (Gemma 2), section 2 (sandwich).
    Twin: torch_llm.block.Block
    """
    norms_before, _ = BLOCKS[config.block]
    feed_forward_forward, feed_forward_backward = FEED_FORWARDS[config.feed_forward]

    read, norm_1_cache = _norm_forward(norms_before, x, weights, f"{name}.norm_1", config, trace)
    branch, attention_cache = attention_forward(
        read, weights, f"{name}.attention", config, layer, dropout, kv_cache, trace
    )
    stream, add_1_cache = _add_forward(x, branch, weights, name, 1, config, dropout, trace)

    read, norm_2_cache = _norm_forward(norms_before, stream, weights, f"{name}.norm_2", config, trace)
    branch, feed_forward_cache = feed_forward_forward(read, weights, f"{name}.feed_forward", config, trace)
    y, add_2_cache = _add_forward(stream, branch, weights, name, 2, config, dropout, trace)
    return y, BlockCache(
        norm_1_cache, attention_cache, add_1_cache,
        norm_2_cache, feed_forward_backward, feed_forward_cache, add_2_cache,
    )  # fmt: skip


def block_backward(dy, cache, trace=NO_TRACE, later=False):
    """The forward pass reversed; where the stream forked, the gradients of both ways are added.

    later: as in `linear_backward`
    returns: dx (B, T, C), gradients by weight name
    """
    dstream, dbranch, add_2_gradients = _add_backward(dy, cache.add_2, trace)
    dread, feed_forward_gradients = cache.feed_forward_backward(dbranch, cache.feed_forward, trace, later)
    dx, norm_2_gradients = _norm_backward(dread, cache.norm_2, trace)
    dx += dstream

    dstream, dbranch, add_1_gradients = _add_backward(dx, cache.add_1, trace)
    dread, attention_gradients = attention_backward(dbranch, cache.attention, trace, later)
    dx, norm_1_gradients = _norm_backward(dread, cache.norm_1, trace)
    dx += dstream
    return dx, (
        norm_1_gradients | attention_gradients | add_1_gradients
        | norm_2_gradients | feed_forward_gradients | add_2_gradients
    )  # fmt: skip


def _add_forward(x, branch, weights, name, place, config, dropout, trace):
    """Add to the stream what a branch computed: x + dropout(branch), or x + dropout(norm(branch))."""
    _, norms_after = BLOCKS[config.block]
    branch, norm_cache = _norm_forward(
        norms_after, branch, weights, f"{name}.post_norm_{place}", config, trace
    )
    dropping = config.dropout, dropout, f"{name}.dropout_{place}"
    kept, dropout_cache = dropout_forward(branch, *dropping)
    trace.record(f"{name}.dropout_{place}", kept, "dropout", branch, *dropping)
    y, residual_cache = residual_forward(x, kept)
    trace.record(f"{name}.residual_{place}", y, "residual", x, kept)
    return y, AddCache(name, place, norm_cache, dropout_cache, residual_cache)


def _add_backward(dy, cache, trace):
    """returns: dx, dbranch (B, T, C), gradients by weight name"""
    trace.record_gradient(f"{cache.name}.residual_{cache.place}", dy)
    dx, dbranch = residual_backward(dy, cache.residual)
    trace.record_gradient(f"{cache.name}.dropout_{cache.place}", dbranch)
    dbranch = dropout_backward(dbranch, cache.dropout)
    return dx, *_norm_backward(dbranch, cache.norm, trace)


def _norm_forward(present, x, *arguments):
    """The norm, where the block has one at this place."""
    return norm_forward(x, *arguments) if present else (x, None)


def _norm_backward(dy, cache, trace):
    return norm_backward(dy, cache, trace) if cache else (dy, {})
