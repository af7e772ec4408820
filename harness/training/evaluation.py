"""How well a model predicts a text."""

import re
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
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


def document_losses(
    log_probabilities: np.ndarray, tokens: np.ndarray, ends: Sequence[int]
) -> list[tuple[int, Evaluation]]:
    """The place where each document begins and the loss of its tokens, its end token's included.

    log_probabilities: float (N - 1,), of the tokens, int (N,), but the first; ends: the tokens that end a document
    A document of the first token alone has no prediction and is left out.
    """
    tokens = np.asarray(tokens[:])
    edges = [0, *(np.flatnonzero(np.isin(tokens[:-1], ends)) + 1), len(tokens)]
    parts = [(start, log_probabilities[max(start, 1) - 1 : stop - 1]) for start, stop in pairwise(edges)]
    return [(int(start), Evaluation(-float(part.mean()), len(part))) for start, part in parts if len(part)]


def of_text(evaluation: Evaluation, tokens: np.ndarray, texts: list[bytes]) -> dict[str, float]:
    """The loss over units of the predicted text that no tokenizer changes: `bits_per_byte`, `word_perplexity`.

    tokens: int (N,), as given to `evaluate`; texts: of each token, as `data.tokenizers.text_bytes` gives them
    A word is what stands between white space; None where there is none.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    # A word begins inside a token, or with a token behind one that ends in white space.
    inside = np.array([len(re.findall(rb"(?<=\s)\S", text)) for text in texts], np.int64)
    begins = np.array([text[:1].strip() != b"" for text in texts])
    closes = np.array([text[-1:].strip() == b"" for text in texts])
    n_bytes = n_words = 0
    for start in range(1, len(tokens), 1 << 20):  # in pieces: the file may be large
        piece = np.asarray(tokens[start - 1 : start + (1 << 20)])
        n_bytes += int(lengths[piece[1:]].sum())
        n_words += int(inside[piece[1:]].sum() + (begins[piece[1:]] & closes[piece[:-1]]).sum())
    nats = evaluation.loss * evaluation.tokens
    return {
        "bits_per_byte": nats / log(2) / n_bytes,
        "word_perplexity": Evaluation(nats / n_words, n_words).perplexity if n_words else None,
    }
