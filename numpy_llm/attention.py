"""Causal multi-head self-attention: heads split and merged, and the layer.

Source: Vaswani et al. 2017, sections 3.2.2 and 3.2.3. The dimension letters are explained in
`contract/config.py`; S is the number of tokens attended to: T, or more when a key/value cache holds earlier
ones.
"""

from typing import NamedTuple

import numpy as np

from contract.config import PLAIN_LAYER
from contract.trace import NO_TRACE
from numpy_llm.attend import AttendCache, attend_backward, attend_forward
from numpy_llm.attend_in_blocks import (
    BLOCKS_FROM,
    AttendInBlocksCache,
    attend_in_blocks_backward,
    attend_in_blocks_forward,
)
from numpy_llm.norms import NormCache, norm_backward, norm_forward
from numpy_llm.positions import RotateCache, rotate_backward, rotate_forward
from numpy_llm.projection import ProjectionCache, projection_backward, projection_forward


class SplitHeadsCache(NamedTuple):
    shape: tuple[int, ...]  # of qkv
    n_head: int
    n_kv_head: int


def split_heads_forward(qkv, n_head, n_kv_head):
    """Read a token's (H+2K)·D channels as H queries, K keys and K values of D channels each, side by side.

    qkv: float (B, T, (H+2K)·D)
    returns: query (B, H, T, D), key, value (B, K, T, D), each a view of qkv; cache
    Source: Vaswani et al. 2017, section 3.2.2; Ainslie et al. 2023, section 2.2. Twin: torch_llm.attention.split_heads
    """
    return *_heads_of(qkv, n_head, n_kv_head), SplitHeadsCache(qkv.shape, n_head, n_kv_head)


def _heads_of(qkv, H, K):
    """Views: (B, T, (H+2K)·D) -> (B, T, H+2K, D) -> (B, H+2K, T, D), cut into H, K and K"""
    B, T, channels = qkv.shape
    heads = qkv.reshape(B, T, H + 2 * K, channels // (H + 2 * K)).swapaxes(1, 2)
    return heads[:, :H], heads[:, H : H + K], heads[:, H + K :]


def split_heads_backward(dquery, dkey, dvalue, cache, out=None):
    """No number changes: each moves back to the channel that it came from.

    out: float (B, T, (H+2K)·D), where to write; what is a view of it already is in its place
    returns: dqkv (B, T, (H+2K)·D)
    """
    dqkv = np.empty(cache.shape, dquery.dtype) if out is None else out
    places = _heads_of(dqkv, cache.n_head, cache.n_kv_head)
    for place, gradient in zip(places, (dquery, dkey, dvalue), strict=True):
        if not np.may_share_memory(dqkv, gradient):
            place[...] = gradient
    return dqkv


class MergeHeadsCache(NamedTuple):
    shape: tuple[int, ...]  # of heads


def merge_heads_forward(heads):
    """Lay a token's heads side by side in its channels: head h in channels h·D to (h+1)·D.

    heads: float (B, H, T, D); returns: merged (B, T, H·D), cache
    Source: Vaswani et al. 2017, section 3.2.2. Twin: torch_llm.attention.merge_heads
    """
    B, H, T, D = heads.shape
    return heads.swapaxes(1, 2).reshape(B, T, H * D), MergeHeadsCache(heads.shape)


def merge_heads_backward(dmerged, cache):
    """No number changes: merged = heads.swapaxes(1, 2).reshape(B, T, H·D), undone in reverse.

    returns: dheads (B, H, T, D)
    """
    B, H, T, D = cache.shape
    return dmerged.reshape(B, T, H, D).swapaxes(1, 2)


class PlaceCache(NamedTuple):
    name: str
    query_norm: NormCache | None
    key_norm: NormCache | None
    query_rotation: RotateCache | None
    key_rotation: RotateCache | None


def _place_forward(query, key, weights, name, config, rotary, start, trace):
    """Norm each head of queries and keys, and turn them by their places, where the configuration says so.

    query: float (B, H, T, D); key: float (B, K, T, D); returns: both, cache
    """
    query_norm = key_norm = query_rotation = key_rotation = None
    if config.query_key_norm == "head":
        query, query_norm = norm_forward(query, weights, f"{name}.query_norm", config, trace)
        key, key_norm = norm_forward(key, weights, f"{name}.key_norm", config, trace)
    if rotary is not None:
        query, query_rotation = _rotate(query, rotary, start, f"{name}.rotated_query", trace)
        key, key_rotation = _rotate(key, rotary, start, f"{name}.rotated_key", trace)
    return query, key, PlaceCache(name, query_norm, key_norm, query_rotation, key_rotation)


def _rotate(x, rotary, start, name, trace):
    y, cache = rotate_forward(x, rotary, start)
    trace.record(name, y, "rotate", x, rotary, start)
    return y, cache


def _place_backward(dquery, dkey, cache, trace, out):
    """The forward pass reversed. out: where rotations write; returns: dquery, dkey, gradients by weight name"""
    name, gradients = cache.name, {}
    if cache.query_rotation is not None:
        trace.record_gradient(f"{name}.rotated_query", dquery)
        trace.record_gradient(f"{name}.rotated_key", dkey)
        dquery = rotate_backward(dquery, cache.query_rotation, out=out[0])
        dkey = rotate_backward(dkey, cache.key_rotation, out=out[1])
    if cache.query_norm is not None:
        dquery, query_gradients = norm_backward(dquery, cache.query_norm, trace)
        dkey, key_gradients = norm_backward(dkey, cache.key_norm, trace)
        gradients = query_gradients | key_gradients
    return dquery, dkey, gradients


class AttentionCache(NamedTuple):
    name: str
    query_key_value: ProjectionCache
    split: SplitHeadsCache
    place: PlaceCache
    attend: AttendCache | AttendInBlocksCache
    merge: MergeHeadsCache
    output: ProjectionCache


def attention_forward(
    x, weights, name, config, layer=PLAIN_LAYER, dropout=None, kv_cache=None, trace=NO_TRACE
):
    """Each token gathers the values of the tokens up to itself, weighted by how its query fits their keys.

        query, key, value = split_heads(x W_qkvᵀ + b_qkv)
        query, key = rotate(norm(query)), rotate(norm(key))          (where the configuration has them)
        y = merge_heads(attend(query, key, value)) W_outputᵀ + b_output

    x: float (B, T, C); weights: mapping that holds this layer's under `name`, such as "blocks.0.attention"
    layer: contract.config.Layer, the layer's window and rotation
    dropout: DropoutKey, or None for evaluation
    kv_cache: keys and values of earlier tokens, extended here with those of x; None to attend within x
    returns: y (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.2.2. Twin: torch_llm.attention.Attention
    """
    H, K = config.n_head, config.n_kv_head
    qkv, qkv_cache = projection_forward(x, weights, f"{name}.query_key_value", config, trace, traced=False)
    query, key, value, split_cache = split_heads_forward(qkv, H, K)
    parts = {f"{name}.query": query, f"{name}.key": key, f"{name}.value": value}
    trace.record_all(parts, "split_heads", qkv, H, K)
    start = kv_cache.length if kv_cache is not None else 0
    query, key, place_cache = _place_forward(query, key, weights, name, config, layer.rotary, start, trace)
    if kv_cache is not None:
        key, value = kv_cache.extend(name, key, value)
    dropping = dropout is not None and config.dropout > 0
    if trace is NO_TRACE and not dropping and x.shape[1] >= BLOCKS_FROM:
        terms = config.score_scale, layer.window, config.score_cap
        heads, attend_cache = attend_in_blocks_forward(query, key, value, *terms)
    else:
        heads, attend_cache = attend_forward(query, key, value, name, config, layer.window, dropout, trace)
    merged, merge_cache = merge_heads_forward(heads)
    trace.note(f"{name}.merged", merged, "merge_heads", heads)
    y, output_cache = projection_forward(merged, weights, f"{name}.output", config, trace)
    return y, AttentionCache(
        name, qkv_cache, split_cache, place_cache, attend_cache, merge_cache, output_cache
    )


def attention_backward(dy, cache, trace=NO_TRACE, later=False):
    """The forward pass read from its last line to its first.

    later: as in `linear_backward`
    returns: dx (B, T, C), gradients by weight name (None for an absent bias)
    """
    name, split = cache.name, cache.split
    dmerged, output_gradients = projection_backward(dy, cache.output, trace, later)
    dheads = merge_heads_backward(dmerged, cache.merge)
    dqkv = np.empty(split.shape, dy.dtype)
    views = _heads_of(dqkv, split.n_head, split.n_kv_head)  # what is written to them fills dqkv
    placed = cache.place.query_norm is not None or cache.place.query_rotation is not None
    out = (None, None, views[2]) if placed else views
    if isinstance(cache.attend, AttendCache):
        dquery, dkey, dvalue = attend_backward(dheads, cache.attend, trace, out)
    else:
        dquery, dkey, dvalue = attend_in_blocks_backward(dheads, cache.attend, out=out)
    dquery, dkey, place_gradients = _place_backward(dquery, dkey, cache.place, trace, out=views)
    trace.record_gradient(f"{name}.value", dvalue)
    trace.record_gradient(f"{name}.key", dkey)
    trace.record_gradient(f"{name}.query", dquery)
    dqkv = split_heads_backward(dquery, dkey, dvalue, split, out=dqkv)
    dx, qkv_gradients = projection_backward(dqkv, cache.query_key_value, trace, later, traced=False)
    return dx, qkv_gradients | place_gradients | output_gradients
