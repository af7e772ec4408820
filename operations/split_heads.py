"""Split heads: its equations and what people get wrong in it."""

from itertools import permutations

import numpy as np

from numpy_llm.attention import split_heads_backward, split_heads_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _read(qkv, axes, order):
    """Query, key and value of a token's channels read along `axes`, which are then put in another order."""
    return tuple(qkv.reshape(*qkv.shape[:2], *axes).transpose(order))


def _others_in_order(parts):
    """The three in every other order in which each keeps its shape."""
    orders = [order for order in permutations(range(3)) if order != (0, 1, 2)]
    found = [tuple(parts[place] for place in order) for order in orders]
    return [each for each in found if [x.shape for x in each] == [x.shape for x in parts]]


@wrong_forward(
    "query, key and value are taken in another order; the rows of the weight are query, key, value"
)
def qkv_order(qkv, n_head, n_kv_head):
    return _others_in_order(split_heads_forward(qkv, n_head, n_kv_head)[:3])


@wrong_forward("query, key and value are interleaved head by head; all queries come first, then all keys")
def qkv_interleaved(qkv, n_head, n_kv_head):
    B, T, channels = qkv.shape
    H, K = n_head, n_kv_head
    D = channels // (H + 2 * K)
    # Each key/value head behind the H/K queries that read it, as GPT-NeoX and Falcon store them.
    groups = qkv.reshape(B, T, K, H // K + 2, D).transpose(0, 2, 3, 1, 4)
    found = [(groups[:, :, :-2].reshape(B, H, T, D), groups[:, :, -2], groups[:, :, -1])]
    if H == K:
        found += [_read(qkv, (H, D, 3), (4, 0, 2, 1, 3)), _read(qkv, (D, 3, H), (3, 0, 4, 1, 2))]
    return found


@wrong_forward("the heads are in another order: reversed, or moved by one")
def heads_order(qkv, n_head, n_kv_head):
    parts = split_heads_forward(qkv, n_head, n_kv_head)[:3]
    moved = [tuple(np.roll(each, step, axis=1) for each in parts) for step in (1, -1)]
    return [tuple(each[:, ::-1] for each in parts), *moved]


def _thirds(qkv, n_head, n_kv_head):
    """The channels of query, key and value, with how many heads each has."""
    D = qkv.shape[-1] // (n_head + 2 * n_kv_head)
    parts = np.split(qkv, [n_head * D, (n_head + n_kv_head) * D], axis=-1)
    return zip(parts, (n_head, n_kv_head, n_kv_head), strict=True)


@wrong_forward("heads are interleaved: head h has channels h·D to (h+1)·D, not every H-th")
def heads_interleaved(qkv, n_head, n_kv_head):
    return tuple(
        each.reshape(*each.shape[:2], -1, heads).transpose(0, 3, 1, 2)
        for each, heads in _thirds(qkv, n_head, n_kv_head)
    )


@wrong_forward(
    "heads are split by a reshape to (B, H, T, D) alone; reshape to (B, T, H, D), then swap T and H"
)
def heads_split_without_swap(qkv, n_head, n_kv_head):
    B, T, _ = qkv.shape
    return tuple(each.reshape(B, heads, T, -1) for each, heads in _thirds(qkv, n_head, n_kv_head))


# Backward


def _joined(parts, cache):
    """The gradients joined in the order in which they are given."""
    return {"qkv": np.concatenate(parts, axis=1).swapaxes(1, 2).reshape(cache.shape)}


def _transposed(parts, cache, order):
    """The gradients (3, B, H, T, D), their axes put in an order; None where query has more heads than key."""
    if cache.n_head != cache.n_kv_head:
        return None
    return {"qkv": np.stack(parts).transpose(order).reshape(cache.shape)}


@wrong_backward(
    "the gradients of query, key and value are joined in another order",
    "query, key and value stand in another order in dqkv than the forward pass read them",
)
def djoin_order(dquery, dkey, dvalue, cache):
    return [_joined(parts, cache) for parts in _others_in_order((dquery, dkey, dvalue))]


@wrong_backward(
    "one of the three gradients is lost, or two: query, key and value all flow into x",
    "a path is missing: x reaches query, key and value, so dqkv holds the gradients of all three",
)
def djoin_part(dquery, dkey, dvalue, cache):
    parts, alone = (dquery, dkey, dvalue), np.eye(3, dtype=dquery.dtype)
    return [
        _joined([part * each for part, each in zip(parts, kept, strict=True)], cache)
        for kept in (*alone, *(1 - alone))
    ]


@wrong_backward(
    "the heads' gradients are merged without swapping time and heads first",
    "each of dquery, dkey and dvalue is reshaped straight to (B, T, C), which mixes the tokens; swap H and T first",
)
def djoin_without_swap(dquery, dkey, dvalue, cache):
    rows = [each.reshape(*cache.shape[:2], -1) for each in (dquery, dkey, dvalue)]
    return {"qkv": np.concatenate(rows, axis=-1)}


@wrong_backward(
    "the gradients (3, B, H, T, D) are reshaped to (B, T, 3·C) without a transpose first",
    "dqkv is reshaped without transposing back first: the numbers keep the order (3, B, H, T, D)",
)
def djoin_without_transpose(dquery, dkey, dvalue, cache):
    return _transposed((dquery, dkey, dvalue), cache, range(5))


@wrong_backward(
    "the gradients of query, key and value are interleaved head by head; all of query's come first",
    "the columns of dqkv come as (H, 3, D); the forward pass read them as (3, H, D): query, key and value are the "
    "outer axis",
)
def djoin_interleaved(dquery, dkey, dvalue, cache):
    return _transposed((dquery, dkey, dvalue), cache, (1, 3, 2, 0, 4))


@wrong_backward(
    "the gradients are transposed by the forward pass's order again; the way back is its inverse",
    "you transpose by the forward pass's own order again; the way back needs its inverse",
)
def djoin_transposed_again(dquery, dkey, dvalue, cache):
    return _transposed((dquery, dkey, dvalue), cache, (2, 0, 3, 1, 4))


SPLIT_HEADS = Operation(
    "split_heads",
    split_heads_forward,
    split_heads_backward,
    "query, key, value = the first H·D, next K·D and last K·D channels of qkv, D channels a head",
    {"qkv": Gradient("dqkv = join(dquery, dkey, dvalue), as qkv was split")},
    (
        qkv_order, qkv_interleaved, heads_order, heads_interleaved, heads_split_without_swap, djoin_order,
        djoin_part, djoin_without_swap, djoin_without_transpose, djoin_interleaved, djoin_transposed_again,
    ),
)  # fmt: skip
