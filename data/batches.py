"""From a token file to batches: windows of tokens, each with the tokens that follow them."""

from collections.abc import Iterator

import numpy as np

from contract.checks import check_whole
from contract.errors import UserError
from contract.randomness import generator
from data.token_store import StoredTokens

MAX_SHUFFLE = 1 << 20  # windows, whose order takes 8 MB


def windows_per_epoch(tokens: int, sequence_length: int) -> int:
    """How many windows one epoch over `tokens` tokens has."""
    check_whole("sequence_length", sequence_length, 1)
    # One less than would fit leaves room to shift their start.
    return max(1, (tokens - sequence_length) // sequence_length)


class Windows:
    """The windows of a corpus, each once per epoch, in an order that depends only on seed and epoch.

    An epoch cuts the corpus into windows of T tokens, from a start that differs between epochs, so that a token is not
    always at the same position. A batch is a pure function of (corpus, seed, step).

    The order of a large corpus would not fit into memory, so its epoch has several parts, shuffled one by one:
    of P parts the first has windows 0, P, 2P, ..., the second 1, P + 1, ...

    tokens: int (N,), an array or `data.token_store.StoredTokens`; sequence_length: T; seed: int
    Raises UserError for fewer than T + 1 tokens, ConfigError for a T or a seed out of range.
    """

    def __init__(self, tokens: np.ndarray, sequence_length: int, seed: int):
        check_whole("sequence_length", sequence_length, 1)
        check_whole("seed", seed)
        if len(tokens) <= sequence_length:
            raise UserError(
                f"the training text has {len(tokens)} tokens, but one sequence needs {sequence_length + 1}; "
                "give a longer text or a smaller --sequence-length"
            )
        self.tokens, self.sequence_length, self.seed = tokens, sequence_length, seed
        self.per_epoch = windows_per_epoch(len(tokens), sequence_length)
        self.parts = -(-self.per_epoch // MAX_SHUFFLE)
        self._part, self._starts = None, None

    def starts(self, epoch: int, part: int) -> np.ndarray:
        """The first token of every window of a part of an epoch, in the order of training: int64 (windows,)."""
        if (epoch, part) != self._part:
            T = self.sequence_length
            room = min(T - 1, len(self.tokens) - 1 - self.per_epoch * T)
            shift = generator(self.seed, "windows", epoch).integers(room + 1)
            draws = generator(self.seed, "windows", epoch, part)
            draws.integers(room + 1)  # the number that is the shift in the first part
            size = len(range(part, self.per_epoch, self.parts))
            self._starts = shift + T * (part + self.parts * draws.permutation(size))
            self._part = epoch, part
        return self._starts

    def _start(self, index: int) -> int:
        """The first token of a window, counted from the beginning of training."""
        epoch, place = divmod(index, self.per_epoch)
        size, longer = divmod(self.per_epoch, self.parts)  # the first parts have a window more
        if place < longer * (size + 1):
            part, place = divmod(place, size + 1)
        else:
            part, place = divmod(place - longer, size)
        return self.starts(epoch, part)[place]

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 (B, T) and targets int64 (B, T), the token after each, of optimiser step `step` from 0 on.

        The target is `NO_TARGET` where the corpus says that a token does not count.

        Raises ConfigError for a negative step or a batch of none.
        """
        check_whole("step", step)
        check_whole("batch_size", batch_size, 1)
        places = range(step * batch_size, (step + 1) * batch_size)
        return _cut(self.tokens, [self._start(index) for index in places], self.sequence_length)


def evaluation_batches(
    tokens: np.ndarray,
    sequence_length: int,
    batch_size: int,
    max_windows: int | None = None,
    stride: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches in which every token after the first is predicted once, from the tokens of its window.

    tokens: int (N,), N at least 2
    max_windows: at most this many, evenly spread; None for all, including the shorter last one
    stride: S, from 1 to T: tokens between the starts of windows. A window predicts the tokens that are new to it, each
        from at least T - S + 1 tokens; None for T, windows side by side
    yields: tokens int64 (B, T) and targets int64 (B, P), the tokens after the last P of each window: P is T in the
        first window and S in the others; the last window may be (1, fewer)
    Raises UserError for fewer than two tokens, ConfigError for a size or a stride out of range.
    """
    check_whole("sequence_length", sequence_length, 1)
    check_whole("batch_size", batch_size, 1)
    if max_windows is not None:
        check_whole("max_windows", max_windows, 1)
    stride = sequence_length if stride is None else stride
    check_whole("stride (at most the length of a sequence)", stride, 1, sequence_length)
    if len(tokens) < 2:
        raise UserError(f"there is nothing to predict in a text of {len(tokens)} tokens; give at least 2")
    beyond = len(tokens) - 1 - sequence_length  # tokens to predict after the first window's
    whole = 1 + beyond // stride if beyond >= 0 else 0
    windows = range(whole)
    if max_windows is not None and whole > max_windows:
        windows = np.linspace(0, whole - 1, max_windows).astype(int)
    # The first window predicts all its tokens, so it has a batch of its own.
    alone = 1 if stride < sequence_length else 0
    yield from _batches(tokens, windows[:alone], stride, sequence_length, batch_size)
    for inputs, targets in _batches(tokens, windows[alone:], stride, sequence_length, batch_size):
        yield inputs, targets[:, -stride:]
    rest = beyond % stride if whole else len(tokens) - 1
    if rest and (max_windows is None or whole == 0):
        inputs, targets = _cut(tokens, [whole * stride], len(tokens) - 1 - whole * stride)
        yield inputs, targets[:, -rest:]


def _batches(tokens, windows, stride, length, batch_size):
    for first in range(0, len(windows), batch_size):
        yield _cut(tokens, [window * stride for window in windows[first : first + batch_size]], length)


def _cut(tokens, starts, length):
    windows = np.stack([tokens[start : start + length + 1] for start in starts], dtype=np.int64)
    targets = windows[:, 1:]
    if has_mask(tokens):
        targets = np.stack([targets_of(tokens, start + 1, start + length + 1) for start in starts])
    return windows[:, :-1], targets


def has_mask(tokens: np.ndarray) -> bool:
    """Whether some of the tokens don't count as targets."""
    return isinstance(tokens, StoredTokens) and tokens.store.form.masked


def targets_of(tokens: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Tokens of a corpus as targets, `NO_TARGET` for those that don't count: int64 (stop - start,)."""
    if has_mask(tokens):
        return tokens.targets(start, stop)
    return np.asarray(tokens[start:stop], np.int64)
