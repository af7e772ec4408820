"""Tokenizers: GPT-2's own, ranks trained on a text, a text's bytes, or one that came with a published model.

The first three are `tiktoken.Encoding`s, the last is a `data.published.PublishedTokenizer`; what a tokenizer is asked
stands here, for both.

A ranks file (`.tiktoken`) has one token a line, its bytes in base64, a space and its rank: its id and its place in the
order of merges. Words are split by GPT-2's pattern in all three. The token `<|endoftext|>` ends a document: the pattern
splits these letters, so no text is read as it.
"""

import base64
import codecs
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from contract.errors import ConfigError, UserError, explaining
from contract.files import open_regular, write_file
from contract.schema import checksum
from data.published import PublishedTokenizer
from data.sources import Texts

Tokenizer = tiktoken.Encoding | PublishedTokenizer
RANKS, PUBLISHED = TOKENIZER_ENDINGS = ".tiktoken", ".published.json"
END_OF_TEXT = "<|endoftext|>"


# --- open, save, load ---


def open_tokenizer(
    name: str | PathLike,
    *texts: Texts | str | PathLike,
    progress: Callable[[int], None] | None = None,
) -> tiktoken.Encoding:
    """Open a tokenizer by name.

    name: "gpt2", "bytes" or the path of a ranks file, which ends in `.tiktoken`
    texts: whose bytes "bytes" gives one token each, in the order of their values; behind them stands an end token if
        these are several documents. All bytes have one if a text is a pipe, which can be read only once
    progress: called with the number of bytes of the first text read so far, if "bytes" reads it
    Raises ConfigError for another name, UserError if a file cannot be had.
    """
    name = os.fspath(name)
    if name == "gpt2":
        return _open_gpt2()
    if name == "bytes":
        if not texts:
            raise ConfigError("the tokenizer 'bytes' is made from a text's bytes; name the text file too")
        return _open_bytes([Texts.of(each) for each in texts], progress)
    if name.endswith(".tiktoken"):
        return load_ranks(name)
    raise ConfigError(
        f"unknown tokenizer {name!r}; choose gpt2, bytes or the path of a ranks file ending in .tiktoken"
    )


def _open_gpt2() -> tiktoken.Encoding:
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network, a cache that cannot be written, a wrong checksum
        raise UserError(
            f"the gpt2 tokenizer's files could not be downloaded ({type(error).__name__}); on a machine with a "
            "network, set TIKTOKEN_CACHE_DIR to a folder and open gpt2 once, then copy that folder here and "
            "set TIKTOKEN_CACHE_DIR to it"
        ) from error


def _open_bytes(texts: list[Texts], progress) -> tiktoken.Encoding:
    has_documents = any(each.has_documents for each in texts)
    # An end token is a token like others, whose bytes have tokens of their own.
    known = np.isin(np.arange(256), list(END_OF_TEXT.encode() if has_documents else b""))
    tokens = [bytes([byte]) for byte in np.flatnonzero(bytes_in(texts, known, progress))]
    return encoding_of("bytes", [*tokens, END_OF_TEXT.encode()] if has_documents else tokens)


def bytes_in(
    texts: Iterable[Texts], known: np.ndarray, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Which bytes stand in texts or are known already, bool (256,); all if a text is a pipe, read only once later.

    known: bool (256,); if it has all, nothing is read
    progress: called with the number of bytes of the first text read so far
    """
    seen = known | any(each.read_once for each in texts)
    for place, each in enumerate([] if seen.all() else texts):
        for piece, _ in each.pieces(None if place else progress, cuts=None):
            seen[np.frombuffer(piece.encode(), np.uint8)] = True
    return seen


def whitespace_error() -> UserError:
    """What to say of a run of whitespace that GPT-2's pattern cannot split."""
    return UserError(
        "the text holds a run of about a million whitespace characters, more than GPT-2's pattern can "
        "split; shorten it, or use the tokenizer 'bytes'"
    )


def save_ranks(encoding: tiktoken.Encoding, path: str | PathLike, *, overwrite: bool = False) -> None:
    """Write an encoding's ranks without special tokens; see `contract.files.write_file`."""
    with write_file(path, overwrite=overwrite) as file:
        for rank, token in enumerate(token_bytes(encoding)):
            if not encoding.is_special_token(rank):
                file.write(base64.b64encode(token) + b" %d\n" % rank)


def load_ranks(path: str | PathLike, name: str = "ranks") -> tiktoken.Encoding:
    """Read a ranks file.

    name: of the encoding; "bytes" for one made from a text's bytes
    Raises UserError if the file is missing, or naming the line that is wrong.
    """
    reading = f"{path}: the ranks file cannot be read", "give a file that 'tokenizer train' has written"
    with (
        explaining(*reading, (OSError, ValueError)),
        open_regular(path) as file,
    ):  # ValueError: a NUL in the path
        lines = file.read().splitlines()
    again = "train it again, or restore the file"
    if not lines:
        raise UserError(f"{path}: the ranks file is empty; {again}")
    with explaining(f"{path}: not a ranks file", again, ValueError):
        return encoding_of(name, _parse_ranks(lines))


def _parse_ranks(lines: list[bytes]) -> list[bytes]:
    """The tokens of a ranks file's lines. Raises ValueError naming the line that is wrong."""
    tokens: dict[bytes, int] = {}
    for rank, line in enumerate(lines):
        try:
            token = _parse_rank(line, rank)
            if token in tokens:
                raise ValueError(f"the token of line {tokens[token] + 1} again")
        except ValueError as error:
            raise ValueError(f"line {rank + 1}: {error}") from error
        tokens[token] = rank
    for token, rank in tokens.items():
        if len(token) > 1 and (lacking := [byte for byte in token if bytes([byte]) not in tokens]):
            raise ValueError(f"line {rank + 1}: the byte 0x{lacking[0]:02x} has no token of its own")
    return list(tokens)


def _parse_rank(line: bytes, rank: int) -> bytes:
    """The token of a line that should have this rank."""
    fields = line.split(b" ")
    if len(fields) != 2:
        raise ValueError(f"a token in base64, a space and a rank expected, found {line[:40]!r}")
    try:
        token = base64.b64decode(fields[0], validate=True)
    except ValueError as error:
        raise ValueError(f"the token {fields[0][:40]!r} is not base64") from error
    if not token:
        raise ValueError("the token is empty")
    if fields[1] != b"%d" % rank:
        raise ValueError(f"rank {rank} expected, found {fields[1][:20]!r}")
    return token


def encoding_of(name: str, tokens: list[bytes]) -> tiktoken.Encoding:
    """The encoding that is called `name`, with `tokens` in the order of their ids, which are their ranks."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding(name, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def tokenizer_file(place: Path, name: str) -> Path | None:
    """The file that keeps the tokenizer called `name` beside `place`, under another ending; None for "gpt2"."""
    if name == "gpt2":
        return None
    return place.with_suffix(PUBLISHED if name == PublishedTokenizer.name else RANKS)


def save_tokenizer(tokenizer: Tokenizer, place: Path):
    """Write the file that `load_tokenizer` needs; see `tokenizer_file`."""
    path = tokenizer_file(place, tokenizer.name)
    if isinstance(tokenizer, PublishedTokenizer):
        tokenizer.save(path)
    elif path is not None:
        save_ranks(tokenizer, path)


def load_tokenizer(place: Path, name: str) -> Tokenizer:
    """The tokenizer called `name` that was saved at `place`. Raises UserError if its file is missing or damaged."""
    path = tokenizer_file(place, name)
    if name == PublishedTokenizer.name:
        return PublishedTokenizer.load(path)
    return open_tokenizer(name) if path is None else load_ranks(path, name=name)


# --- what a tokenizer is ---


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Every token's bytes in the order of the ids; a special token's text; b"" for an id without token."""
    return [_bytes_of(tokenizer, token) or b"" for token in range(tokenizer.n_vocab)]


def text_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The text that each token stands for, in bytes: none for the end token.

    What a published tokenizer's other special tokens are called counts.
    """
    texts = token_bytes(tokenizer)
    if (end := end_token(tokenizer)) is not None:
        texts[end] = b""
    return texts


def _bytes_of(tokenizer: Tokenizer, token: int) -> bytes | None:
    try:
        return tokenizer.decode_single_token_bytes(token)
    except (KeyError, OverflowError):  # OverflowError: negative, or beyond 32 bits
        return None


def identity(tokenizer: Tokenizer) -> dict[str, str | int]:
    """The name, vocab_size, and a SHA-256 that is equal if the ids mean the same.

    Hashed in the order of the ids is each token's length (4 bytes, little endian) and its bytes; for a published
    tokenizer what its `tokenizer.json` says.
    """
    if isinstance(tokenizer, PublishedTokenizer):
        digest = checksum(tokenizer.content)
    else:
        tokens = (len(token).to_bytes(4, "little") + token for token in token_bytes(tokenizer))
        digest = hashlib.sha256(b"".join(tokens)).hexdigest()
    return {"name": tokenizer.name, "vocab_size": tokenizer.n_vocab, "sha256": digest}


def token_dtype(tokenizer: Tokenizer, spare_bits: int = 0) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id and so many bits more."""
    return np.dtype(np.uint16 if tokenizer.n_vocab << spare_bits <= 1 << 16 else np.uint32)


@lru_cache(maxsize=8)
def _byte_ids(encoding: tiktoken.Encoding) -> np.ndarray:
    """The id of each byte's own token, −1 where it has none: int32 (256,)."""
    ids = np.full(256, -1, np.int32)
    for byte in range(256):
        with contextlib.suppress(KeyError):
            ids[byte] = encoding.encode_single_token(bytes([byte]))
    return ids


@lru_cache(maxsize=8)
def is_bytewise(tokenizer: Tokenizer) -> bool:
    """Whether every token of text is a single byte, so that a text may be cut anywhere."""
    if isinstance(tokenizer, PublishedTokenizer):
        return False
    return all(len(token) == 1 or token == END_OF_TEXT.encode() for token in tokenizer.token_byte_values())


# --- text to tokens and back ---


class MissingSymbols(UserError):
    """A text holds symbols that the tokenizer lacks; `problem` is the message without its advice."""

    def __init__(self, encoding: tiktoken.Encoding, text: str):
        byte_ids = _byte_ids(encoding)
        missing = [c for c in dict.fromkeys(text) if any(byte_ids[byte] < 0 for byte in c.encode())]
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        self.problem = f"the tokenizer {encoding.name!r} has no token for {shown}{more}"
        advice = "omit them, or use a tokenizer that knows every byte (gpt2 or trained ranks)"
        super().__init__(f"{self.problem}; {advice}")


@contextlib.contextmanager
def tokenizer_is_fixed(advice: str):
    """Replace the advice to use another tokenizer by `advice`, for the tokenizer of a trained model."""
    try:
        yield
    except MissingSymbols as error:
        raise UserError(f"{error.problem}; {advice}") from error


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a text, uint16 or uint32 (T,); `<|endoftext|>` in it is ordinary text.

    Raises MissingSymbols if the text holds symbols that the tokenizer lacks, UserError if it is not valid.
    """
    try:
        data = np.frombuffer(text.encode(), np.uint8)
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds U+{ord(text[error.start]):04X} at character {error.start}, which is half of a "
            "character (a lone surrogate); give text that is valid Unicode"
        ) from error
    if isinstance(tokenizer, PublishedTokenizer):
        return tokenizer.encode(text).astype(token_dtype(tokenizer))
    byte_ids = _byte_ids(tokenizer)
    if byte_ids.min() < 0 and (byte_ids[data] < 0).any():  # tiktoken would panic
        raise MissingSymbols(tokenizer, text)
    if is_bytewise(tokenizer):
        # A table look-up runs at 300 MB/s; tiktoken, which would split words first, at 13.
        return byte_ids.astype(token_dtype(tokenizer))[data]
    try:
        # As encode_ordinary, without its list of Python integers: a tenth faster, a tenth of the memory.
        tokens = tokenizer.encode_to_numpy(text, disallowed_special=())
    except ValueError as error:
        raise whitespace_error() from error
    return tokens.astype(token_dtype(tokenizer))


def end_token(tokenizer: Tokenizer) -> int | None:
    """The token at the end of a document, None if the tokenizer has none."""
    if isinstance(tokenizer, PublishedTokenizer):
        return next(iter(tokenizer.ends), None)
    try:
        return tokenizer.encode_single_token(END_OF_TEXT)
    except KeyError:
        return None


def around_document(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens before a document, and those after it if another follows, which may be none."""
    before, after = tokenizer.around if isinstance(tokenizer, PublishedTokenizer) else ([], [])
    end = end_token(tokenizer)
    return before, after or ([] if end is None else [end])


class TextDecoder:
    """Tokens to text, one by one: a character comes out as soon as its last byte is in.

    Bytes that are not UTF-8, and ids that the tokenizer lacks, come out as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that this token completes, often all of its own, sometimes ""."""
        token_bytes = _bytes_of(self._tokenizer, int(token))
        return self._decoder.decode(b"\xff" if token_bytes is None else token_bytes)

    def flush(self) -> str:
        """U+FFFD for an incomplete character, or "". The decoder is then reset."""
        return self._decoder.decode(b"", final=True)
