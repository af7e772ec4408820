"""Training byte-pair ranks on a text."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from os import PathLike

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from contract.errors import ConfigError, UserError
from data import merging
from data.sources import Texts
from data.tokenizers import END_OF_TEXT, encoding_of, whitespace_error

MAX_VOCAB_SIZE = 1 << 24
# The pattern's engine keeps a place to come back to for every character of a run of whitespace in front of a
# word, and gives up at a million of them: an error in tiktoken, the end of the process in rustbpe.
_LONG_WHITESPACE = re.compile(r"\s{999998}")


def train_tokenizer(
    text: Texts | str | PathLike, vocab_size: int, progress: Callable[[int], None] | None = None
) -> tiktoken.Encoding:
    """Train byte-pair ranks on texts; the same texts give the same ranks.

    text: streamed: memory grows with the number of distinct words. Of several documents the last token is an end token
    vocab_size: the 256 bytes, the merges and the end token, at most `MAX_VOCAB_SIZE`; a small text gives fewer
    progress: called with the number of bytes read so far; merging starts after reading
    Raises ConfigError for an impossible size, UserError if the text cannot be read.
    """
    texts = Texts.of(text)
    ends = [END_OF_TEXT.encode()] if texts.has_documents else []
    smallest = 256 + len(ends)
    if not smallest <= vocab_size <= MAX_VOCAB_SIZE:
        what = "the bytes and an end token" if ends else "the bytes"
        raise ConfigError(
            f"a vocabulary of {vocab_size} tokens cannot be trained: ask for {smallest} ({what}) to {MAX_VOCAB_SIZE}"
        )
    pieces = (_splittable(piece) for piece, _ in texts.pieces(progress) if piece)
    return encoding_of("ranks", _merge(pieces, vocab_size - len(ends)) + ends)


def _merge(pieces: Iterator[str], vocab_size: int) -> list[bytes]:
    """The tokens in the order of their ranks, learned from a text's pieces in a process of its own."""
    command = [sys.executable, "-P", merging.__file__, str(os.getpid()), str(vocab_size), r50k_pat_str]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **pipes, start_new_session=True)
    try:
        for piece in chain(pieces, [None]):
            process.stdin.write(json.dumps(piece).encode() + b"\n")
        process.stdin.close()
        return [token.encode("latin-1") for token in json.load(process.stdout)]
    except (BrokenPipeError, json.JSONDecodeError):
        raise UserError(
            f"the process that learns the merges ended (exit code {process.wait()}), perhaps out of memory; "
            "free memory, or train on a smaller text"
        ) from None
    finally:
        process.kill()
        with contextlib.suppress(BrokenPipeError):  # what it did not live to read
            process.stdin.close()
        process.stdout.close()
        process.wait()


def _splittable(piece: str) -> str:
    if _LONG_WHITESPACE.search(piece):
        raise whitespace_error()
    return piece
