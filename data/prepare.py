"""Text files to token files, and token files to tokens.

A token file `x.bin` holds token ids, uint16 or uint32, little endian, without a header: first the training
part, then the validation part (`data.held_out`). Of conversations, the top bit tells which tokens are no target
(`data.token_store.TokenForm`). `x.json` beside it is a `TokenFileInfo` with a checksum, and `x.tiktoken` or
`x.published.json` has the tokenizer, unless it is tiktoken's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

import numpy as np

from contract.errors import ConfigError, UserError, explaining
from contract.files import replaceable_items, write_into
from contract.schema import pop_checksum, read_json, require, write_record
from data.held_out import HeldOut, hold_out
from data.likeness import end_surprise
from data.overlap import shared_share
from data.sources import Texts
from data.token_store import AGAIN, StoredTokens, TokenForm, TokenStore
from data.token_writer import TokenWriter
from data.tokenizers import (
    TOKENIZER_ENDINGS,
    Tokenizer,
    identity,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    tokenizer_file,
)

DEFAULT_TEXT, DEFAULT_RANKS = (Path(__file__).with_name(f"tense.{ending}") for ending in ("txt", "tiktoken"))
FORMAT_VERSION = 1
TOKEN_ENDINGS = (".bin", ".json", *TOKENIZER_ENDINGS)
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class TokenFileInfo:
    """What a token file holds.

    `text_*` are of the UTF-8 text, without byte order marks and what stands between documents. Fields with a default
    are None in files of earlier versions, which held out the end of one text.
    """

    format_version: int
    tokenizer: dict  # data.tokenizers.identity
    dtype: str  # "uint16" or "uint32"
    tokens: int
    train_tokens: int
    validation_tokens: int
    tokens_sha256: str  # of the token file
    text_bytes: int
    text_sha256: str
    source: str  # the text's name, without its folder; of several the first one's
    files: int | None = None
    documents: int | None = None
    held_out: str | None = None  # one of `data.held_out.WAYS`, or the name of the text that is held out
    held_out_parts: int | None = None  # how many documents or blocks, and by which seed they were drawn
    held_out_seed: int | None = None
    overlap: float | None = None  # `data.overlap.shared_share`, None if nothing is held out
    end_surprise: float | None = None  # `data.likeness.end_surprise`, None if the end is not held out
    train_targets: int | None = None  # how many count as targets, of the tokens of each part; None for all
    validation_targets: int | None = None

    @property
    def form(self) -> TokenForm:
        """How the file holds its tokens."""
        return TokenForm(_DTYPES[self.dtype], self.train_targets is not None)


_KINDS = {str: str, int: range(2**63), dict: {"name": str, "vocab_size": range(2**63), "sha256": str}}
_KINDS |= {str | None: (str, None), int | None: (range(2**63), None), float | None: (float, None)}
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


def default_tokenizer(text: Texts) -> str:
    """The name of a text's default tokenizer: the default corpus's own ranks for it, else "bytes"."""
    return str(DEFAULT_RANKS) if text.named == (DEFAULT_TEXT,) else "bytes"


def prepare(
    text: Texts | str | PathLike,
    tokenizer: str | Tokenizer | None,
    out: str | PathLike,
    *,
    held_out: HeldOut = HeldOut(),  # noqa: B008, it is frozen
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> TokenFileInfo:
    """Turn texts into a token file with its JSON and its tokenizer's ranks, all or none, in bounded memory.

    tokenizer: itself, or a name for `data.tokenizers.open_tokenizer`; None takes `default_tokenizer`
    out: the token file to write, ending in `.bin`; overwrite: replace an earlier one there
    held_out: what to validate on
    progress: called with the number of bytes of the texts read so far; it begins again where they are read twice
    Between two documents stands the tokenizer's end token; if it has none, what separated them, or a blank line.
    Raises ConfigError for an impossible setting, UserError for what cannot be read, written, replaced or encoded.
    """
    texts, out = Texts.of(text), Path(out)
    parts = [texts, texts.like(held_out.text)] if held_out.text else [texts]
    _check_place(out, [file for each in parts for file in each.files])
    tokenizer = default_tokenizer(texts) if tokenizer is None else tokenizer
    encoding = (
        tokenizer
        if isinstance(tokenizer, Tokenizer)
        else open_tokenizer(tokenizer, *parts, progress=progress)
    )
    _replaceable(out, encoding, overwrite)
    with write_into(out.parent, lambda: _replaceable(out, encoding, overwrite), shown=out) as new:
        fresh = new / out.name
        with open(fresh, "w+b") as file:
            written = TokenWriter(file, encoding, masked=texts.has_conversations)
            split, *_ = [written.add(each, progress if each is texts else None) for each in parts]
            found = {"held_out": held_out.text.name} if held_out.text else {}
            if not held_out.text:
                split, found = hold_out(file, written.form, written.documents, split, encoding, held_out)
            counts = written.counts()
            place = split, counts["tokens"], counts["text_bytes"]
            measured = {"overlap": shared_share(file, written.form.dtype, *place)} | written.targets(split)
            if found["held_out"] == "end":
                measured["end_surprise"] = end_surprise(file, written.form, *place, encoding.n_vocab)
        record = {
            "format_version": FORMAT_VERSION,
            "tokenizer": identity(encoding),
            "dtype": written.form.dtype.name,
            "train_tokens": split,
            "validation_tokens": counts["tokens"] - split,
            "source": texts.name,
            "files": len(texts.files),
            **counts,
            **found,
            **measured,
        }
        write_record(info_path(fresh), record)
        if not _holds(out, identity(encoding)):
            save_tokenizer(encoding, fresh)
    return TokenFileInfo(**record)


def _check_place(out: Path, texts: list[Path]) -> None:
    if out.suffix != ".bin":
        raise ConfigError(f"{out}: a token file's name ends in .bin; name one that does")
    if not out.parent.is_dir():
        raise UserError(
            f"{out}: cannot be written (no folder {out.parent}); name a file in a folder that exists"
        )
    own = {path.resolve(): path for path in map(out.with_suffix, TOKEN_ENDINGS)}
    for text in texts:
        if path := own.get(text.resolve()):
            raise ConfigError(f"{path}: this is the text, which would be lost; name another token file")


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
        info = read_info(out)
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
    info = read_info(path)
    with explaining(f"{path}: cannot be read", AGAIN):
        store = TokenStore(path, info.form, info.tokens, info.tokens_sha256)
    if store.largest >= info.tokenizer["vocab_size"]:
        raise UserError(
            f"{path}: holds the token {store.largest}, but the vocabulary that {info_path(path).name} names "
            f"ends at {info.tokenizer['vocab_size'] - 1}; {AGAIN}"
        )
    train = StoredTokens(store, 0, info.train_tokens)
    validation = StoredTokens(store, info.train_tokens, info.tokens)
    return TokenFile(path, info, train, validation)


def read_info(path: Path) -> TokenFileInfo:
    """What a token file's JSON says. Raises UserError if it is missing, damaged or of another format version."""
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
