"""Evaluation and text generation: every token counted once, and characters that come out whole."""

import hashlib
import importlib.util
import itertools
from math import log

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from contract.weights import Weights, initial_weights
from data.prepare import DEFAULT_RANKS
from data.token_store import StoredTokens, TokenForm, TokenStore
from data.tokenizers import encode, encoding_of, load_ranks, open_tokenizer, token_bytes
from harness.training.backend import open_backend
from harness.training.evaluation import (
    Evaluation,
    document_losses,
    evaluate,
    evaluation_of,
    log_probabilities,
    of_text,
)
from harness.training.generation import encode_prompt, generate_text
from numpy_llm.model import GPT

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch (pip install -e '.[dev]')"
)


@pytest.fixture(params=["numpy", pytest.param("torch", marks=needs_torch)])
def backend(request, tiny_config, lively_weights):
    """Each backend with the same weights, large enough for the losses of tokens to differ widely."""
    config = tiny_config()
    weights = lively_weights(Weights.zeros(config, "float64"), 1)
    threads = 2 if request.param == "numpy" else 1  # PyTorch splits nothing this small
    return open_backend(request.param, config, weights, dtype="float64", threads=threads)


def plain_loss(backend, tokens, start, place):
    """-log p of the token at `place` after those from `start`: a log-softmax written out, of the reference."""
    model = GPT(backend.config, initial_weights(backend.config, 0, "float64"), dtype="float64")
    for name, value in backend.weights().items():
        model.weights[name][...] = value
    logits, _, _ = model.forward(tokens[None, start:place])
    shifted = logits[0, -1] - logits[0, -1].max()
    return np.log(np.exp(shifted).sum()) - shifted[tokens[place]]


@pytest.mark.parametrize("count", [2, 4, 5, 6, 9, 23])
@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_every_token_but_the_first_counts_once(backend, count, batch_size):
    """The loss is the plain mean of -log p over the tokens, each seen with those before it in its window."""
    tokens = np.random.default_rng(count).integers(7, size=count)
    # Where the window of each prediction begins: the context holds 4 tokens.
    losses = [plain_loss(backend, tokens, (place - 1) // 4 * 4, place) for place in range(1, count)]
    result = evaluate(backend, tokens, batch_size)
    assert result.tokens == count - 1
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.fixture
def replies(tmp_path):
    """Tokens of conversations in the vocabulary of the model, of which some count: a part of a token file."""

    def masked(ids, counts):
        path, form = tmp_path / "x.bin", TokenForm(np.dtype("<u2"), masked=True)
        path.write_bytes(np.where(counts, ids, ids | form.mask).astype("<u2").tobytes())
        store = TokenStore(path, form, len(ids), hashlib.sha256(path.read_bytes()).hexdigest())
        return StoredTokens(store, 0, len(ids))

    return masked


@pytest.mark.parametrize("stride", [None, 2])
def test_only_what_counts_is_evaluated(backend, replies, stride):
    """The mean of -log p over the tokens that count, whatever batch they are in; so of bytes and of documents."""
    ids = np.random.default_rng(3).integers(7, size=23)
    counts = np.arange(23) % 7 > 4
    counts[:2] = True  # the first one is never predicted
    tokens = replies(ids, counts)
    each = -log_probabilities(backend, ids, stride=stride)
    wanted = each[counts[1:]]
    for batch_size in (1, 4):
        found = evaluate(backend, tokens, batch_size, stride=stride)
        assert found.tokens == len(wanted) == counts[1:].sum()
        assert found.loss == pytest.approx(wanted.mean(), rel=1e-12)
    np.testing.assert_allclose(log_probabilities(backend, tokens, stride=stride), -each, rtol=1e-12)
    assert evaluation_of(-each, tokens) == pytest.approx((wanted.mean(), len(wanted)))
    texts = [b"", b"a", b"bb", b"ccc", b" d", b"e ", b"f g"]
    n_bytes = sum(len(texts[id]) for id in ids[1:][counts[1:]])
    found = of_text(found, tokens, texts)
    assert found["bits_per_byte"] == pytest.approx(wanted.sum() / log(2) / n_bytes)
    documents = document_losses(-each, tokens, [0])
    assert sum(found.loss * found.tokens for _, found in documents) == pytest.approx(wanted.sum())


def test_nothing_that_counts_is_no_evaluation(backend, replies):
    with pytest.raises(UserError, match="4 tokens were predicted, of which no one counts"):
        evaluate(backend, replies(np.array([1, 2, 3, 4, 5]), np.array([True, False, False, False, False])))


@pytest.mark.parametrize("most", [1 << 26, 8 * 7 * 2, 1])
@pytest.mark.parametrize("count", [2, 5, 9, 23])
def test_log_probabilities_are_those_of_each_token(backend, count, most, monkeypatch):
    """One for every token but the first, and their mean is minus the loss, at a stride and in blocks of rows too."""
    monkeypatch.setattr("harness.training.evaluation.MAX_LOGITS", most)
    tokens = np.random.default_rng(count).integers(7, size=count)
    losses = [plain_loss(backend, tokens, (place - 1) // 4 * 4, place) for place in range(1, count)]
    np.testing.assert_allclose(log_probabilities(backend, tokens), -np.array(losses), rtol=1e-12)
    for stride in (1, 3):
        mean = -log_probabilities(backend, tokens, stride=stride).mean()
        assert mean == pytest.approx(evaluate(backend, tokens, stride=stride).loss, rel=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 5, 6, 16, 18])
def test_a_stride_counts_every_token_once(backend, count, stride):
    """With overlapping windows a token is predicted once, from the most that the first window with it holds."""
    tokens = np.random.default_rng(count).integers(7, size=count)
    # The windows begin at 0, S, 2S, ...; the first that reaches a token, 4 behind its start, predicts it.
    starts = [-(-max(0, place - 4) // stride) * stride for place in range(1, count)]
    losses = [plain_loss(backend, tokens, start, place) for place, start in enumerate(starts, 1)]
    result = evaluate(backend, tokens, 3, stride=stride)
    assert result.tokens == count - 1
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)


def test_a_quick_evaluation_takes_fewer_windows(backend):
    """`max_windows` windows are looked at and no more: spread over the whole text, the first and last included."""
    tokens = np.random.default_rng(0).integers(7, size=101)  # 25 windows
    places = [place for window in (0, 12, 24) for place in range(4 * window + 1, 4 * window + 5)]
    losses = [plain_loss(backend, tokens, (place - 1) // 4 * 4, place) for place in places]
    result = evaluate(backend, tokens, 8, max_windows=3)
    assert result.tokens == 12
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)


def test_perplexity():
    """It is the exponential of the loss, inf where that overflows."""
    assert Evaluation(log(5), 1).perplexity == pytest.approx(5)
    assert Evaluation(709.0, 1).perplexity == np.exp(709.0)
    assert Evaluation(1e9, 1).perplexity == np.inf


def test_bits_per_byte():
    """Bits over the bytes of the predicted tokens: here 4 nats a token, and tokens of 1, 2 and 3 bytes."""
    tokens, texts = np.array([2, 0, 1, 1, 2]), [b"a", b"bc", b"def"]
    found = of_text(Evaluation(4.0, 4), tokens, texts)
    assert found["bits_per_byte"] == pytest.approx(4 * 4 / log(2) / (1 + 2 + 2 + 3))


@pytest.mark.parametrize("tokenizer", ["bytes", "ranks"])
@pytest.mark.parametrize(
    "text", ["The baby, naïvely, is\n\n sleeping.\n", "one", "  \t two words ", "a b c d"]
)
def test_word_perplexity(tokenizer, text):
    """The exponential of the nats of a word, whatever the tokens are; the first is not predicted."""
    ranks = (
        load_ranks(DEFAULT_RANKS)
        if tokenizer == "ranks"
        else encoding_of("bytes", [bytes([b]) for b in range(256)])
    )
    tokens = np.asarray(encode(ranks, text))
    texts = token_bytes(ranks)
    words = len(b"".join(texts[id] for id in tokens).split()) - (text[0] != " ")
    found = of_text(Evaluation(0.5, len(tokens) - 1), tokens, texts)["word_perplexity"]
    assert found == (pytest.approx(np.exp(0.5 * (len(tokens) - 1) / words)) if words else None)


def test_a_long_text_is_counted_in_pieces():
    """Each of millions of tokens counts once, also where a word crosses from one piece to the next."""
    tokens = np.tile(np.array([0, 1, 2], np.uint16), 800_000)
    texts = [b"a", b"b ", b"cdef"]
    loss, nats = 1.5, 1.5 * (len(tokens) - 1)
    found = of_text(Evaluation(loss, len(tokens) - 1), tokens, texts)
    assert found["bits_per_byte"] == pytest.approx(nats / log(2) / (800_000 * 7 - 1), rel=1e-12)
    assert found["word_perplexity"] == pytest.approx(np.exp(nats / 800_000), rel=1e-12)


def test_bits_per_byte_does_not_depend_on_the_tokenizer():
    """One bit a byte is one bit a byte, whether a token is a byte or several."""
    text = "The baby is sleeping, naïvely.\n" * 3
    ranks = load_ranks(DEFAULT_RANKS)
    tokens, texts = np.asarray(encode(ranks, text)), token_bytes(ranks)
    size = len(b"".join(texts[id] for id in tokens[1:]))
    nats = size * log(2) / (len(tokens) - 1)
    assert of_text(Evaluation(nats, len(tokens) - 1), tokens, texts)["bits_per_byte"] == pytest.approx(1)


@pytest.mark.parametrize("tokens", [[5, 1, 0, 2, 3, 0, 0, 4], [0, 1, 0], [1, 2]])
def test_documents_end_with_their_end_token(tokens):
    """Every predicted token counts once, in the document that it is of."""
    values = -np.arange(1.0, len(tokens))
    found = document_losses(values, np.array(tokens), [0])
    documents, current = [], []
    for token, value in zip(tokens, [None, *values], strict=True):
        current += [] if value is None else [value]
        if token == 0:
            documents, current = [*documents, current], []
    documents = [each for each in [*documents, current] if each]
    assert [(result.loss, result.tokens) for _, result in found] == [
        (-np.mean(each), len(each)) for each in documents
    ]
    assert all(start == 0 or tokens[start - 1] == 0 for start, _ in found)


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

    def generate_samples(self, tokens, max_new_tokens, num_samples, **sampling):
        for token in itertools.islice(self.tokens, max_new_tokens):
            yield from ((sample, token) for sample in range(num_samples))


def test_characters_come_out_whole():
    """A character of several tokens appears with its last one; what is left incomplete becomes U+FFFD."""
    tokenizer = load_ranks(DEFAULT_RANKS)
    tokens = encode(tokenizer, "né日").tolist()
    pieces = list(generate_text(Parrot(tokens), tokenizer, [0], len(tokens)))
    assert pieces == ["n", "", "é", "", "", "日", ""]
    assert "".join(generate_text(Parrot(tokens), tokenizer, [0], len(tokens) - 1)) == "né\ufffd"


def test_text_comes_as_the_tokens_do():
    """A piece is there before the token after it was asked for, and the settings go to the backend as they are."""
    asked, told = [], []

    class Watched:
        def generate_samples(self, tokens, max_new_tokens, num_samples, **sampling):
            told.append((tokens, max_new_tokens, num_samples, sampling))
            for token in encode(tokenizer, "ab"):
                asked.append(int(token))
                yield 0, int(token)

    tokenizer = load_ranks(DEFAULT_RANKS)
    for number, piece in enumerate(
        generate_text(Watched(), tokenizer, [5, 6], 9, temperature=0.5, seed=3), 1
    ):
        assert len(asked) == min(number, 2)
        assert piece == ("a", "b", "")[number - 1]
    assert told == [([5, 6], 9, 1, {"stop": (), "temperature": 0.5, "seed": 3})]


def test_a_model_writes_what_it_samples(backend, tmp_path):
    """The text of a real model is its tokens' text, the same for the same seed."""
    (tmp_path / "text.txt").write_text("abcdefg")
    tokenizer = open_tokenizer("bytes", tmp_path / "text.txt")
    prompt = encode_prompt(tokenizer, "cab")
    for seed in range(3):
        tokens = list(backend.generate(prompt, 12, seed=seed))
        written = "".join(generate_text(backend, tokenizer, prompt, 12, seed=seed))
        assert written == "".join("abcdefg"[token] for token in tokens)
        assert len(written) == 12
