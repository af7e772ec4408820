"""Counter-based random numbers: which ones they are, and that nothing but their arguments changes them."""

import re
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest

from contract.errors import ConfigError
from contract.randomness import DropoutKey, dropout_mask, generator, uniform

WORD = (1 << 64) - 1


def stream_key(stream):
    return int.from_bytes(sha256(stream.encode()).digest()[:8], "little")


def philox_words(key, counter, count):
    """Philox4x64-10 as published (Salmon et al. 2011, section 3.3), in Python's integers."""
    words, block = [], 0
    while len(words) < count:
        block += 1  # NumPy counts before it draws
        c, (k0, k1) = [counter[0] + block, *counter[1:]], key
        for _ in range(10):
            high_0, low_0 = divmod(0xD2E7470EE14C6C93 * c[0], 1 << 64)
            high_1, low_1 = divmod(0xCA5A826395121157 * c[2], 1 << 64)
            c = [high_1 ^ c[1] ^ k0, low_1, high_0 ^ c[3] ^ k1, low_0]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
        words += c
    return words[:count]


@pytest.mark.parametrize("counter", [(), (0,), (7,), (1, 2), (3, 0, 5)])
@pytest.mark.parametrize("seed", [0, 5, 2**53 + 1, 2**63 - 1])
@pytest.mark.parametrize("stream", ["windows", "sampling", "weights.token_embedding.weight"])
def test_words_are_philox(seed, stream, counter):
    """The raw words are Philox's, keyed by the whole seed and the whole hash of the stream's name."""
    expected = philox_words((seed, stream_key(stream)), [0, *counter, *[0] * (3 - len(counter))], 9)
    words = generator(seed, stream, *counter).bit_generator.random_raw(9)
    assert [int(word) for word in words] == expected


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((0, "windows", 0), 0x5082C09010AC24AE),
        ((0, "sampling", 0, 0), 0xCB7FC65350ADD128),
        ((1234, "weights.token_embedding.weight"), 0xA5E49820B85B99F4),
        ((2**53 + 1, "dropout.embedding_dropout", 3, 5), 0xC47F8EF7E9AD6341),
    ],
)
def test_pinned_words(arguments, word):
    """The numbers that runs of earlier versions drew are drawn for ever."""
    assert int(generator(*arguments).bit_generator.random_raw()) == word


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63, 2**64, 1.0, True, "1", None])
def test_impossible_seeds(seed):
    """A seed is a whole number from 0 to 2^63 - 1: beyond, two seeds would draw the same numbers."""
    message = re.escape(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    for draw in (generator, uniform):
        with pytest.raises(ConfigError, match=message):
            draw(seed, "windows")
    with pytest.raises(ConfigError, match=message):
        DropoutKey(seed, 0)
    assert uniform(np.int64(5), "windows") == uniform(5, "windows")


def test_impossible_counters():
    """A step, a sequence or another counter below 0 is named; so is a rate that would drop everything."""
    with pytest.raises(ConfigError, match="the counter of stream windows must be a whole number from 0 to"):
        generator(0, "windows", -1)
    with pytest.raises(ConfigError, match=r"step must be a whole number from 0 to .*, got -1"):
        DropoutKey(0, -1)
    with pytest.raises(ConfigError, match=r"first_sequence must be .*, got -2"):
        DropoutKey(0, 1, first_sequence=-2)
    with pytest.raises(ConfigError, match=r"dropout rate must be .*, got 1\.0"):
        mask_of(rate=1.0)


def test_neighbouring_seeds_differ():
    """Large seeds that differ by 1 give different draws in every stream."""
    for stream in ("windows", "sampling", "weights.token_embedding.weight"):
        draws = {uniform(seed, stream) for seed in range(2**62, 2**62 + 50)}
        assert len(draws) == 50, stream


def test_uniform():
    """`uniform` is the first word's upper 53 bits, in [0, 1), the number that NumPy's `random` makes of it."""
    draws = np.array([uniform(2, "sampling", 0, position) for position in range(4000)])
    for position in range(20):
        word = philox_words((2, stream_key("sampling")), [0, 0, position, 0], 1)[0]
        assert draws[position] == (word >> 11) / 2**53
        assert draws[position] == generator(2, "sampling", 0, position).random()
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, 1 in 1000


def test_draws_in_any_order():
    """A draw depends on its arguments alone: calls in any order, or twice, give the same."""
    places = [(seed, stream, a, b) for seed in (0, 1) for stream in "xy" for a in (0, 1) for b in (0, 1)]
    forward = {place: uniform(*place) for place in places}
    backward = {place: uniform(*place) for place in reversed(places)}
    assert forward == backward
    assert len(set(forward.values())) == len(places)  # seed, stream and both counters all tell apart


def test_a_generator_is_its_own():
    """Drawing from one generator moves no other."""
    first, second = generator(0, "x"), generator(0, "x")
    values = first.random(5)
    np.testing.assert_array_equal(second.random(5), values)


# --- dropout -------------------------------------------------------------------------------------------------

KEY = DropoutKey(seed=1, step=2)


def mask_of(key=KEY, site="here", shape=(4, 3, 5), rate=0.3, dtype=np.float64):
    return dropout_mask(key, site, shape, rate, dtype)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_mask_values(rate):
    """A mask holds 0 at the rate asked for, else 1 / (1 - rate), and so has mean 1."""
    mask = mask_of(shape=(20, 1000), rate=rate)
    assert set(np.unique(mask)) == {0, 1 / (1 - rate)}
    dropped = np.count_nonzero(mask == 0)
    assert abs(dropped - rate * mask.size) < 4 * np.sqrt(mask.size * rate * (1 - rate))


def test_mask_from_words():
    """Element i of sequence b is dropped where 32-bit word i of (seed, site; b, step) is below rate · 2³²."""
    mask = mask_of(DropoutKey(5, 7, first_sequence=3), shape=(2, 3, 3), rate=0.4)
    for row in range(2):
        words = philox_words((5, stream_key("dropout.here")), [0, 3 + row, 7, 0], 5)
        halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)][:9]
        expected = [0 if half < round(0.4 * 2**32) else 1 / 0.6 for half in halves]
        np.testing.assert_allclose(mask[row].ravel(), expected, rtol=1e-15)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), (2, 3), (3, 5, 7), (2, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mask_shape_and_dtype(shape, dtype):
    """A mask has the shape and dtype asked for; float32 drops the very elements that float64 drops."""
    mask = mask_of(shape=shape, dtype=dtype)
    assert (mask.shape, mask.dtype) == (shape, dtype)
    np.testing.assert_array_equal(mask != 0, mask_of(shape=shape) != 0)


@pytest.mark.parametrize("cuts", [[1, 3], [2], [1, 2, 3, 4, 5]])
def test_mask_of_parts(cuts):
    """The mask of a batch is the masks of its parts, each told its first sequence."""
    whole = mask_of(shape=(6, 3, 5))
    edges = [0, *cuts, 6]
    parts = [
        mask_of(KEY._replace(first_sequence=start), shape=(stop - start, 3, 5))
        for start, stop in pairwise(edges)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": KEY._replace(seed=2)},
        {"key": KEY._replace(step=3)},
        {"key": KEY._replace(first_sequence=4)},
        {"site": "there"},
    ],
    ids=["seed", "step", "sequence", "site"],
)
def test_masks_differ(changes):
    """Another seed, step, sequence or site draws another mask, independent of the first."""
    one, other = mask_of(shape=(4, 500), rate=0.5), mask_of(**changes, shape=(4, 500), rate=0.5)
    assert abs(np.mean(one == other) - 0.5) < 0.05


def test_sequences_of_a_mask_differ():
    """No two sequences of a batch share their mask, and step and sequence do not stand for one another."""
    mask = mask_of(shape=(5, 64), rate=0.5)
    assert len({row.tobytes() for row in mask}) == 5
    swapped = mask_of(DropoutKey(1, 4, first_sequence=3), shape=(1, 64), rate=0.5)
    assert (mask_of(DropoutKey(1, 3, first_sequence=4), shape=(1, 64), rate=0.5) != swapped).any()


def test_masks_in_any_order():
    """A mask is a pure function of its arguments."""
    keys = [DropoutKey(0, step) for step in (0, 5, 2)]
    first = [mask_of(key) for key in keys]
    for key, mask in zip(reversed(keys), reversed(first), strict=True):
        np.testing.assert_array_equal(mask_of(key), mask)


def test_extreme_rates():
    """At rate 0 nothing is dropped; just below 1 nearly all is, and what stays is scaled up as it should."""
    np.testing.assert_array_equal(mask_of(rate=0.0), 1)
    rate = 1 - 1e-3
    mask = mask_of(shape=(10, 10000), rate=rate)
    assert 50 < np.count_nonzero(mask) < 160
    assert mask.max() == pytest.approx(1e3)
    rarely = mask_of(shape=(10, 10000), rate=1e-3)
    assert 50 < np.count_nonzero(rarely == 0) < 160
    assert np.isfinite(mask_of(rate=1 - 1e-12)).all()  # rounds to a rate of 1 in 32 bits
