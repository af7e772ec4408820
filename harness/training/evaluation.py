"""How well a model predicts a text."""

import re
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from math import exp, inf, log
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError, UserError
from contract.targets import NO_TARGET
from data.batches import evaluation_batches, targets_of
from harness.training.backend import Backend
from harness.training.settings import tokens_per_sequence

MAX_WINDOWS, MAX_LOGITS = 32, 1 << 26


class Evaluation(NamedTuple):
    """loss: nats per token; tokens: how many predictions count, as a rule those of all tokens but the first."""

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
    """The mean loss over a text's tokens that count, each predicted from those before it in its window.

    tokens: int (N,); batch_size: windows at once, None for 32, or fewer if their logits were more than 64 million
    sequence_length: tokens of a window, None for the model's context length
    max_windows, stride: see `data.batches.evaluation_batches`
    interrupted: asked after every batch whether to leave. returns: None then
    progress: called after every batch with the tokens predicted so far
    Raises UserError if none of the tokens counts.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {batch_size}")
    T = tokens_per_sequence(sequence_length, backend.config)
    batch_size = batch_size or max(1, min(MAX_WINDOWS, MAX_LOGITS // (T * backend.config.vocab_size)))
    total, count, predicted = 0.0, 0, 0
    batches = evaluation_batches(tokens, T, batch_size, max_windows, stride)
    for (_, targets), loss in backend.evaluate_each(batches):
        found = int(np.count_nonzero(targets != NO_TARGET))
        total += loss * found
        count += found
        predicted += targets.size
        progress(predicted)
        if interrupted():
            return None
    if count == 0:
        raise UserError(f"{predicted:,} tokens were predicted, of which no one counts; evaluate more of them")
    return Evaluation(total / count, count)


def log_probabilities(
    backend: Backend,
    tokens: np.ndarray,
    *,
    sequence_length: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """The logarithm of the probability of every token but the first, from those before it in its window: float (N - 1,)

    tokens, sequence_length, stride: as in `evaluate`, whose loss is minus the mean of those that count
    """
    T, found = tokens_per_sequence(sequence_length, backend.config), []
    wanted = iter(np.asarray(tokens[1:]))
    rows = max(1, MAX_LOGITS // 8 // backend.config.vocab_size)  # in float64, and held twice
    for inputs, targets in evaluation_batches(tokens, T, 1, stride=stride):
        for logits in backend.logits(inputs, targets.shape[1], rows):
            shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
            picked = shifted[np.arange(len(logits)), list(islice(wanted, len(logits)))]
            found.append(picked - np.log(np.exp(shifted, out=shifted).sum(axis=-1)))
    return np.concatenate(found)


def evaluation_of(log_probabilities: np.ndarray, tokens: np.ndarray) -> Evaluation:
    """The loss of those tokens, int (N,), that count; log_probabilities: float (N - 1,), of all but the first"""
    found = log_probabilities[counts(tokens, 1, len(tokens))]
    return Evaluation(-float(found.mean()), len(found))


def document_losses(
    log_probabilities: np.ndarray, tokens: np.ndarray, ends: Sequence[int]
) -> list[tuple[int, Evaluation]]:
    """The place where each document begins and the loss of its tokens that count, its end token's included.

    log_probabilities: float (N - 1,), of the tokens, int (N,), but the first; ends: the tokens that end a document
    A document without one is left out, such as that of the first token alone, which is not predicted.
    """
    edges = [0, *(np.flatnonzero(np.isin(tokens[: len(tokens) - 1], ends)) + 1), len(tokens)]
    counting = counts(tokens, 1, len(tokens))
    places = [(int(start), slice(max(start, 1) - 1, stop - 1)) for start, stop in pairwise(edges)]
    parts = [(start, log_probabilities[place][counting[place]]) for start, place in places]
    return [(start, Evaluation(-float(part.mean()), len(part))) for start, part in parts if len(part)]


def of_text(evaluation: Evaluation, tokens: np.ndarray, texts: list[bytes]) -> dict[str, float]:
    """The loss over units of the predicted text that no tokenizer changes: `bits_per_byte`, `word_perplexity`.

    tokens: int (N,), as given to `evaluate`; texts: of each token, as `data.tokenizers.text_bytes` gives them
    Only tokens that count are looked at. A word is what stands between white space; None where there is none.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    # A word begins inside a token, or with a token behind one that ends in white space.
    inside = np.array([len(re.findall(rb"(?<=\s)\S", text)) for text in texts], np.int64)
    begins = np.array([text[:1].strip() != b"" for text in texts])
    closes = np.array([text[-1:].strip() == b"" for text in texts])
    n_bytes = n_words = 0
    for start in range(1, len(tokens), 1 << 20):  # in pieces: the file may be large
        stop = min(start + (1 << 20), len(tokens))
        piece = np.asarray(tokens[start - 1 : stop])
        counting = counts(tokens, start, stop)
        before, piece = piece[:-1][counting], piece[1:][counting]
        n_bytes += int(lengths[piece].sum())
        n_words += int(inside[piece].sum() + (begins[piece] & closes[before]).sum())
    nats = evaluation.loss * evaluation.tokens
    return {
        "bits_per_byte": nats / log(2) / n_bytes,
        "word_perplexity": Evaluation(nats / n_words, n_words).perplexity if n_words else None,
    }


def counts(tokens: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Which of these tokens of a corpus count as targets: bool (stop - start,)."""
    return targets_of(tokens, start, stop) != NO_TARGET
