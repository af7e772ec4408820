"""Samples of a run: the texts that its model writes while it trains and at the end."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from contract.errors import ConfigError, UserError
from contract.files import open_regular, write_file
from contract.targets import NO_TARGET
from data.batches import has_mask, targets_of
from data.tokenizers import TextDecoder, Tokenizer
from harness.training.backend import Backend
from harness.training.generation import encode_prompt, ends, generate_text

SAMPLE_TOKENS, TEMPERATURE = 100, 0.8
LONGEST_PROMPT = 4096  # tokens that are looked through for a reply


def sample(backend: Backend, tokenizer: Tokenizer, held_out, seed: int) -> Iterator[str]:
    """The pieces of a text that begins as a line of the corpus does; of conversations, the first held-out reply's.

    held_out: tokens of the corpus, whose first one begins the text if the tokenizer knows no line break
    """
    if has_mask(held_out):
        tokens = _before_reply(held_out)
        decoder = TextDecoder(tokenizer)
        yield "".join(map(decoder.feed, tokens))
    else:
        tokens = _line_start(tokenizer, held_out)
    settings = {"temperature": TEMPERATURE, "seed": seed, "stop": ends(tokenizer)}
    yield from generate_text(backend, tokenizer, tokens, SAMPLE_TOKENS, **settings)


def _line_start(tokenizer: Tokenizer, held_out) -> list[int]:
    try:
        return encode_prompt(tokenizer, None)
    except ConfigError:
        return held_out[:1].tolist()


def _before_reply(held_out) -> list[int]:
    """The tokens of a held-out conversation up to where its first reply begins."""
    targets = targets_of(held_out, 0, min(len(held_out), LONGEST_PROMPT))
    first = int(np.argmax(targets != NO_TARGET)) or len(targets)  # a reply is never the first token
    return held_out[:first].tolist()


class SampleLog:
    """`samples.txt`: a line "step N" before each sample, whose own lines are indented.

    after_step: keep the samples of an earlier session up to this step
    Raises UserError if the file is not of a run or cannot be written.
    """

    def __init__(self, path: Path, after_step: int):
        self._path, self._text, self.last_step = path, "", 0
        if not os.path.lexists(path):
            return
        if not is_samples(path):
            raise UserError(f"{path} is in the place of the run's samples, but no run wrote it; move it away")
        with open_regular(path) as file:
            parts = re.split(r"^step (\d+)\n", file.read().decode(errors="replace"), flags=re.MULTILINE)
        for step, text in zip(map(int, parts[1::2]), parts[2::2], strict=True):
            if step <= after_step:
                self._text, self.last_step = f"{self._text}step {step}\n{text}", step

    def write(self, step: int, text: str):
        """Add a sample."""
        lines = "".join(f"  {line}\n" for line in text.split("\n"))
        self._text, self.last_step = f"{self._text}step {step}\n{lines}", step
        with write_file(self._path, overwrite=True) as file:
            file.write(self._text.encode(errors="replace"))


def is_samples(path: Path) -> bool:
    """Whether a file is one of `SampleLog`."""
    with suppress(OSError), open_regular(path) as file:
        return re.match(rb"step \d+\n  ", file.read(64)) is not None
    return False
