"""Text from a trained model."""

from collections.abc import Iterator

import tiktoken

from contract.errors import ConfigError, UserError
from data.tokenizers import TextDecoder, encode, tokenizer_is_fixed
from harness.training.backend import Backend


def encode_prompt(tokenizer: tiktoken.Encoding, prompt: str | None) -> list[int]:
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
    backend: Backend, tokenizer: tiktoken.Encoding, tokens: list[int], max_new_tokens: int, **sampling
) -> Iterator[str]:
    """The text that continues `tokens`, piece by piece, as the tokens come.

    sampling: see `numpy_llm.generate.generate`, which refuses impossible ones at once
    """
    return _decode(tokenizer, backend.generate(tokens, max_new_tokens, **sampling))


def _decode(tokenizer: tiktoken.Encoding, tokens: Iterator[int]) -> Iterator[str]:
    decoder = TextDecoder(tokenizer)
    for token in tokens:
        yield decoder.feed(token)
    yield decoder.flush()
