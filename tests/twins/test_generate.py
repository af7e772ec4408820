"""Decoding: the cache changes nothing, the window slides, and draws depend on their place alone."""

from collections.abc import Iterator

import numpy as np
import pytest

from contract import decoding
from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.sampling import sample
from numpy_llm import generate as exported_generate
from numpy_llm.generate import KeyValueCache, generate, generate_samples, next_token_logits
from numpy_llm.model import GPT

CONTEXT, VOCABULARY = 8, 13


@pytest.fixture(scope="module", params=["learned", "sinusoidal"])
def gpt(request, tiny_config, lively_weights):
    config = tiny_config(
        vocab_size=VOCABULARY,
        context_length=CONTEXT,
        n_layer=2,
        d_model=8,
        position=request.param,
        tie_embeddings=request.param == "learned",
        dropout=0.5,  # for training alone
    )
    model = GPT(config, dtype="float64")
    lively_weights(model.weights, 1)
    return model


def prompt_of(length):
    return np.random.default_rng(length).integers(VOCABULARY, size=length).tolist()


def plain_generate(gpt, tokens, count, **settings):
    """Decoding as its definition says: the logits after the last window, a draw, and again."""
    tokens = list(tokens)
    for _ in range(count):
        logits, _, _ = gpt.forward(np.array([tokens[-CONTEXT:]]))
        tokens.append(sample(logits[0, -1], position=len(tokens), **settings))
    return tokens[-count:]


@pytest.mark.parametrize("length", [1, 2, 5, 7, 8, 9, 20])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"seed": 3}, {"temperature": 2.0, "top_k": 5, "top_p": 0.9, "sequence": 2}],
    ids=["greedy", "sampled", "cut"],
)
def test_cache_changes_nothing(gpt, settings, length):
    """With the cache and without it come the tokens of the definition, more than two windows far."""
    prompt, count = prompt_of(length), 3 * CONTEXT
    expected = plain_generate(gpt, prompt, count, **settings)
    assert list(generate(gpt, prompt, count, **settings)) == expected
    assert list(generate(gpt, prompt, count, use_cache=False, **settings)) == expected
    assert gpt.generate(prompt, count, **settings) == expected
    assert len(set(expected)) > 1  # a model that repeats itself would prove nothing


@pytest.mark.parametrize("cuts", [[1] * 8, [3, 1, 4], [8], [7, 1], [2, 6]])
def test_cached_logits(gpt, cuts):
    """A window fed in pieces gives the logits, keys and values of the window taken at once."""
    tokens = prompt_of(CONTEXT)
    whole, _, _ = gpt.forward(np.array([tokens]))
    cache, start = KeyValueCache(gpt.config, gpt.dtype), 0
    for cut in cuts:
        logits = next_token_logits(gpt, [tokens[start : start + cut]], cache)[0]
        start += cut
        assert cache.length == start
        assert logits.shape == (VOCABULARY,)
        np.testing.assert_allclose(logits, whole[0, start - 1], rtol=1e-10, atol=1e-12)


def test_cache_extends():
    """The cache returns what it was given, in order, for each layer apart."""
    config = ModelConfig(
        vocab_size=3, context_length=5, n_layer=2, n_head=2, d_model=6, d_ff=3, activation="relu", position="learned"
    )  # fmt: skip
    cache = KeyValueCache(config, np.float32)
    random = np.random.default_rng(0)
    key, value = random.normal(size=(2, 2, 1, 2, 5, 3)).astype(
        np.float32
    )  # (key or value, layer, 1, K, T, D)
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        for layer in (0, 1):
            keys, values = cache.extend(
                f"blocks.{layer}.attention", key[layer][:, :, start:stop], value[layer][:, :, start:stop]
            )
            np.testing.assert_array_equal(keys, key[layer][:, :, :stop], strict=True)
            np.testing.assert_array_equal(values, value[layer][:, :, :stop], strict=True)
        cache.length = stop


def test_cache_of_a_window():
    """A layer with a window gives each query the keys that it sees, however the text comes, and keeps no more."""
    config = ModelConfig(
        vocab_size=3, context_length=99, n_layer=1, n_head=2, d_model=6, d_ff=3, activation="relu",
        position="learned", window=4, layer_pattern=("sliding",),
    )  # fmt: skip
    key, value = np.random.default_rng(0).normal(size=(2, 1, 2, 60, 3)).astype(np.float32)
    for lengths in ([1] * 60, [7, *[1] * 53], [2, 3, 20, 1, 1, 33]):
        cache = KeyValueCache(config, np.float32)
        for T in lengths:
            start, stop = cache.length, cache.length + T
            keys, values = cache.extend("blocks.0.attention", key[:, :, start:stop], value[:, :, start:stop])
            seen = slice(max(0, start - 3), stop)
            np.testing.assert_array_equal(keys, key[:, :, seen], strict=True)
            np.testing.assert_array_equal(values, value[:, :, seen], strict=True)
            cache.length = stop
        kept = cache._layers["blocks.0.attention"]._kept
        assert kept.shape[3] <= 2 * (3 + max(lengths))


def test_only_the_last_window_counts(gpt):
    """Of a prompt longer than the context the model sees the tail; the draws count all of it."""
    prompt = prompt_of(2 * CONTEXT + 3)
    tail = prompt[-CONTEXT:]
    assert gpt.generate(prompt, 12, temperature=0) == gpt.generate(tail, 12, temperature=0)
    logits, _, _ = gpt.forward(np.array([tail]))
    assert gpt.generate(prompt, 1, seed=5) == [sample(logits[0, -1], seed=5, position=len(prompt))]


def test_prompt_is_not_changed(gpt):
    """The caller's list stays as it is; lists, tuples and arrays give the same tokens."""
    prompt = prompt_of(5)
    before = list(prompt)
    expected = gpt.generate(prompt, 10)
    assert prompt == before
    assert gpt.generate(tuple(prompt), 10) == expected
    assert gpt.generate(np.array(prompt), 10) == expected


def test_tokens_come_one_by_one(gpt, monkeypatch):
    """Tokens are yielded as soon as drawn, as plain ints, and no more is computed than is asked for."""
    passes = []
    forward = GPT.stream_forward

    def counting(self, *arguments, **named):
        passes.append(arguments[0].shape[1])
        return forward(self, *arguments, **named)

    monkeypatch.setattr(GPT, "stream_forward", counting)
    tokens = generate(gpt, prompt_of(6), 10, seed=1)
    assert isinstance(tokens, Iterator)
    assert passes == []
    assert type(next(tokens)) is int
    assert passes == [6]  # the prompt at once
    next(tokens)
    next(tokens)
    assert passes == [6, 1, 1]  # then each token alone
    next(tokens)
    assert passes == [6, 1, 1, 8]  # and past the window all of it anew
    assert len(list(tokens)) == 6


def test_draws_depend_on_seed_and_sequence(gpt):
    """Another seed or sequence gives other tokens, the same gives the same; greedy decoding uses neither."""

    def tokens(seed, sequence, temperature=1.0):
        return gpt.generate([1, 2], 20, seed=seed, sequence=sequence, temperature=temperature)

    drawn = {(seed, sequence): tokens(seed, sequence) for seed in (0, 1) for sequence in (0, 1)}
    assert len({tuple(row) for row in drawn.values()}) == 4
    for place, row in drawn.items():
        assert tokens(*place) == row
    assert tokens(0, 0, 0) == tokens(1, 1, 0)


def test_going_on_gives_the_same_tokens(gpt):
    """A text generated in two calls is the one generated in a single call."""
    whole = gpt.generate([3, 1], 15, seed=7)
    first = gpt.generate([3, 1], 6, seed=7)
    assert first + gpt.generate([3, 1, *first], 9, seed=7) == whole


def test_nothing_asked_for(gpt):
    """Zero new tokens are none."""
    assert gpt.generate([1], 0) == []
    assert gpt.generate_samples([1], 0, 2) == [[], []]


@pytest.mark.parametrize("length", [1, 5, 8, 20])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("stop", [(), [4], {0, 7, 9}, range(VOCABULARY)], ids=str)
def test_each_sample_is_the_one_alone(gpt, length, use_cache, stop):
    """Sample n has the tokens of sequence n up to its first stop, whatever the others do, past the context's end."""
    prompt, settings = prompt_of(length), {"seed": 3, "top_k": 9}
    found = gpt.generate_samples(prompt, 20, 5, stop=stop, use_cache=use_cache, sequence=2, **settings)
    for number, tokens in enumerate(found):
        alone = plain_generate(gpt, prompt, 20, sequence=2 + number, **settings)
        end = next((at for at, token in enumerate(alone) if token in stop), len(alone))
        assert tokens == alone[: end + 1]


def test_samples_come_step_by_step(gpt, monkeypatch):
    """The prompt's pass is shared, a step is one pass for those that go on, windows that slide share passes too."""
    passes = []
    forward = GPT.stream_forward

    def counting(self, tokens, **named):
        passes.append(tokens.shape)
        return forward(self, tokens, **named)

    monkeypatch.setattr(GPT, "stream_forward", counting)
    steps = generate_samples(gpt, prompt_of(6), 5, 3, seed=1)
    assert passes == []
    assert type(next(steps)[1]) is int
    assert passes == [(1, 6)]
    assert [sample for sample, _ in steps] == [1, 2, *[0, 1, 2] * 4]
    assert passes == [(1, 6), (3, 1), (3, 1), (3, 8), (3, 8)]
    passes.clear()
    monkeypatch.setattr(decoding, "MAX_PASS_TOKENS", 2 * CONTEXT)
    assert len(list(generate_samples(gpt, prompt_of(CONTEXT), 2, 3))) == 6
    assert passes == [(1, 8), (2, 8), (1, 8)]
    # A sample that has stopped takes no more part.
    drawn = [gpt.generate([1], 8, sequence=sample) for sample in range(4)]
    passes.clear()
    found = gpt.generate_samples([1], 8, 4, stop={drawn[0][0], drawn[1][2]})
    assert [rows for rows, _ in passes[1:]] == [
        count for step in range(1, 8) if (count := sum(len(tokens) > step for tokens in found))
    ]


def test_kept_sequences_of_a_cache(gpt):
    """A cache goes on with the sequences that were selected, in any order, each as often as named."""
    random = np.random.default_rng(0)
    tokens = random.integers(VOCABULARY, size=(3, 6))
    cache = KeyValueCache(gpt.config, gpt.dtype)
    next_token_logits(gpt, tokens[:, :4], cache)
    rows = [2, 0, 0]
    cache.select(rows)
    found = next_token_logits(gpt, tokens[:, 4:5], cache)
    whole, _, _ = gpt.forward(np.concatenate([tokens[rows, :4], tokens[:, 4:5]], axis=1))
    np.testing.assert_allclose(found, whole[:, -1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("num_samples", "settings", "words"),
    [
        (0, {}, "num_samples must be a whole number from 1 to .*, got 0"),
        (1.5, {}, "num_samples must be a whole number from 1 to .*, got 1.5"),
        (2, {"sequence": 2**63 - 1}, "sequence must be a whole number from 0 to .*, got 9223372036854775808"),
        (2, {"stop": [VOCABULARY]}, "a token of stop must be a whole number from 0 to 12, got 13"),
        (2, {"stop": 3}, "stop must be a set of token ids, got 3"),
        (2, {"top_k": 0}, "top-k"),
    ],
    ids=str,
)
def test_impossible_samples(gpt, num_samples, settings, words):
    """What cannot work is refused by the call itself, before a first token is asked for."""
    with pytest.raises(ConfigError, match=words):
        generate_samples(gpt, [1], 3, num_samples, **settings)


@pytest.mark.parametrize(
    ("tokens", "settings", "words"),
    [
        pytest.param([], {}, "prompt has no tokens", id="empty prompt"),
        pytest.param(np.array([], int), {}, "prompt has no tokens", id="empty array"),
        pytest.param([1], {"temperature": -1}, "temperature", id="temperature"),
        pytest.param([1], {"top_k": 0}, "top-k", id="top-k"),
        pytest.param([1], {"top_p": 2}, "top-p", id="top-p"),
    ],
)
def test_errors_come_at_once(gpt, tokens, settings, words):
    """What cannot work is refused by the call itself, before a first token is asked for."""
    with pytest.raises(ConfigError, match=words):
        generate(gpt, tokens, 3, **settings)


def test_float32_model(tiny_config):
    """A float32 model generates too, with a cache in its dtype."""
    model = GPT(tiny_config(), dtype="float32")
    logits = next_token_logits(model, [[1, 2]], KeyValueCache(model.config, model.dtype))
    assert logits.dtype == np.float32
    assert len(model.generate([1, 2], 9)) == 9


def test_exported():
    """`numpy_llm.generate` is the function, as the package promises."""
    assert exported_generate is generate
