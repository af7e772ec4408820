"""Text from a trained model."""

from collections.abc import Iterator, Sequence

import numpy as np

from contract.config import ModelConfig
from contract.decoding import kv_cache_numbers
from contract.errors import ConfigError, UserError
from data.published import PublishedTokenizer
from data.tokenizers import TextDecoder, Tokenizer, encode, end_token, tokenizer_is_fixed
from harness.training.backend import Backend
from harness.training.machine import available_memory

MAX_SAMPLES = 64  # at once; more of them would take longer in proportion


def encode_prompt(tokenizer: Tokenizer, prompt: str | None, *, special: bool = False) -> list[int]:
    """The tokens of a prompt, behind those that the model's texts begin with; None means these alone.

    special: whether the text of a special token means that token
    A model without a beginning of its own gets for None the end of another document, if its tokenizer was made for
    documents, else a line break, after which a new line begins.
    Raises ConfigError for an empty prompt or special tokens that the tokenizer lacks, UserError for symbols it lacks.
    """
    if prompt == "":
        raise ConfigError("the prompt is empty; give some text, or omit --prompt")
    if isinstance(tokenizer, PublishedTokenizer):
        begin, _ = tokenizer.around
        if prompt is not None:
            return [*begin, *tokenizer.encode(prompt, special=special).tolist()]
        return begin or ends(tokenizer)[:1] or tokenizer.encode("\n").tolist()
    if special:
        raise ConfigError("this model's tokenizer has no special tokens of its own; omit --special")
    if prompt is not None:
        with tokenizer_is_fixed("omit them"):
            return encode(tokenizer, prompt).tolist()
    if (end := end_token(tokenizer)) is not None and tokenizer.name != "gpt2":  # which may have seen no end
        return [end]
    try:
        return encode(tokenizer, "\n").tolist()
    except UserError:
        raise ConfigError(
            "this model's tokenizer knows no line break to begin with; give a --prompt"
        ) from None


def ends(tokenizer: Tokenizer) -> list[int]:
    """The tokens after which the model's text ends."""
    if isinstance(tokenizer, PublishedTokenizer):
        return list(tokenizer.ends)
    end = end_token(tokenizer)
    return [] if end is None else [end]


def generate_text(
    backend: Backend, tokenizer: Tokenizer, tokens: list[int], max_new_tokens: int, **sampling
) -> Iterator[str]:
    """The text that continues `tokens`, piece by piece, as the tokens come; see `generate_texts`."""
    pieces = generate_texts(backend, tokenizer, tokens, max_new_tokens, 1, **sampling)
    return (piece for _, piece in pieces)


def generate_texts(
    backend: Backend,
    tokenizer: Tokenizer,
    tokens: list[int],
    max_new_tokens: int,
    num_samples: int,
    *,
    stop: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
    **sampling,
) -> Iterator[tuple[int, str]]:
    """(sample, piece of its text) for several texts at once that continue `tokens`, as the tokens come.

    stop: tokens that end a text; they are not part of it
    stop_texts: what ends a text where it occurs in it; it is cut off
    sampling: see `numpy_llm.generate.generate_samples`, which refuses impossible ones at once
    """
    if "" in stop_texts:
        raise ConfigError("--stop needs some text to stop at, got an empty one")
    steps = backend.generate_samples(tokens, max_new_tokens, num_samples, stop=stop, **sampling)
    return _decode([_GrowingText(tokenizer, stop_texts) for _ in range(num_samples)], steps, set(stop))


def _decode(
    texts: list["_GrowingText"], steps: Iterator[tuple[int, int]], stop: set[int]
) -> Iterator[tuple[int, str]]:
    for sample, token in steps:
        if token not in stop:
            yield sample, texts[sample].feed(token)
        if all(text.ended for text in texts):
            return
    for sample, text in enumerate(texts):
        yield sample, text.flush()


class _GrowingText:
    """Tokens to text, up to where one of `stop_texts` occurs; what may be its beginning is held back."""

    def __init__(self, tokenizer: Tokenizer, stop_texts: Sequence[str]):
        self._decoder, self._stop_texts = TextDecoder(tokenizer), stop_texts
        self._held = ""
        self.ended = False

    def feed(self, token: int) -> str:
        """The text that is certain after this token, "" once the text has ended."""
        return "" if self.ended else self._add(self._decoder.feed(token))

    def _add(self, piece: str) -> str:
        self._held += piece
        places = [place for stop in self._stop_texts if (place := self._held.find(stop)) >= 0]
        self.ended = bool(places)
        certain = min(places) if places else len(self._held) - self._may_begin()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _may_begin(self) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        lengths = (
            length
            for stop in self._stop_texts
            for length in range(len(stop) - 1, 0, -1)
            if self._held.endswith(stop[:length])
        )
        return max(lengths, default=0)

    def flush(self) -> str:
        """What is left at the end."""
        if self.ended:
            return ""
        text = self._add(self._decoder.flush())
        return text if self.ended else text + self._held


def samples_at_once(config: ModelConfig, tokens: int, dtype: np.dtype) -> int:
    """How many texts of so many tokens may grow at once: `MAX_SAMPLES`, fewer if their keys and values fill memory."""
    held = 2 * kv_cache_numbers(
        config, min(tokens, config.context_length)
    )  # the cache has room for twice as many
    fitting = available_memory() // 2 // (held * np.dtype(dtype).itemsize)
    return int(min(MAX_SAMPLES, max(1, fitting)))
