"""Split heads: its equations and what people get wrong in it."""

from itertools import permutations

import numpy as np

from numpy_llm.attention import split_heads_backward, split_heads_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _parts(qkv, n_head, n_kv_head):
    return split_heads_forward(qkv, n_head, n_kv_head)[:3]


def _other_orders(parts):
    """The three in every other order in which each keeps its shape."""
    orders = [order for order in permutations(range(3)) if order != (0, 1, 2)]
    found = [tuple(parts[place] for place in order) for order in orders]
    return [each for each in found if all(x.shape == y.shape for x, y in zip(each, parts, strict=True))]


def _thirds(qkv, n_head, n_kv_head):
    """The channels of query, key and value, with how many heads each has."""
    D = qkv.shape[-1] // (n_head + 2 * n_kv_head)
    parts = np.split(qkv, [n_head * D, (n_head + n_kv_head) * D], axis=-1)
    return zip(parts, (n_head, n_kv_head, n_kv_head), strict=True)


def _read(qkv, axes, order):
    """Query, key and value of a token's channels read along `axes`, which are then put in another order."""
    return tuple(qkv.reshape(*qkv.shape[:2], *axes).transpose(order))


def _interleaved(qkv, n_head, n_kv_head):
    B, T, _ = qkv.shape
    # Each key and value head behind the queries that read it, as GPT-NeoX and Falcon store them.
    groups = qkv.reshape(B, T, n_kv_head, n_head // n_kv_head + 2, -1).transpose(0, 2, 3, 1, 4)
    found = [(groups[:, :, :-2].reshape(B, n_head, T, -1), groups[:, :, -2], groups[:, :, -1])]
    if n_head == n_kv_head:
        found += [
            _read(qkv, (n_head, -1, 3), (4, 0, 2, 1, 3)), _read(qkv, (-1, 3, n_head), (3, 0, 4, 1, 2))
        ]  # fmt: skip
    return found


def _heads_moved(qkv, n_head, n_kv_head):
    parts = _parts(qkv, n_head, n_kv_head)
    moved = [tuple(np.roll(each, by, axis=1) for each in parts) for by in (1, -1)]
    return [tuple(each[:, ::-1] for each in parts), *moved]


def _every_hth(qkv, n_head, n_kv_head):
    return tuple(
        each.reshape(*each.shape[:2], -1, heads).transpose(0, 3, 1, 2)
        for each, heads in _thirds(qkv, n_head, n_kv_head)
    )


def _without_swap(qkv, n_head, n_kv_head):
    return tuple(
        each.reshape(len(qkv), heads, qkv.shape[1], -1) for each, heads in _thirds(qkv, n_head, n_kv_head)
    )


def _joined(parts, cache):
    """The gradients, joined in the order in which they are given."""
    return {"qkv": np.concatenate(parts, axis=1).swapaxes(1, 2).reshape(cache.shape)}


def _joined_by(*order):
    """The gradients (3, B, H, T, D), their axes put in an order; only where there are as many keys as queries."""

    def compute(dquery, dkey, dvalue, cache):
        if dquery.shape != dkey.shape:
            return None
        return {"qkv": np.stack((dquery, dkey, dvalue)).transpose(order).reshape(cache.shape)}

    return compute


def _some(dquery, dkey, dvalue, cache):
    """One of the three alone, or all but one."""
    parts, alone = (dquery, dkey, dvalue), np.eye(3, dtype=dquery.dtype)
    return [
        _joined([part * each for part, each in zip(parts, kept, strict=True)], cache)
        for kept in (*alone, *(1 - alone))
    ]


def _joined_without_swap(dquery, dkey, dvalue, cache):
    rows = [each.reshape(*cache.shape[:2], -1) for each in (dquery, dkey, dvalue)]
    return {"qkv": np.concatenate(rows, axis=-1)}


SPLIT_HEADS = Operation(
    "split_heads", split_heads_forward, split_heads_backward,
    "query, key, value = the first H·D, next K·D and last K·D channels of qkv, D channels a head",
    {"qkv": Gradient("dqkv = join(dquery, dkey, dvalue), as qkv was split")},
    (
        wrong_forward("qkv_order", lambda *arguments: _other_orders(_parts(*arguments)),
            "query, key and value are taken in another order; the rows of the weight are query, key, value"),
        wrong_forward("qkv_interleaved", _interleaved,
            "query, key and value are interleaved head by head; all queries come first, then all keys"),
        wrong_forward("heads_order", _heads_moved, "the heads are in another order: reversed, or moved by one"),
        wrong_forward("heads_interleaved", _every_hth,
            "heads are interleaved: head h has channels h·D to (h+1)·D, not every H-th"),
        wrong_forward("heads_split_without_swap", _without_swap,
            "heads are split by a reshape to (B, H, T, D) alone; reshape to (B, T, H, D), then swap T and H"),
        wrong_backward("djoin_order",
            lambda *gradients: [_joined(parts, gradients[3]) for parts in _other_orders(gradients[:3])],
            "query, key and value stand in another order in dqkv than the forward pass read them"),
        wrong_backward("djoin_part", _some,
            "a path is missing: x reaches query, key and value, so dqkv holds the gradients of all three"),
        wrong_backward("djoin_without_swap", _joined_without_swap,
            "the heads' gradients are merged without swapping time and heads first",
            "each of the three is reshaped straight to (B, T, C), which mixes the tokens; swap H and T first"),
        wrong_backward("djoin_without_transpose", _joined_by(0, 1, 2, 3, 4),
            "the gradients (3, B, H, T, D) are reshaped to (B, T, 3·C) without a transpose first",
            "dqkv is reshaped without transposing back first: the numbers keep the order (3, B, H, T, D)"),
        wrong_backward("djoin_interleaved", _joined_by(1, 3, 2, 0, 4),
            "the gradients of query, key and value are interleaved head by head; all of query's come first",
            "dqkv's columns come as (H, 3, D), not (3, H, D): query, key and value are the outer axis"),
        wrong_backward("djoin_transposed_again", _joined_by(2, 0, 3, 1, 4),
            "you transpose by the forward pass's own order again; the way back needs its inverse"),
    ),
)  # fmt: skip
