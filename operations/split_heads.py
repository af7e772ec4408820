"""Split heads: its equations and what people get wrong in it."""

from itertools import permutations

import numpy as np

from numpy_llm.attention import split_heads_backward, split_heads_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _read(qkv, axes, order):
    """Query, key and value of a token's channels read along `axes`, which are then put in another order."""
    return tuple(qkv.reshape(*qkv.shape[:2], *axes).transpose(order))


@wrong_forward(
    "query, key and value are taken in another order; the rows of the weight are query, key, value"
)
def qkv_order(qkv, n_head):
    return _others_in_order(split_heads_forward(qkv, n_head)[:3])


def _others_in_order(parts):
    return [tuple(parts[place] for place in order) for order in permutations(range(3)) if order != (0, 1, 2)]


@wrong_forward("query, key and value are interleaved head by head; all queries come first, then all keys")
def qkv_interleaved(qkv, n_head):
    D = qkv.shape[-1] // (3 * n_head)
    return [
        _read(qkv, (n_head, 3, D), (3, 0, 2, 1, 4)),
        _read(qkv, (n_head, D, 3), (4, 0, 2, 1, 3)),
        _read(qkv, (D, 3, n_head), (3, 0, 4, 1, 2)),
    ]


@wrong_forward("the heads are in another order: reversed, or moved by one")
def heads_order(qkv, n_head):
    parts = split_heads_forward(qkv, n_head)[:3]
    moved = [tuple(np.roll(each, step, axis=1) for each in parts) for step in (1, -1)]
    return [tuple(each[:, ::-1] for each in parts), *moved]


@wrong_forward("heads are interleaved: head h has channels h·D to (h+1)·D, not every H-th")
def heads_interleaved(qkv, n_head):
    return _read(qkv, (3, qkv.shape[-1] // (3 * n_head), n_head), (2, 0, 4, 1, 3))


@wrong_forward(
    "heads are split by a reshape to (B, H, T, D) alone; reshape to (B, T, H, D), then swap T and H"
)
def heads_split_without_swap(qkv, n_head):
    B, T, _ = qkv.shape
    return tuple(each.reshape(B, n_head, T, -1) for each in np.split(qkv, 3, axis=-1))


# Backward


def _joined(parts, cache, order=(1, 3, 0, 2, 4)):
    """The gradients (3, B, H, T, D), their axes put in an order and joined to that of qkv."""
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
    parts = np.stack((dquery, dkey, dvalue))
    alone = np.eye(3, dtype=parts.dtype).reshape(3, 3, 1, 1, 1, 1)
    return [_joined(parts * kept, cache) for kept in (*alone, *(1 - alone))]


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
    return _joined((dquery, dkey, dvalue), cache, range(5))


@wrong_backward(
    "the gradients of query, key and value are interleaved head by head; all of query's come first",
    "the columns of dqkv come as (H, 3, D); the forward pass read them as (3, H, D): query, key and value are the "
    "outer axis",
)
def djoin_interleaved(dquery, dkey, dvalue, cache):
    return _joined((dquery, dkey, dvalue), cache, (1, 3, 2, 0, 4))


@wrong_backward(
    "the gradients are transposed by the forward pass's order again; the way back is its inverse",
    "you transpose by the forward pass's own order again; the way back needs its inverse",
)
def djoin_transposed_again(dquery, dkey, dvalue, cache):
    return _joined((dquery, dkey, dvalue), cache, (2, 0, 3, 1, 4))


SPLIT_HEADS = Operation(
    "split_heads",
    split_heads_forward,
    split_heads_backward,
    "query, key, value = the thirds of qkv, head h in channels h·D to (h+1)·D of each",
    {"qkv": Gradient("dqkv = join(dquery, dkey, dvalue), as qkv was split")},
    (
        qkv_order, qkv_interleaved, heads_order, heads_interleaved, heads_split_without_swap, djoin_order,
        djoin_part, djoin_without_swap, djoin_without_transpose, djoin_interleaved, djoin_transposed_again,
    ),
)  # fmt: skip
