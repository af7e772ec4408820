"""How well a model predicts a text."""

from collections.abc import Callable
from itertools import islice
from math import exp, inf, log
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError
from data.batches import evaluation_batches
from harness.training.backend import Backend
from harness.training.settings import tokens_per_sequence

MAX_WINDOWS, MAX_LOGITS = 32, 1 << 26


class Evaluation(NamedTuple):
    """loss: nats per token; tokens: how many were predicted, which is all but the first."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens with the same uncertainty; inf if it overflows."""
        try:
            return exp(self.loss)
        except OverflowError:
            return inf


def evaluate(
    backend: Backend,
    tokens: np.ndarray,
    batch_size: int | None = None,
    *,
    sequence_length: int | None = None,
    max_windows: int | None = None,
    stride: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Evaluation | None:
    """The mean loss over a text's tokens, each predicted from those before it in its window.

    tokens: int (N,); batch_size: windows at once, None for 32, or fewer if their logits were more than 64 million
    sequence_length: tokens of a window, None for the model's context length
    max_windows, stride: see `data.batches.evaluation_batches`
    interrupted: asked after every batch whether to leave. returns: None then
    progress: called after every batch with the tokens predicted so far
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {batch_size}")
    T = tokens_per_sequence(sequence_length, backend.config)
    batch_size = batch_size or max(1, min(MAX_WINDOWS, MAX_LOGITS // (T * backend.config.vocab_size)))
    total, count = 0.0, 0
    for inputs, targets in evaluation_batches(tokens, T, batch_size, max_windows, stride):
        total += backend.evaluate(inputs, targets) * targets.size
        count += targets.size
        progress(count)
        if interrupted():
            return None
    return Evaluation(total / count, count)


def log_probabilities(
    backend: Backend,
    tokens: np.ndarray,
    *,
    sequence_length: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """The logarithm of the probability of every token but the first, from those before it in its window: float (N - 1,)

    tokens, sequence_length, stride: as in `evaluate`, whose loss is minus the mean of these
    """
    T, found = tokens_per_sequence(sequence_length, backend.config), []
    rows = max(1, MAX_LOGITS // 8 // backend.config.vocab_size)  # in float64, and held twice
    for inputs, targets in evaluation_batches(tokens, T, 1, stride=stride):
        wanted = iter(targets[0])
        for logits in backend.logits(inputs, targets.shape[1], rows):
            shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
            picked = shifted[np.arange(len(logits)), list(islice(wanted, len(logits)))]
            found.append(picked - np.log(np.exp(shifted, out=shifted).sum(axis=-1)))
    return np.concatenate(found)


def bits_per_byte(evaluation: Evaluation, tokens: np.ndarray, lengths: np.ndarray) -> float:
    """The loss in bits per byte of the predicted text, whatever the tokenizer.

    tokens: int (N,), as given to `evaluate`; lengths: int (V,), the bytes of each token
    """
    counts = np.zeros(len(lengths), np.int64)
    for start in range(1, len(tokens), 1 << 20):  # in pieces: the file may be large
        counts += np.bincount(tokens[start : start + (1 << 20)], minlength=len(lengths))
    return evaluation.loss * evaluation.tokens / log(2) / int(counts @ lengths)
