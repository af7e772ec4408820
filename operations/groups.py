"""Key/value heads that several query heads read: head h reads h // (H/K). What people get wrong in that."""

import numpy as np

from operations.operation import wrong_forward


def repeated(x, H):
    """(B, K, S, D) -> (B, H, S, D): each head as often as query heads read it."""
    return np.repeat(x, H // x.shape[1], axis=1)


def misread(x, H):
    """The same in two wrong ways, where it makes a difference: heads tiled, and repeated along the sequence."""
    B, K, S, D = x.shape
    if K == H:
        return []
    tiled = [np.tile(x, (1, H // K, 1, 1))] if K > 1 else []
    return [*tiled, np.repeat(x, H // K, axis=2).reshape(B, H, S, D)]


def _both_misread(reader, read, scale=None):
    """The scores, which have a scale, of queries and misread keys, or the weighted sum of misread values."""
    found = misread(read, reader.shape[1])
    return [reader @ each if scale is None else reader @ each.swapaxes(-1, -2) * scale for each in found]


def summed(x, K):
    """(B, H, S, D) -> (B, K, S, D): the sum over the query heads that read each head."""
    return _by_group(x, K).sum(axis=2)


def wrong_sums(x, K):
    """What people take for that sum: the mean, the first or last of the group, or the sum over tiled heads."""
    B, H, S, D = x.shape
    if K == H:
        return []
    groups = _by_group(x, K)
    return [groups.mean(axis=2), groups[:, :, 0], groups[:, :, -1], x.reshape(B, H // K, K, S, D).sum(axis=1)]


def _by_group(x, K):
    B, H, S, D = x.shape
    return x.reshape(B, K, H // K, S, D)


# One line of a program that repeats both: a mistake of two operations at once.
HEADS_MISREAD = wrong_forward("heads_misread", _both_misread,
    "query heads read the wrong key and value heads: head h reads h // (H/K), so each is repeated, not tiled, and "
    "along the heads, not along the sequence")  # fmt: skip
