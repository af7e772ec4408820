"""How much of the held-out text stands word for word in the training text, where a model can learn it by heart."""

from collections.abc import Iterator
from math import ceil
from typing import BinaryIO

import numpy as np

PASSAGE_BYTES = 50  # about a line: common phrases are shorter
PASSAGE_TOKENS = 8  # at least, however long they are
SAMPLES = 10_000  # passages of the held-out text, evenly spread
MUCH = 0.1  # a share to warn of
CHUNK = 1 << 15  # tokens looked at at a time: the arrays of one stay in a CPU's cache
_BASE, _SPREAD = (
    0x9E3779B97F4A7C15,
    np.uint64(0xD6E8FEB86659FD93),
)  # p, and what spreads a hash's low bits upwards
_TABLE_BITS = 20


def shared_share(file: BinaryIO, dtype: np.dtype, split: int, tokens: int, text_bytes: int) -> float | None:
    """The share of the held-out passages, `PASSAGE_BYTES` long on average, that the training part has too.

    file: of tokens, of which those from `split` on are held out; text_bytes: of all `tokens`
    returns: 0 to 1, None if either part is shorter than a passage. Compared are hashes of 64 bits
    """
    length = max(PASSAGE_TOKENS, ceil(PASSAGE_BYTES * tokens / text_bytes))
    if min(split, tokens - split) < length:
        return None
    step = max(length, (tokens - split) // SAMPLES)
    chunks = _passages(file, dtype, split, tokens, length)
    wanted = np.concatenate([hashes[(split - start) % step :: step].copy() for start, hashes in chunks])
    listed = np.unique(wanted)
    # One look into a small table settles nearly every passage.
    table = np.zeros(1 << _TABLE_BITS, bool)
    table[_slots(listed)] = True
    found = np.zeros(len(listed), bool)
    for _, hashes in _passages(file, dtype, 0, split, length):
        likely = hashes[table[_slots(hashes)]]
        places = np.minimum(np.searchsorted(listed, likely), len(listed) - 1)
        found[places[listed[places] == likely]] = True
    return float(np.isin(wanted, listed[found]).mean())


def _slots(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.intp)


def _passages(
    file: BinaryIO, dtype: np.dtype, start: int, stop: int, length: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The hashes of all passages between two tokens, in chunks, each behind the place of its first passage."""
    powers, inverses = _powers(_BASE, CHUNK + length), _powers(pow(_BASE, -1, 1 << 64), CHUNK + length)
    for first in range(start, stop - length + 1, CHUNK):
        file.seek(first * dtype.itemsize)
        tokens = np.fromfile(file, dtype, min(CHUNK + length - 1, stop - first))
        yield first, _hashes(tokens, length, powers, inverses)


def _powers(base: int, count: int) -> np.ndarray:
    """base^0, base^1, ... modulo 2^64, as uint64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)


def _hashes(tokens: np.ndarray, length: int, powers: np.ndarray, inverses: np.ndarray) -> np.ndarray:
    """The hash of each `length` neighbours t: sum over i of (t[i] + 1) p^i modulo 2^64, as uint64.

    It is the difference of two sums from the chunk's start, divided by the power of p at the first neighbour: p is odd,
    so it has an inverse.
    """
    sums = np.cumsum((tokens + np.uint64(1)) * powers[: len(tokens)])
    sums = np.concatenate([np.zeros(1, np.uint64), sums])
    return (sums[length:] - sums[:-length]) * inverses[: len(tokens) - length + 1] * _SPREAD


def passage_hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """The hash of each `length` neighbours of a few tokens, uint64 (N - length + 1,): its high bits are well spread."""
    count = len(tokens) - length + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    powers, inverses = (_powers(base, len(tokens) + 1) for base in (_BASE, pow(_BASE, -1, 1 << 64)))
    return _hashes(tokens, length, powers, inverses)
