"""Streaming: the pieces of a text give the whole text's tokens, and what is no text is named."""

import os
import re
from pathlib import Path
from unittest import mock

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data.text
from contract.errors import UserError
from data.prepare import open_tokens, prepare
from data.text import BETWEEN_WORDS, LETTERS, NUMBERS, OTHERS, stream_text
from data.tokenizer_training import train_tokenizer
from data.tokenizers import (
    encode,
    identity,
    is_bytewise,
    open_tokenizer,
)
from tests.data.texts import nasty_texts, one_line, write


def pieces_of(path, block_bytes, **options):
    with mock.patch.object(data.text, "BLOCK_BYTES", block_bytes):
        return list(stream_text(path, **options))


def characters_matching(pattern):
    """All characters that a class of the pattern's own engine holds, asked through tiktoken."""
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(encoding.decode(encoding.encode_ordinary(every)))


def test_classes_of_cuts_are_those_of_the_pattern():
    """The premises of the proof in data/text.py: each class named there is one of the pattern's."""
    every = "".join(map(chr, range(0x110000)))
    letters, numbers, spaces = (characters_matching(c) for c in (r"\p{L}", r"\p{N}", r"\s"))
    assert set(re.findall(f"[{LETTERS}]", every)) <= letters
    assert set(re.findall(f"[{NUMBERS}]", every)) <= numbers
    assert set(re.findall(f"[{OTHERS}]", every)).isdisjoint(letters | numbers | spaces)
    assert spaces <= set(re.findall(r"\s", every))
    assert set(" \t\r\n") <= spaces


@settings(deadline=None, max_examples=300)
@given(text=nasty_texts, block_bytes=st.integers(1, 24))
@example(text="they'll've don't 'tis l'l", block_bytes=1)
@example(text="x  \n\n y \t\t\n z   ", block_bytes=1)
@example(text="a'b!c1d 2'e", block_bytes=1)
def test_pieces_give_the_tokens_of_the_whole(folder, open_for, text, block_bytes):
    """However a text falls into blocks, its pieces' tokens are the whole text's, for every tokenizer."""
    path = write(folder / "nasty.txt", text)
    encoding = open_for(path)
    pieces = pieces_of(path, block_bytes, cuts=None if is_bytewise(encoding) else BETWEEN_WORDS)
    assert "".join(pieces) == text
    assert all(pieces)
    assert [token for piece in pieces for token in encode(encoding, piece)] == encoding.encode_ordinary(text)


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("The baby is sleeping.\r\n" * 50, 16),
        ("我们去。你们来，他们走！" * 50, 12),
        ("日本語です。カタカナ、ひらがな。" * 50, 15),
        ("dGhpcyBpcyBiYXNlNjQ+/2E9" * 50, 24),
        ("0123abcd" * 100, 8),
    ],
)
def test_texts_without_spaces_are_cut_too(folder, text, longest):
    """Prose, Chinese, Japanese and unbroken lines are cut often enough to stay within bounded memory."""
    pieces = pieces_of(write(folder / "cut.txt", text), 8)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= longest


def test_bytes_are_cut_anywhere(folder):
    """A tokenizer of single bytes has bounded memory on any text."""
    assert pieces_of(write(folder / "a.txt", "a" * 100), 10, cuts=None) == ["a" * 10] * 10


def test_byte_order_mark(folder):
    """A mark at the start is no part of the text, whatever the block size; elsewhere it is a character."""
    path = write(folder / "bom.txt", "\ufeffone \ufefftwo")
    for block_bytes in (1, 2, 3, 4, 100):
        assert "".join(pieces_of(path, block_bytes)) == "one \ufefftwo"


def test_progress_counts_bytes(folder):
    """Progress gives the bytes read after every block, the file's size at the end."""
    path = write(folder / "progress.txt", "é" * 10)
    seen = []
    pieces_of(path, 8, progress=seen.append)
    assert seen == [8, 16, 20]


@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        ("\ufeff".encode(), ["empty"]),
        (b"plain \xe9t\xe9", ["not UTF-8", "0xe9", "offset 6", "iconv"]),
        ("ab é".encode()[:-1], ["not UTF-8", "0xc3", "offset 3", "iconv"]),
        (b"\xed\xa0\x80", ["not UTF-8", "0xed", "offset 0"]),
        (b"words\0more", ["binary", "offset 5"]),
    ],
)
def test_text_that_is_none(folder, content, words, block_bytes):
    """Empty, binary and non-UTF-8 files are named with the place of the trouble, wherever blocks end."""
    path = write(folder / "bad.txt", content)
    with pytest.raises(UserError) as error:
        pieces_of(path, block_bytes)
    one_line(error, path, *words)


def test_files_that_cannot_be_read(folder):
    """A missing file, a folder and another encoding each have their own line."""
    for path, word in [(folder / "none.txt", "no such file"), (folder, "folder")]:
        with pytest.raises(UserError) as error:
            next(stream_text(path))
        one_line(error, path, word)
    with pytest.raises(UserError) as error:
        next(stream_text(write(folder / "utf16.txt", "wide".encode("utf-16"))))
    one_line(error, "UTF-16", "iconv")
    with pytest.raises(UserError) as error:
        next(stream_text("a\0b"))
    one_line(error, "no such file")


@pytest.fixture
def pipe():
    """A function that gives the path of a pipe with some content in it."""
    ends = []

    def open_pipe(content):
        reading, writing = os.pipe()
        ends.append(reading)
        os.write(writing, content)
        os.close(writing)
        return Path(f"/dev/fd/{reading}")

    yield open_pipe
    for end in ends:
        os.close(end)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd (Linux or macOS)")
def test_a_pipe_is_read_once(folder, pipe, ranks):
    """Whatever reads a text once takes it from a pipe; the tokenizer of its bytes then has all of them."""
    text = "it's a text, which is read once\n" * 5
    assert "".join(stream_text(pipe(text.encode()))) == text
    prepare(pipe(text.encode()), ranks, folder / "piped.bin")
    assert open_tokens(folder / "piped.bin").info.text_bytes == len(text)
    path = write(folder / "unpiped.txt", text)
    assert identity(train_tokenizer(pipe(text.encode()), 260)) == identity(train_tokenizer(path, 260))
    assert open_tokenizer("bytes", pipe(text.encode())).n_vocab == 256  # all: it cannot be looked at before
    with pytest.raises(UserError) as error:
        next(stream_text(pipe(b"")))
    one_line(error, "nothing came out of this pipe")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero (Linux or macOS)")
@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_a_device_is_no_text(path):
    """What may wait or go on for ever is not read at all."""
    with pytest.raises(UserError) as error:
        next(stream_text(path))
    one_line(error, f"{path}: this is a device")


def test_a_run_without_a_cut_is_refused_not_held(folder):
    """Memory stays bounded: what cannot be cut is an error beyond a size, unless single bytes are taken."""
    path = write(folder / "run.txt", "x" + "é" * 1000)
    with mock.patch.object(data.text, "PIECE_BYTES", 100):
        with pytest.raises(UserError) as error:
            pieces_of(path, 64)
        one_line(error, path, "cut", "bytes")
        assert len(pieces_of(path, 64, cuts=None)) == 32
