"""Evaluation and text generation: every token counted once, and characters that come out whole."""

import itertools
from math import log

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from data.tokenizers import encode, load_ranks, open_tokenizer, token_lengths
from harness.backend import open_backend
from harness.evaluation import Evaluation, bits_per_byte, evaluate
from harness.generation import encode_prompt, generate_text
from harness.runs import DEFAULT_RANKS


@pytest.fixture
def backend(tiny_config):
    return open_backend("numpy", tiny_config(), seed=1, dtype="float64")


@pytest.mark.parametrize("count", [2, 4, 5, 6, 9, 23])
@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_every_token_but_the_first_counts_once(backend, count, batch_size):
    """The loss is the plain mean of -log p over the tokens, each seen with those before it in its window."""
    tokens = np.random.default_rng(count).integers(7, size=count)
    losses = []
    for place in range(1, count):
        start = (place - 1) // 4 * 4  # where the window of the prediction begins: the context holds 4 tokens
        logits, _, _ = backend.model.forward(tokens[None, start:place])
        shifted = np.exp(logits[0, -1] - logits[0, -1].max())
        losses.append(-np.log(shifted[tokens[place]] / shifted.sum()))
    result = evaluate(backend, tokens, batch_size)
    assert result.tokens == count - 1
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)


def test_a_quick_evaluation_takes_fewer_windows(backend):
    """`max_windows` windows are looked at and no more."""
    tokens = np.arange(100) % 7
    assert evaluate(backend, tokens, 8, max_windows=3).tokens == 12


def test_perplexity():
    """It is the exponential of the loss, and finite for a hopeless model."""
    assert Evaluation(log(5), 1).perplexity == pytest.approx(5)
    assert np.isfinite(Evaluation(1e9, 1).perplexity)


def test_bits_per_byte():
    """Bits over the bytes of the predicted tokens: here 4 nats a token, and tokens of 1, 2 and 3 bytes."""
    tokens, lengths = np.array([2, 0, 1, 1, 2]), np.array([1, 2, 3])
    assert bits_per_byte(Evaluation(4.0, 4), tokens, lengths) == pytest.approx(
        4 * 4 / log(2) / (1 + 2 + 2 + 3)
    )


def test_bits_per_byte_does_not_depend_on_the_tokenizer():
    """One bit a byte is one bit a byte, whether a token is a byte or several."""
    text = "The baby is sleeping, naïvely.\n" * 3
    ranks = load_ranks(DEFAULT_RANKS)
    tokens = encode(ranks, text)
    lengths = token_lengths(ranks)
    nats = lengths[tokens[1:]].sum() * log(2) / (len(tokens) - 1)
    assert bits_per_byte(Evaluation(nats, len(tokens) - 1), tokens, lengths) == pytest.approx(1)
    assert lengths[tokens].sum() == len(text.encode())


def test_prompts(tmp_path):
    """A prompt's tokens, a line break for none, and one line for what cannot be encoded."""
    text = tmp_path / "text.txt"
    text.write_text("abc")
    tokenizer = open_tokenizer("bytes", text)
    assert encode_prompt(tokenizer, "cab") == [2, 0, 1]
    assert encode_prompt(load_ranks(DEFAULT_RANKS), None) == encode(load_ranks(DEFAULT_RANKS), "\n").tolist()
    with pytest.raises(ConfigError, match="prompt is empty"):
        encode_prompt(tokenizer, "")
    with pytest.raises(ConfigError, match="knows no line break"):
        encode_prompt(tokenizer, None)
    with pytest.raises(UserError, match="no token for 'x'"):
        encode_prompt(tokenizer, "ax")


class Parrot:
    """A backend that says what it was told."""

    def __init__(self, tokens):
        self.tokens = tokens

    def generate(self, tokens, max_new_tokens, **sampling):
        return itertools.islice(self.tokens, max_new_tokens)


def test_characters_come_out_whole():
    """A character of several tokens appears with its last one; what is left incomplete becomes U+FFFD."""
    tokenizer = load_ranks(DEFAULT_RANKS)
    tokens = encode(tokenizer, "né日").tolist()
    pieces = list(generate_text(Parrot(tokens), tokenizer, [0], len(tokens)))
    assert pieces == ["n", "", "é", "", "", "日", ""]
    assert "".join(generate_text(Parrot(tokens), tokenizer, [0], len(tokens) - 1)) == "né\ufffd"
