"""Training that starts from trained weights: what it may change of their model, how its vocabulary grows, and how long
its sequences are.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from contract.components import weight_rows
from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.randomness import generator
from contract.weights import Weights
from data.growing import grown
from data.held_out import HeldOut
from data.prepare import TokenFileInfo
from data.sources import Texts
from data.tokenizers import Tokenizer
from harness.training.backend import thread_count
from harness.training.checkpoint import Checkpoint
from harness.training.memory import fitting_length
from harness.training.settings import Machine, TrainingSettings

NEW_ROWS, OLD_ROWS = 64, 4096  # worked on at a time: some megabytes in float64


def overridden(config: ModelConfig, overrides: dict, start: Path, vocab_size: int) -> ModelConfig:
    """The configuration of trained weights with another dropout or a shorter context; all else is refused.

    vocab_size: of the tokenizer; if it has grown beyond the model's, so does the model
    """
    for name, value in overrides.items():
        shorter = name == "context_length" and 1 <= value < config.context_length
        if name != "dropout" and not shorter and value != getattr(config, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} {value} contradicts --from {start}, whose weights are of "
                f"{name} {getattr(config, name)}; omit it"
            )
    return replace(config, **overrides | {"vocab_size": max(config.vocab_size, vocab_size)})


def grown_tokenizer(
    tokenizer: Tokenizer, texts: Texts, held_out: HeldOut | None, merges: int | None, progress
) -> Tokenizer:
    """The tokenizer of trained weights with what it lacks for a text, and for one that is held out; see `grown`.

    merges: None for the tokenizer as it is
    """
    if merges is None:
        return tokenizer
    others = [texts.like(held_out.text)] if held_out and held_out.text else []
    return grown(tokenizer, [texts, *others], merges, progress)


def starting_weights(
    base: Checkpoint | None, config: ModelConfig, tokenizer: Tokenizer, seed: int
) -> Weights | None:
    """The weights to start from: of learned positions those that a shorter context has, and a row for each new token.

    tokenizer: the checkpoint's, or grown from it; seed: of the new rows, see `draw_rows`
    """
    if base is None:
        return None
    old, new = base.tokenizer.n_vocab, tokenizer.n_vocab
    if config.context_length == base.config.context_length and old == new:
        return base.weights
    weights = Weights.zeros(config, base.weights.flat.dtype)
    for name, weight in weights.items():
        count = min(len(weight), len(base.weights[name]))
        weight[:count] = base.weights[name][:count]
    tables = [name for name, row in weight_rows(config).items() if row.letters.startswith("V")]
    for name in tables:
        draw_rows(weights[name], old, new, seed)
    return weights


def draw_rows(table: np.ndarray, old: int, new: int, seed: int):
    """Draw the rows `old` to `new` of a table from the normal distribution that has the mean and the covariance of the
    rows before them, which stay as they are.

    table: (V, C), a row for each token; what stands in the new rows, for no text in a published model, is replaced

        row = μ + Σᵢ zᵢ (xᵢ − μ) / √n,   zᵢ ~ N(0, 1)

    A sum over the n old rows x has their covariance without a matrix of it, even where that has no full rank. With the
    covariance a new token's logit varies from context to context as those of the old tokens do, where a deviation for
    each channel would make it larger or smaller. A token has the same z in every table: its rows for input and output
    go together as those of an old token do.

    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
    """
    mean = table[:old].mean(axis=0, dtype=np.float64)
    for first in range(old, new, NEW_ROWS):
        ids = range(first, min(first + NEW_ROWS, new))
        z = np.stack([generator(seed, "new tokens", id).standard_normal(old) for id in ids])
        rows = np.zeros((len(ids), *mean.shape))
        for start in range(0, old, OLD_ROWS):
            part = table[start : min(start + OLD_ROWS, old)] - mean
            rows += z[:, start : start + len(part)] @ part
        table[first : first + len(ids)] = mean + rows / np.sqrt(old)


def with_length(training: dict, machine: Machine, config: ModelConfig, info: TokenFileInfo) -> dict:
    """The settings of further training, with a length of sequences that this machine and the text can take."""
    if training.get("sequence_length") is not None:
        return training
    possible = TrainingSettings(**{name: value for name, value in training.items() if name != "epochs"})
    threads = thread_count(machine.threads)
    length = fitting_length(machine.backend, config, possible, threads, info.train_tokens)
    return training | {"sequence_length": length}
