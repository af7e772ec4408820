"""Text files as a stream of pieces that can be tokenised one by one, in bounded memory."""

import codecs
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from contract.errors import UserError, explaining
from data.file_kinds import HEAD_BYTES, describe_encoding, describe_kind

STDIN = Path("-")
BLOCK_BYTES = 1 << 20  # read at a time; a piece is usually about as long
PIECE_BYTES = 4 << 20  # refused beyond this without a place to cut: tiktoken takes some 50 times as much

# Where a text may be cut.
#
# The GPT-2 pattern takes a text from left to right and never looks behind a match's start:
#
#     '(?:[sdmt]|ll|ve|re) | ?\p{L}++ | ?\p{N}++ | ?[^\s\p{L}\p{N}]++ |\s++$ |\s+(?!\S) |\s
#
# Call L its letters, N its numbers, S its whitespace and O everything else. A cut between the characters x and y
# changes no token if (1) no match of the whole text holds both x and y, and (2) x is not in S.
#
# By (1) a match ends at the cut, so the right part is tokenised from the same place in both cases, and nothing looks
# back. The left part could differ only where a match depends on what lies behind x. A run of letters, numbers or others
# ends at x by itself or because y has another class: either way at x. A contraction takes a second letter only from the
# text up to x, or it would hold both. `\s++$` and `\s+(?!\S)` look one character past a run of whitespace, which by (2)
# ends before x, so that this character is x at the latest. It follows that the pieces' tokens are the whole text's.
#
# (1) holds in three cases, because only two alternatives hold more than one class: an optional space in front of a run,
# and a contraction, O in front of L.
#   - x not in S, y in S: whitespace stands only at the start of a match or in one that is all whitespace.
#     x is any \S of Python, whose \s has all that the pattern's has (and U+001C to U+001F besides).
#   - x in L, y in N or O: no alternative has a letter before another class. "'s" is of the form O L, so "don|'t" may be
#     cut but "don'|t" may not; this is why x is never in O here.
#   - x in N, y in L or O: likewise.
# The last two keep scripts without spaces and long unbroken lines bounded. They name only characters whose class has
# been the same in every version of Unicode: Python and the pattern's engine may differ in theirs.
LETTERS = "A-Za-z\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5"  # Latin, hiragana, katakana, CJK ideographs
NUMBERS = "0-9"
OTHERS = (
    r"!-/:-@\[-`{-~"  # ASCII punctuation
    "\u2014\u2018\u2019\u201c\u201d\u2026"  # dash, quotation marks, ellipsis
    "\u3001\u3002\u300a-\u3011\uff01\uff0c\uff1a\uff1b\uff1f"  # CJK punctuation
)
# Where a text may be cut without a change of its tokens: after a match. BETWEEN_WORDS is for GPT-2's pattern. The other
# published ones (Llama 3, Qwen, SmolLM) have a word take the character before it, but never a line break, and let no
# match begin with letters and go on with a line break.
BETWEEN_WORDS = re.compile(
    rf"\S(?=[ \t\r\n])|[{LETTERS}](?=[{NUMBERS}{OTHERS}])|[{NUMBERS}](?=[{LETTERS}{OTHERS}])"
)
BETWEEN_LINES = re.compile(rf"[{LETTERS}]\n(?=[{LETTERS}])")


def stream_text(
    path: str | PathLike,
    progress: Callable[[int], None] | None = None,
    *,
    cuts: re.Pattern | None = BETWEEN_WORDS,
    fold: bool = False,
) -> Iterator[str]:
    """Yield a UTF-8 file's text, without a byte order mark, in pieces whose tokens together are the whole text's.

    path: of a text, packed by gzip or xz or not; `STDIN` for standard input
    progress: called with the number of bytes read so far, after every block
    cuts: after whose matches a piece may end; None for anywhere, if the tokenizer encodes every byte by itself
    fold: whether "\\r\\n" and "\\r" become "\\n"
    Raises UserError if the file cannot be read, is empty, is not UTF-8 text, or holds a longer run of one class of
    characters than can be tokenised in bounded memory.
    """
    return cut_text(read_text(Path(path), progress, fold), path, cuts)


def cut_text(texts: Iterator[str], source: str | PathLike, cuts: re.Pattern | None) -> Iterator[str]:
    """The pieces of a text that comes in parts; see `stream_text`. source: its name, for the error"""
    held = ""
    for text in texts:
        searched = max(len(held) - 1, 0)
        held += text
        cut = len(held) if cuts is None else _last_cut(cuts, held, searched)
        if cut:
            yield held[:cut]
            held = held[cut:]
        elif len(held.encode()) > PIECE_BYTES:
            raise UserError(
                f"{source}: {len(held):,} characters, from {held[:20]!r} on, without a place where the text "
                "can be cut between two tokens; break it with spaces or lines, or use the tokenizer 'bytes'"
            )
    if held:
        yield held


def _last_cut(cuts: re.Pattern, text: str, start: int) -> int:
    """The index of the last safe cut after `start`, or 0; searched from the end, in growing windows."""
    window = 256
    while True:
        low = max(start, len(text) - window)
        cut = max((match.end() for match in cuts.finditer(text, low)), default=0)
        if cut or low == start:
            return cut
        window *= 16


def read_text(path: Path, progress: Callable[[int], None] | None, fold: bool) -> Iterator[str]:
    """Yield the file's text block by block, without a byte order mark; see `stream_text`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = io.IncrementalNewlineDecoder(None, translate=True)
    at_start = empty = True
    read, block = 0, b""
    for block, count in _read_blocks(path):
        if not read and (kind := describe_kind(path, block[:HEAD_BYTES])):
            raise UserError(f"{path}: this looks like {kind}")
        if (nul := block.find(0)) >= 0:
            raise UserError(
                f"{path}: this looks like a binary file (a NUL byte at offset {read + nul}); give a UTF-8 text file"
            )
        read += len(block)
        text = _decode_block(decoder, block, path, read, block)
        if progress:
            progress(count)
        if text and at_start:
            text, at_start = text.removeprefix("\ufeff"), False
        if text:
            empty = False
            yield lines.decode(text) if fold else text
    _decode_block(decoder, b"", path, read, block)
    if fold and (last := lines.decode("", final=True)):
        yield last
    if empty:
        what = "nothing came out of this pipe" if is_pipe(path) else "the file is empty"
        raise UserError(f"{path}: {what}; give a file with UTF-8 text in it")


class _Input:
    """A file's bytes, counted as they are read; `head` are its first ones."""

    def __init__(self, file: BinaryIO):
        self._file, self.count = file, 0
        self.head = self._next = file.read(6)

    def read(self, size: int) -> bytes:
        """As a file's `read`."""
        data, self._next = self._next[:size], self._next[size:]
        if len(data) < size:
            data += self._file.read(size - len(data))
        self.count += len(data)
        return data

    def unpacked(self) -> BinaryIO:
        """The file that reads what gzip or xz have packed, known by its first bytes; this one if neither has."""
        if self.head.startswith(b"\x1f\x8b"):
            return gzip.GzipFile(fileobj=self)
        return lzma.LZMAFile(self) if self.head == b"\xfd7zXZ\0" else self


_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)  # of a packed file


def _read_blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Blocks of a text's bytes, each with the number of the file's bytes read so far."""
    advice = "give the path of a UTF-8 text file"
    damaged = f"{path}: the packed file is cut short or damaged", "get it again", _DAMAGE
    with (
        explaining(f"{path}: cannot be read", f"{advice} that you may read"),
        explaining(*damaged),
        _open(path, advice) as file,
    ):
        source = _Input(file)
        unpacked = source.unpacked()
        while block := unpacked.read(BLOCK_BYTES):
            yield block, source.count


def _open(path: Path, advice: str) -> BinaryIO:
    if path == STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError(
                f"{path}: standard input is a terminal; pipe a text into the command, or {advice}"
            )
        return open(sys.stdin.fileno(), "rb", closefd=False)
    for wrong, what in (
        (not path.exists(), "no such file"),
        (path.is_dir(), "this is a folder"),
        (path.is_char_device() or path.is_block_device(), "this is a device"),  # which may never end
    ):
        if wrong:
            raise UserError(f"{path}: {what}; {advice}")
    return open(path, "rb")


def _decode_block(
    decoder: codecs.IncrementalDecoder, block: bytes, path: Path, read: int, evidence: bytes
) -> str:
    """Decode a block that ends `read` bytes into the file; an empty one is the end.

    evidence: bytes of the file, to recognise another encoding by
    """
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        # error.object starts with the bytes that the decoder kept from the block before.
        offset = read - len(error.object) + error.start
        raise UserError(
            f"{path}: not UTF-8 text (byte 0x{error.object[error.start]:02x} at offset {offset}: "
            f"{error.reason}); {describe_encoding(path, evidence)}"
        ) from error


def is_pipe(path: str | PathLike) -> bool:
    """Whether a path is standard input, a pipe or a socket, which can be read only once."""
    path = Path(path)
    return path == STDIN or path.is_fifo() or path.is_socket()
