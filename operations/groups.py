"""Key/value heads that several query heads read: head h reads h // (H/K). What people get wrong in that."""

import numpy as np


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
