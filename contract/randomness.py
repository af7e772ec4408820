"""Counter-based random numbers: every draw is a pure function of where it is used.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is a keyed permutation of a
counter. The key is (seed, stream), the counter says which draw; no state is carried. So a run resumes exactly, both
twins draw the same numbers, and splitting a batch over threads, micro-batches or machines changes no draw.
"""

from functools import cache
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from contract.checks import check_number, check_whole


@cache
def _stream_key(stream: str) -> int:
    return int.from_bytes(sha256(stream.encode()).digest()[:8], "little")


def _philox(seed: int, stream: str, *counter: int) -> np.random.Philox:
    check_whole("seed", seed)
    for word in counter:
        check_whole(f"the counter of stream {stream}", word)
    # The lowest counter word is left to Philox, which counts the draws of this generator with it.
    words = [0, *counter, *[0] * (3 - len(counter))]
    # As uint64 at once: from a list with words on both sides of 2^63 NumPy makes float64, which rounds them.
    key = np.array([seed, _stream_key(stream)], np.uint64)
    return np.random.Philox(key=key, counter=np.array(words, np.uint64))


def generator(seed: int, stream: str, *counter: int) -> np.random.Generator:
    """A NumPy generator for one purpose.

    stream: the purpose by name, such as "windows" or "weights.final_norm.weight"
    counter: up to three numbers that tell draws of one stream apart, such as epoch or step
    Raises ConfigError for a seed or a counter that is not from 0 to 2^63 - 1.
    """
    return np.random.Generator(_philox(seed, stream, *counter))


def uniform(seed: int, stream: str, *counter: int) -> float:
    """One number in [0, 1) with 53 random bits, from the same arguments as `generator`."""
    return int(_philox(seed, stream, *counter).random_raw() >> 11) * 2.0**-53


class _DropoutKey(NamedTuple):
    seed: int
    step: int
    first_sequence: int = 0


class DropoutKey(_DropoutKey):
    """What a dropout mask depends on, beside its place in the model: whole numbers from 0 to 2^63 - 1.

    seed: the run's; step: the optimiser step, counted from 0
    first_sequence: place of the first sequence held here in the whole batch of the step
    """

    __slots__ = ()

    def __new__(cls, seed: int, step: int, first_sequence: int = 0):  # a NamedTuple may not have its own
        key = super().__new__(cls, seed, step, first_sequence)
        for name, value in key._asdict().items():
            check_whole(name, value)
        return key


def dropout_mask(key: DropoutKey, site: str, shape: tuple[int, ...], rate: float, dtype) -> np.ndarray:
    """The factors of inverted dropout: 0 with probability `rate`, else 1 / (1 - rate).

    site: the dotted name of the place in the model, such as "blocks.0.attention.weights"
    shape: (B, ...); sequence b draws from its own counter, so a batch cut in parts gets the same masks
    Raises ConfigError unless 0 <= rate < 1.

    Source: Srivastava et al. 2014, section 4, in the inverted form that leaves evaluation unscaled.
    """
    check_number("dropout rate", rate, lambda rate: 0 <= rate < 1, "a number of at least 0 and below 1")
    # A 32-bit word below the threshold drops its element; 2**-32 is far finer than any rate asked for.
    threshold = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    scale = np.asarray(1 / (1 - rate), dtype)
    draws = int(np.prod(shape[1:], dtype=np.int64))
    mask = np.empty((shape[0], draws), dtype)
    for row, sequence in enumerate(range(key.first_sequence, key.first_sequence + shape[0])):
        philox = _philox(key.seed, f"dropout.{site}", sequence, key.step)
        words = philox.random_raw((draws + 1) // 2).view(np.uint32)[:draws]
        np.multiply(words >= threshold, scale, out=mask[row])
    return mask.reshape(shape)
