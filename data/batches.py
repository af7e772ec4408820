"""From a token file to batches: windows of tokens, each with the tokens that follow them."""

from collections.abc import Iterator

import numpy as np

from contract.errors import ConfigError, UserError
from contract.randomness import generator


def windows_per_epoch(tokens: int, context_length: int) -> int:
    """How many windows one epoch over `tokens` tokens has."""
    # One less than could be cut, where there are two, leaves room to shift their start.
    return max(1, (tokens - context_length) // context_length)


class Windows:
    """The windows of a corpus, every one once an epoch, in an order that is a function of seed and epoch.

    An epoch cuts the corpus into windows of T tokens that do not overlap; where the first one starts differs
    from epoch to epoch, so that a token is not always met at the same place. Batches take the windows in
    order, epoch after epoch: a batch is a pure function of (corpus, seed, step).

    tokens: int (N,), may be a memory map; context_length: T; seed: int
    Raises UserError for a corpus shorter than one window and its targets, T + 1 tokens.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, seed: int):
        if len(tokens) <= context_length:
            raise UserError(
                f"the training text has {len(tokens)} tokens, but one context needs {context_length + 1}; "
                "give a longer text or a smaller --context-length"
            )
        self.tokens, self.context_length, self.seed = tokens, context_length, seed
        self.per_epoch = windows_per_epoch(len(tokens), context_length)
        self._epoch, self._starts = None, None

    def epoch_starts(self, epoch: int) -> np.ndarray:
        """The first token of every window of an epoch, in the order of training. returns: int64 (windows,)"""
        if epoch != self._epoch:
            T = self.context_length
            room = min(T - 1, len(self.tokens) - 1 - self.per_epoch * T)
            draws = generator(self.seed, "windows", epoch)
            shift = draws.integers(room + 1)
            self._starts = shift + T * draws.permutation(self.per_epoch)
            self._epoch = epoch
        return self._starts

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of optimiser step `step`, counted from 0.

        returns: tokens int64 (B, T) and targets int64 (B, T), the token after each
        """
        indices = range(step * batch_size, (step + 1) * batch_size)
        starts = [self.epoch_starts(index // self.per_epoch)[index % self.per_epoch] for index in indices]
        return _cut(self.tokens, np.array(starts), self.context_length)


def evaluation_batches(
    tokens: np.ndarray,
    context_length: int,
    batch_size: int,
    max_windows: int | None = None,
    stride: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches in which every token after the first is predicted once, from the tokens of its own window.

    tokens: int (N,), N at least 2; max_windows: take only so many, evenly spread; None for all, the shorter
        last one included
    stride: S, from 1 to T: each window starts so many tokens after the one before, and predicts those that
        are new to it, from the T - S + 1 tokens before them at least; None for T, windows side by side
    yields: tokens int64 (B, T) and targets int64 (B, P), the tokens after the last P of each window: T in the
        first window, S in the others; the last window may come as (1, fewer)
    Raises UserError for fewer than two tokens, ConfigError for an impossible stride.
    """
    stride = context_length if stride is None else stride
    if not 1 <= stride <= context_length:
        raise ConfigError(f"stride must be from 1 to the context length, {context_length}, got {stride}")
    if len(tokens) < 2:
        raise UserError(f"there is nothing to predict in a text of {len(tokens)} tokens; give at least 2")
    beyond = len(tokens) - 1 - context_length  # tokens to predict behind the first window's
    whole = 1 + beyond // stride if beyond >= 0 else 0
    starts = np.arange(whole) * stride
    if max_windows is not None and whole > max_windows:
        starts = starts[np.linspace(0, whole - 1, max_windows).astype(int)]
    # Before the first window nothing is predicted yet, so it predicts all its tokens, in a batch of its own.
    alone = 1 if stride < context_length else 0
    for inputs, targets in _batches(tokens, starts[:alone], context_length, batch_size):
        yield inputs, targets
    for inputs, targets in _batches(tokens, starts[alone:], context_length, batch_size):
        yield inputs, targets[:, -stride:]
    rest = beyond % stride if whole else len(tokens) - 1
    if rest and (max_windows is None or whole == 0):
        inputs, targets = _cut(tokens, np.array([whole * stride]), len(tokens) - 1 - whole * stride)
        yield inputs, targets[:, -rest:]


def _batches(tokens, starts, length, batch_size):
    for first in range(0, len(starts), batch_size):
        yield _cut(tokens, starts[first : first + batch_size], length)


def _cut(tokens, starts, length):
    windows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)  # (B, length + 1)
    return windows[:, :-1], windows[:, 1:]
