"""Batches: every window once an epoch, each batch a pure function of its step, nothing left out in evaluation."""

from collections import Counter

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from data.batches import Windows, evaluation_batches, windows_per_epoch

CORPORA = [
    (9, 8),
    (10, 8),
    (15, 8),
    (16, 8),
    (17, 8),
    (23, 8),
    (24, 8),
    (25, 8),
    (203, 8),
    (2, 1),
    (3, 1),
    (50, 1),
]
corpora = pytest.mark.parametrize(("count", "T"), CORPORA)


def corpus(count, dtype=np.uint16):
    return np.arange(count, dtype=dtype) + 100


def epoch_starts(windows: Windows, epoch: int) -> np.ndarray:
    """The first token of every window of an epoch, in the order of training."""
    return np.concatenate([windows.starts(epoch, part) for part in range(windows.parts)])


@pytest.fixture(params=[1 << 20, 4], ids=["at once", "in parts"])
def shuffled(request, monkeypatch):
    """An epoch shuffled at once, and in parts of at most four windows as if the corpus were large."""
    monkeypatch.setattr("data.batches.MAX_SHUFFLE", request.param)


def test_parts_of_a_large_corpus(monkeypatch):
    """Each part is spread over the whole corpus, of nearly the same size, and has an order of its own."""
    monkeypatch.setattr("data.batches.MAX_SHUFFLE", 100)
    windows = Windows(corpus(8 * 312 + 3), 8, seed=0)
    assert windows.parts == 4
    orders = []
    for part in range(4):
        numbers = windows.starts(2, part) // 8
        np.testing.assert_array_equal(np.sort(numbers), np.arange(part, windows.per_epoch, 4))
        orders.append(tuple((numbers - part) // 4)[:70])
    assert len(set(orders)) == 4


@corpora
@pytest.mark.usefixtures("shuffled")
def test_every_window_once_an_epoch(count, T):
    """An epoch is windows that lie end to end, each once, leaving out less than two windows at the ends."""
    windows = Windows(corpus(count), T, seed=3)
    assert windows.per_epoch == windows_per_epoch(count, T) == max(1, count // T - 1)
    for epoch in range(20):
        starts = np.sort(epoch_starts(windows, epoch))
        assert len(starts) == windows.per_epoch
        assert (np.diff(starts) == T).all()
        assert starts[0] >= 0
        assert starts[-1] + T < count  # room for the last target
        assert starts[0] < T
        assert count - (starts[-1] + T + 1) < 2 * T


@corpora
@pytest.mark.usefixtures("shuffled")
def test_windows_start_everywhere(count, T):
    """Over the epochs the first window starts at each place that leaves room for all windows, up to T - 1."""
    windows = Windows(corpus(count), T, seed=0)
    firsts = {int(epoch_starts(windows, epoch).min()) for epoch in range(300)}
    assert firsts == set(range(min(T - 1, count - 1 - windows.per_epoch * T) + 1))


@pytest.mark.usefixtures("shuffled")
def test_order_is_a_function_of_seed_and_epoch():
    """The order changes with the seed and with the epoch, and with nothing else."""

    def order(seed, epoch):
        return tuple(epoch_starts(Windows(corpus(203), 8, seed), epoch).tolist())

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in range(3)}
    assert len(set(orders.values())) == 6
    for (seed, epoch), starts in orders.items():
        assert order(seed, epoch) == starts
        assert list(starts) != sorted(starts)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_targets_are_the_next_tokens(dtype):
    """Targets are the tokens one place on, both int64 whatever the file holds."""
    tokens, targets = Windows(corpus(203, dtype), 8, seed=1).batch(4, 5)
    assert tokens.shape == targets.shape == (5, 8)
    assert tokens.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(targets, tokens + 1)  # in a corpus that counts
    np.testing.assert_array_equal(tokens, tokens[:, :1] + np.arange(8))


@pytest.mark.usefixtures("shuffled")
def test_batches_go_through_the_epochs_in_order():
    """Batches cut the endless row of epochs into pieces, also across the border of two epochs."""
    windows = Windows(corpus(61), 8, seed=2)  # 6 windows an epoch
    assert windows.per_epoch == 6
    row = np.concatenate([epoch_starts(windows, epoch) + 100 for epoch in range(5)])
    for batch_size in (1, 4, 6, 13):
        firsts = [windows.batch(step, batch_size)[0][:, 0] for step in range(30 // batch_size)]
        taken = np.concatenate(firsts)
        np.testing.assert_array_equal(taken, row[: len(taken)])


@pytest.mark.usefixtures("shuffled")
def test_an_epoch_of_batches_has_every_window_once():
    """Batches that divide the epoch meet each of its windows exactly once."""
    windows = Windows(corpus(61), 8, seed=2)
    for epoch in range(3):
        firsts = [first for step in (0, 1, 2) for first in windows.batch(3 * epoch + step, 2)[0][:, 0]]
        assert Counter(firsts) == Counter(epoch_starts(windows, epoch) + 100)


@pytest.mark.usefixtures("shuffled")
def test_batch_is_a_pure_function_of_the_step():
    """Steps asked for in any order, twice, or of a new object give the same batch."""
    steps = [7, 0, 3, 3, 11, 1, 7, 10, 2]
    windows = Windows(corpus(61), 8, seed=5)
    expected = {step: Windows(corpus(61), 8, seed=5).batch(step, 4) for step in steps}
    for step in steps:
        for actual, kept in zip(windows.batch(step, 4), expected[step], strict=True):
            np.testing.assert_array_equal(actual, kept)


def test_batch_leaves_the_corpus_alone():
    """A batch is a copy: nothing points into the corpus."""
    tokens = corpus(61)
    for part in Windows(tokens, 8, seed=5).batch(0, 3):
        part[:] = 0
    np.testing.assert_array_equal(tokens, corpus(61))


@pytest.mark.parametrize(("count", "T"), [(2, 1), (9, 8), (33, 32)])
def test_shortest_corpus(count, T):
    """A corpus of T + 1 tokens is its one window, in every batch."""
    windows = Windows(corpus(count), T, seed=0)
    tokens, targets = windows.batch(3, 4)
    np.testing.assert_array_equal(tokens, [corpus(count)[:-1]] * 4)
    np.testing.assert_array_equal(targets, [corpus(count)[1:]] * 4)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_too_short_for_training(count):
    """A corpus without room for one window and its targets is refused with both lengths."""
    with pytest.raises(UserError, match=f"{count} tokens.* 9;"):
        Windows(corpus(count), 8, seed=0)


# --- evaluation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(("count", "T"), [*CORPORA, (2, 8), (5, 8), (8, 8)])
def test_evaluation_predicts_every_token_once(count, T, batch_size):
    """Every token after the first is a target exactly once, after the tokens of its own window."""
    seen = []
    for tokens, targets in evaluation_batches(corpus(count), T, batch_size):
        assert tokens.shape == targets.shape
        assert tokens.dtype == targets.dtype == np.int64
        assert len(tokens) <= batch_size
        assert 1 <= tokens.shape[1] <= T
        np.testing.assert_array_equal(targets, tokens + 1)
        np.testing.assert_array_equal(tokens, tokens[:, :1] + np.arange(tokens.shape[1]))
        seen += targets.ravel().tolist()
    assert seen == list(range(101, 100 + count))


def test_evaluation_batches_are_full():
    """All batches but the last of whole windows have the batch size; the rest comes alone, shorter."""
    shapes = [tokens.shape for tokens, _ in evaluation_batches(corpus(61), 8, 3)]
    assert shapes == [(3, 8), (3, 8), (1, 8), (1, 4)]


@pytest.mark.parametrize("most", [1, 2, 5, 6])
def test_evaluation_of_some_windows(most):
    """A limit takes exactly so many different whole windows, spread from the first to the last."""
    batches = list(evaluation_batches(corpus(61), 8, 4, max_windows=most))
    starts = [int(row[0]) - 100 for tokens, _ in batches for row in tokens]
    assert len(set(starts)) == len(starts) == most
    assert starts == sorted(starts)
    assert all(start % 8 == 0 for start in starts)
    assert starts[0] == 0
    if most > 1:
        assert starts[-1] == 48
        assert max(np.diff(starts)) - min(np.diff(starts)) <= 8
    assert all(tokens.shape[1] == 8 for tokens, _ in batches)


def test_evaluation_of_at_most_more_windows_than_there_are():
    """A limit that is not reached takes every whole window; a text below one window is still evaluated."""
    assert [t.shape for t, _ in evaluation_batches(corpus(61), 8, 4, max_windows=7)] == [(4, 8), (3, 8)]
    assert [t.shape for t, _ in evaluation_batches(corpus(61), 8, 4, max_windows=99)] == [(4, 8), (3, 8)]
    assert [t.shape for t, _ in evaluation_batches(corpus(5), 8, 4, max_windows=2)] == [(1, 4)]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("stride", [1, 3, 7, 8])
@pytest.mark.parametrize("count", [2, 8, 9, 10, 12, 17, 61])
def test_a_sliding_window_predicts_every_token_once(count, stride, batch_size):
    """Every token after the first is predicted once, with T - S tokens before it in its window, or all there are."""
    seen, T = [], 8
    for tokens, targets in evaluation_batches(corpus(count), T, batch_size, stride=stride):
        assert len(tokens) == len(targets) <= batch_size
        assert tokens.shape[1] <= T
        predicted = targets.shape[1]
        np.testing.assert_array_equal(targets, tokens[:, -predicted:] + 1)
        np.testing.assert_array_equal(tokens, tokens[:, :1] + np.arange(tokens.shape[1]))
        for row, wanted in zip(tokens, targets, strict=True):
            assert wanted[0] - row[0] >= min(T - stride + 1, wanted[0] - 100)
            assert (row[0] - 100) % stride == 0
        seen += targets.ravel().tolist()
    assert seen == list(range(101, 100 + count))


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_impossible_stride(stride):
    """A window that stands still, or leaves tokens out, is refused."""
    with pytest.raises(
        ConfigError,
        match=rf"at most the length of a sequence\) must be a whole number from 1 to 8, got {stride}",
    ):
        list(evaluation_batches(corpus(61), 8, 4, stride=stride))


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_evaluate(count):
    """A text without a token to predict is refused with its length."""
    with pytest.raises(UserError, match=f"{count} tokens"):
        list(evaluation_batches(corpus(count), 8, 4))
