"""Text files to token files, and token files to tokens.

A token file `x.bin` holds token ids, uint16 or uint32, little endian, without a header: first the training
part, then the validation part. `x.json` beside it is a `TokenFileInfo` with a checksum, and `x.tiktoken` or
`x.published.json` has the tokenizer, unless it is tiktoken's own.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np

from contract.errors import ConfigError, UserError, explaining
from contract.files import replaceable_items, write_into
from contract.schema import pop_checksum, read_json, require, write_record
from data.published import PublishedTokenizer
from data.text import BETWEEN_LINES, BETWEEN_WORDS, split_documents, stream_text
from data.token_store import AGAIN, StoredTokens, TokenStore
from data.tokenizers import (
    TOKENIZER_ENDINGS,
    Tokenizer,
    document_ids,
    encode,
    identity,
    is_bytewise,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    token_bytes,
    token_dtype,
    tokenizer_file,
)

DEFAULT_TEXT, DEFAULT_RANKS = (Path(__file__).with_name(f"tense.{ending}") for ending in ("txt", "tiktoken"))
FORMAT_VERSION = 1
SPLIT_REACH = 4096  # tokens that the split may move back, see `_find_split`
TOKEN_ENDINGS = (".bin", ".json", *TOKENIZER_ENDINGS)
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class TokenFileInfo:
    """What a token file holds. `text_*` are of the UTF-8 text without a byte order mark."""

    format_version: int
    tokenizer: dict  # data.tokenizers.identity
    dtype: str  # "uint16" or "uint32"
    tokens: int
    train_tokens: int
    validation_tokens: int
    tokens_sha256: str  # of the token file
    text_bytes: int
    text_sha256: str
    source: str  # the text file's name, without its folder


_KINDS = {str: str, int: range(2**63), dict: {"name": str, "vocab_size": range(2**63), "sha256": str}}
_INFO = {field.name: _KINDS[field.type] for field in fields(TokenFileInfo)}


@dataclass(frozen=True, eq=False)
class TokenFile:
    """An open token file, with the tokens to train on and those held out."""

    path: Path
    info: TokenFileInfo
    train: StoredTokens
    validation: StoredTokens

    def verify(self):
        """Raise UserError if the file's hash has changed since it was opened; reading compares only size and times."""
        self.train.store.verify()


def info_path(path: str | PathLike) -> Path:
    """Where a token file's JSON stands."""
    return Path(path).with_suffix(".json")


# --- write ---


def default_tokenizer(text: Path) -> str:
    """The name of a text's default tokenizer: the default corpus's own ranks for it, else "bytes"."""
    return str(DEFAULT_RANKS) if text == DEFAULT_TEXT else "bytes"


def prepare(
    text: str | PathLike,
    tokenizer: str | Tokenizer | None,
    out: str | PathLike,
    *,
    validation_fraction: float = 0.1,
    separator: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> TokenFileInfo:
    """Turn a text file into a token file with its JSON and its tokenizer's ranks, all or none, in bounded memory.

    tokenizer: itself, or a name for `data.tokenizers.open_tokenizer`; None takes `default_tokenizer`
    out: the token file to write, ending in `.bin`; overwrite: replace an earlier one there
    validation_fraction: of the tokens, from the text's end, 0 to less than 1; `_find_split` says where exactly
    separator: what stands between two documents of the text; the tokenizer's end token takes its place
    progress: called with the number of bytes read so far
    Raises ConfigError for an impossible setting, UserError for what cannot be read, written, replaced or encoded.
    """
    text, out = Path(text), Path(out)
    tokenizer = default_tokenizer(text) if tokenizer is None else tokenizer
    encoding = tokenizer if isinstance(tokenizer, Tokenizer) else open_tokenizer(tokenizer, text)
    _check_settings(text, out, validation_fraction)
    _check_separator(separator, encoding)
    _replaceable(out, encoding, overwrite)
    with write_into(out.parent, lambda: _replaceable(out, encoding, overwrite), shown=out) as new:
        fresh = new / out.name
        with open(fresh, "w+b") as token_file:
            counts = _write_tokens(text, encoding, token_file, separator, progress)
            split = _find_split(token_file, counts["tokens"], encoding, validation_fraction)
        record = {
            "format_version": FORMAT_VERSION,
            "tokenizer": identity(encoding),
            "dtype": token_dtype(encoding).name,
            "train_tokens": split,
            "validation_tokens": counts["tokens"] - split,
            "source": text.name,
            **counts,
        }
        write_record(info_path(fresh), record)
        if not _holds(out, identity(encoding)):
            save_tokenizer(encoding, fresh)
    return TokenFileInfo(**record)


def _check_settings(text: Path, out: Path, validation_fraction: float) -> None:
    if not 0 <= validation_fraction < 1:
        raise ConfigError(
            f"a validation fraction of {validation_fraction} is impossible; give 0 or more, less than 1"
        )
    if out.suffix != ".bin":
        raise ConfigError(f"{out}: a token file's name ends in .bin; name one that does")
    if not out.parent.is_dir():
        raise UserError(
            f"{out}: cannot be written (no folder {out.parent}); name a file in a folder that exists"
        )
    for path in map(out.with_suffix, TOKEN_ENDINGS):
        if path.resolve() == text.resolve():
            raise ConfigError(f"{path}: this is the text, which would be lost; name another token file")


def _check_separator(separator: str | None, tokenizer: Tokenizer):
    if separator is None:
        return
    if not separator:
        raise ConfigError("--separator is empty; give the text that stands between two documents")
    _, between = document_ids(tokenizer)
    if not between:
        raise ConfigError(
            f"the tokenizer {tokenizer.name!r} has no end token to put between documents; omit --separator, or use "
            "gpt2 or an imported model's"
        )


def _replaceable(out: Path, encoding: Tokenizer, overwrite: bool) -> list[str]:
    """The names of an earlier token file's files at `out`, which a new one replaces, but not an equal tokenizer."""
    paths = [out.with_suffix(ending) for ending in TOKEN_ENDINGS]
    if _holds(out, identity(encoding)):
        paths.remove(tokenizer_file(out, encoding.name))

    def foreign(path: Path) -> Path | None:
        return None if path in token_files(out) else path

    return replaceable_items(paths, foreign, overwrite, kind="token file")


def token_files(out: Path) -> set[Path]:
    """Which of the files at `out`, its JSON and its tokenizer belong to a token file, by its JSON."""
    try:
        info = _read_info(out)
    except UserError:
        return set()
    own = {out, info_path(out)}
    if _holds(out, info.tokenizer):
        own.add(tokenizer_file(out, info.tokenizer["name"]))
    return {path for path in own if path.is_file() and not path.is_symlink()}


def _holds(out: Path, tokenizer: dict) -> bool:
    """Whether the tokenizer with this identity is kept in its file at `out`."""
    if tokenizer_file(out, tokenizer["name"]) is None:
        return False
    try:
        return identity(load_tokenizer(out, tokenizer["name"])) == tokenizer
    except UserError:
        return False


def _write_tokens(
    text: Path,
    tokenizer: Tokenizer,
    file: BinaryIO,
    separator: str | None,
    progress: Callable[[int], None] | None,
) -> dict[str, int | str]:
    """Stream the text's tokens into `file`; returns the counts and hashes of both."""
    dtype = _DTYPES[token_dtype(tokenizer).name]
    text_hash, tokens_hash = hashlib.sha256(), hashlib.sha256()
    text_bytes = 0
    begin, between = document_ids(tokenizer)

    def write(ids):
        ids = np.asarray(ids).astype(dtype, copy=False)
        file.write(ids)
        tokens_hash.update(ids)

    def pieces():
        nonlocal text_bytes
        cuts = BETWEEN_LINES if isinstance(tokenizer, PublishedTokenizer) else BETWEEN_WORDS
        for piece in stream_text(text, progress, cut_anywhere=is_bytewise(tokenizer), cuts=cuts):
            data = piece.encode()
            text_hash.update(data)
            text_bytes += len(data)
            yield piece

    write(begin)
    after_line = False
    for piece, ends in split_documents(pieces(), separator):
        if isinstance(tokenizer, PublishedTokenizer):
            write(tokenizer.encode(piece, after_line=after_line))
        else:
            write(encode(tokenizer, piece))
        if ends:
            write(between)
        after_line = not ends
    return {
        "tokens": file.tell() // dtype.itemsize,
        "tokens_sha256": tokens_hash.hexdigest(),
        "text_bytes": text_bytes,
        "text_sha256": text_hash.hexdigest(),
    }


# Where to split a text, best first: after a match in its UTF-8 bytes.
_BOUNDARIES = {
    "line": re.compile(rb"\n|\r(?!\n)"),
    # Of the last ones: 。！？
    "sentence": re.compile(rb"[.!?](?:[\"')\]]|\xe2\x80[\x99\x9d])*(?=\s)|\xe3\x80\x82|\xef\xbc[\x81\x9f]"),
    "word": re.compile(rb"\S(?=\s)"),
    "character": re.compile(rb"(?![\x80-\xbf])"),
}


def _find_split(file: BinaryIO, tokens: int, encoding: Tokenizer, fraction: float) -> int:
    """The number of training tokens, at least 1.

    The split is at the given fraction or a few tokens earlier: after the last line in reach, else the last sentence,
    word or character. In reach means that the held-out part grows by at most a tenth, and by at most `SPLIT_REACH`.
    """
    target = max(1, round(tokens * (1 - fraction)))
    reach = min(SPLIT_REACH, int(1.1 * fraction * tokens) - (tokens - target))
    if reach <= 0:
        return target
    # Boundaries look at a few tokens before the first position and one after the last.
    start = max(0, target - reach - 8)
    dtype = _DTYPES[token_dtype(encoding).name]
    file.seek(start * dtype.itemsize)
    every = token_bytes(encoding)
    pieces = [every[token] for token in np.fromfile(file, dtype, target + 1 - start)]
    text = b"".join(pieces)
    places = np.arange(max(1, target - reach), target + 1)
    ends = np.cumsum([0, *map(len, pieces)])[places - start]  # the same places, in bytes of `text`
    for boundary in _BOUNDARIES.values():
        found = places[np.isin(ends, [match.end() for match in boundary.finditer(text)])]
        if found.size:
            return int(found[-1])
    return target


# --- read ---


def open_prepared(path: Path) -> tuple[TokenFile, Tokenizer]:
    """Open a token file that `prepare` wrote, and its tokenizer."""
    corpus = open_tokens(path)
    return corpus, load_tokenizer(path, corpus.info.tokenizer["name"])


def open_tokens(path: str | PathLike) -> TokenFile:
    """Open a token file after checking its size, hash and largest token against its JSON.

    Raises UserError if either file is missing, damaged or of another format version; later reads do if it has changed.
    """
    path = Path(path)
    info = _read_info(path)
    with explaining(f"{path}: cannot be read", AGAIN):
        store = TokenStore(path, _DTYPES[info.dtype], info.tokens, info.tokens_sha256)
    if store.largest >= info.tokenizer["vocab_size"]:
        raise UserError(
            f"{path}: holds the token {store.largest}, but the vocabulary that {info_path(path).name} names "
            f"ends at {info.tokenizer['vocab_size'] - 1}; {AGAIN}"
        )
    train = StoredTokens(store, 0, info.train_tokens)
    validation = StoredTokens(store, info.train_tokens, info.tokens)
    return TokenFile(path, info, train, validation)


def _read_info(path: Path) -> TokenFileInfo:
    beside = info_path(path)
    again = f"remove {path.name} and {beside.name}, then prepare the text again"
    with (
        explaining(
            f"{beside}: the token file's JSON cannot be read", f"keep it beside the token file, or {again}"
        ),
        explaining(f"{beside}: not valid JSON", again, ValueError),
    ):
        found = read_json(beside)
    version = found.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{beside}: format version {version}, and this program reads {FORMAT_VERSION}; {again}"
        )
    if not pop_checksum(found):
        raise UserError(f"{beside}: does not match its checksum: it was changed or damaged; {again}")
    with explaining(f"{beside}: does not describe a token file", again, (TypeError, ValueError)):
        require(found, _INFO)
        info = TokenFileInfo(**found)
        if info.dtype not in _DTYPES:
            raise ValueError(f"dtype {info.dtype!r} is neither uint16 nor uint32")
        if info.tokens < 1:
            raise ValueError("there are no tokens")
        if info.train_tokens + info.validation_tokens != info.tokens:
            raise ValueError("training and validation tokens do not add up")
    return info
