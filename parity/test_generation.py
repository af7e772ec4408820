"""Decoding: the same tokens from both twins."""

import numpy as np
import pytest

from numpy_llm import GPT
from parity.cases import lively_weights
from parity.compare import ParityError
from parity.decoding import (
    CONTEXT,
    DECODERS,
    FLOAT32_SAMPLING,
    NEW_TOKENS,
    PROMPTS,
    SAMPLED_PROMPTS,
    SAMPLES,
    SAMPLINGS,
    SEED,
    STOP,
    V,
    check_cache,
    check_generation,
    check_generation_in_float32,
    check_samples,
    check_samples_in_float32,
    prompts,
    require_close_draw,
    require_tie,
    write_samples,
    write_texts,
)
from parity.passes import Twins


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.endurance)])
def test_every_token(every):
    """Every fifth of 50 prompts, or each, by 64 tokens, greedy and sampled, cache on and off, in float64."""
    check_generation(Twins(), range(0, PROMPTS, every))


def test_pieces():
    """A cache changes nothing, whatever the sizes of the pieces that it was filled with."""
    check_cache(Twins())


def test_every_token_in_float32():
    """In float32 greedy texts are the same but for ties, and ties are rare."""
    assert check_generation_in_float32(Twins()) < PROMPTS / 2


def test_every_sample():
    """Several samples at once, of both models and prompts on both sides of the context's edge, in float64."""
    check_samples(Twins())


def test_every_sample_in_float32():
    """In float32 a sample is the same alone and among others, but for draws on an edge, and those are rare."""
    assert check_samples_in_float32(Twins()) <= 1


def test_the_samples_are_worth_comparing():
    """Some stop early, at different times, and some go on past the context's end to the last token."""
    for number in SAMPLED_PROMPTS:
        texts = write_samples(Twins().reference, "float64", number, SAMPLINGS["sampled"])
        assert len({tuple(text) for text in texts}) == SAMPLES
        assert len({len(text) for text in texts}) > 2
        for text in texts:
            assert not STOP & set(text[:-1])
            assert len(text) == NEW_TOKENS or text[-1] in STOP
    lengths = [
        len(text)
        for number in SAMPLED_PROMPTS
        for text in write_samples(Twins().reference, "float64", number, SAMPLINGS["sampled"])
    ]
    assert max(lengths) > CONTEXT


def test_only_a_close_draw_excuses_a_difference():
    """Of all tokens only the one drawn and those that tie with it, or lie at an edge of its share, are excused."""
    weights = lively_weights(DECODERS[0], SEED, "float32")
    model, prompt = GPT(DECODERS[0], weights), prompts()[5]
    drawn = model.generate(prompt, 1, sequence=4, **FLOAT32_SAMPLING)[0]
    require_close_draw(model, prompt, 4, drawn, drawn)
    for other in set(range(V)) - {drawn}:
        with pytest.raises(ParityError, match=f"{other} among other samples, {drawn} alone"):
            require_close_draw(model, prompt, 4, other, drawn)
    weights["output.weight"][other] = weights["output.weight"][drawn]
    require_close_draw(model, prompt, 4, other, drawn)


def test_the_texts_are_worth_comparing():
    """Prompts lie on both sides of the context's edge, and the texts use the vocabulary."""
    lengths = [len(prompt) for prompt in prompts()]
    assert len(lengths) >= 50
    assert NEW_TOKENS >= 64
    assert min(lengths) == 1 < CONTEXT < max(lengths)
    texts = write_texts(Twins().reference, "float64", "greedy", use_cache=True)
    assert len({token for text in texts for token in text}) > V / 2
    assert len({tuple(text) for text in texts}) > 0.9 * PROMPTS


def test_only_a_tie_excuses_a_difference():
    """Two tokens with the same embedding tie; any other difference is a divergence, named with its margin."""
    weights = lively_weights(DECODERS[0], SEED, "float32")
    model, prompt = GPT(DECODERS[0], weights), prompts()[5]
    logits = model.forward(np.array([prompt]))[0][0, -1]
    best, second, third = (int(token) for token in np.argsort(-logits)[:3])
    with pytest.raises(
        ParityError, match=rf"the reference writes {best}, the twin {second}.* apart, and a tie"
    ):
        require_tie(model, prompt, best, second)
    weights["output.weight"][second] = weights["output.weight"][best]
    require_tie(model, prompt, best, second)
    require_tie(model, prompt, second, best)
    with pytest.raises(ParityError):
        require_tie(model, prompt, best, third)
