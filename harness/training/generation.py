"""Text from a trained model."""

from collections.abc import Iterator

import numpy as np

from contract.config import ModelConfig
from contract.decoding import kv_cache_numbers
from contract.errors import ConfigError, UserError
from data.tokenizers import TextDecoder, Tokenizer, encode, tokenizer_is_fixed
from harness.training.backend import Backend
from harness.training.machine import available_memory

MAX_SAMPLES = 64  # at once; more of them would take longer in proportion


def encode_prompt(tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """The tokens of a prompt; None means a line break, after which a new line begins.

    Raises ConfigError for an empty prompt, UserError for symbols that the tokenizer lacks.
    """
    if prompt == "":
        raise ConfigError("the prompt is empty; give some text, or omit --prompt to begin a new line")
    if prompt is not None:
        with tokenizer_is_fixed("omit them"):
            return encode(tokenizer, prompt).tolist()
    try:
        return encode(tokenizer, "\n").tolist()
    except UserError:
        raise ConfigError(
            "this model's tokenizer knows no line break to begin with; give a --prompt"
        ) from None


def generate_text(
    backend: Backend, tokenizer: Tokenizer, tokens: list[int], max_new_tokens: int, **sampling
) -> Iterator[str]:
    """The text that continues `tokens`, piece by piece, as the tokens come.

    sampling: see `numpy_llm.generate.generate`, which refuses impossible ones at once
    """
    pieces = generate_texts(backend, tokenizer, tokens, max_new_tokens, 1, **sampling)
    return (piece for _, piece in pieces)


def generate_texts(
    backend: Backend,
    tokenizer: Tokenizer,
    tokens: list[int],
    max_new_tokens: int,
    num_samples: int,
    **sampling,
) -> Iterator[tuple[int, str]]:
    """(sample, piece of its text) for several texts at once that continue `tokens`, as the tokens come.

    sampling: see `numpy_llm.generate.generate_samples`, which refuses impossible ones at once
    """
    steps = backend.generate_samples(tokens, max_new_tokens, num_samples, **sampling)
    return _decode([TextDecoder(tokenizer) for _ in range(num_samples)], steps)


def _decode(decoders: list[TextDecoder], steps: Iterator[tuple[int, int]]) -> Iterator[tuple[int, str]]:
    for sample, token in steps:
        yield sample, decoders[sample].feed(token)
    for sample, decoder in enumerate(decoders):
        yield sample, decoder.flush()


def samples_at_once(config: ModelConfig, tokens: int, dtype: np.dtype) -> int:
    """How many texts of so many tokens may grow at once: `MAX_SAMPLES`, fewer if their keys and values fill memory."""
    held = 2 * kv_cache_numbers(
        config, min(tokens, config.context_length)
    )  # the cache has room for twice as many
    fitting = available_memory() // 2 // (held * np.dtype(dtype).itemsize)
    return int(min(MAX_SAMPLES, max(1, fitting)))
