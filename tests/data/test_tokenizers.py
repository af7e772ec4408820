"""Tokenizers: what goes in comes out, training is deterministic, ranks files are kept and checked."""

import base64
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import data.text
from contract.errors import ConfigError, UserError
from contract.staging import STAGED
from data.tokenizer_training import train_tokenizer
from data.tokenizers import (
    TextDecoder,
    encode,
    identity,
    is_bytewise,
    load_ranks,
    open_tokenizer,
    save_ranks,
    text_bytes,
    token_bytes,
    token_dtype,
)
from tests.data.texts import nasty_texts, one_line, write
from tests.shared_files import SHAKESPEARE, needs_corpora

ROOT = Path(__file__).parents[2]


# --- encoding and decoding ---


@settings(deadline=None, max_examples=200)
@given(text=nasty_texts)
def test_round_trip(folder, open_for, text):
    """Decoded tokens are the text, at once and one by one."""
    encoding = open_for(write(folder / "trip.txt", text))
    tokens = encode(encoding, text)
    assert tokens.dtype == np.uint16
    assert encoding.decode(tokens.tolist()) == text
    decoder = TextDecoder(encoding)
    assert "".join(map(decoder.feed, tokens)) == text
    assert decoder.flush() == ""


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 1999)))
def test_decoder_of_any_tokens(ranks, tokens):
    """Fed one by one, any tokens give what decoding all at once gives, U+FFFD for U+FFFD."""
    decoder = TextDecoder(ranks)
    assert "".join([*map(decoder.feed, tokens), decoder.flush()]) == ranks.decode(tokens)


def test_decoder_waits_for_whole_characters(gpt2):
    """A character appears with its last byte; a lost one and an unknown id as U+FFFD; flush starts anew."""
    decoder = TextDecoder(gpt2)
    first, second = gpt2.encode_ordinary("語")[:2], gpt2.encode_ordinary("語")[2:]
    assert len(first + second) > 1
    parts = [decoder.feed(token) for token in [*first, *second]]
    assert parts[-1] == "語"
    assert not any(parts[:-1])
    assert decoder.feed(first[0]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.feed(first[0]) == ""
    assert decoder.feed(64) == "\ufffda"
    for unknown in (50257, 1 << 40, -1):
        assert decoder.feed(unknown) == "\ufffd"
    assert decoder.feed(50256) == "<|endoftext|>"


def test_special_tokens_in_text_are_text(gpt2):
    """`<|endoftext|>` in a text gives the tokens of its letters, never the special token."""
    tokens = encode(gpt2, "a<|endoftext|>b")
    assert 50256 not in tokens
    assert len(tokens) > 3
    assert gpt2.decode(tokens.tolist()) == "a<|endoftext|>b"


def test_gpt2_vocabulary(gpt2):
    """GPT-2 has 50,257 tokens, the last `<|endoftext|>`, and lengths in bytes that add up."""
    assert gpt2.n_vocab == 50257
    assert identity(gpt2)["name"] == "gpt2"
    assert token_bytes(gpt2)[50256] == b"<|endoftext|>"
    text = "naïve 語 text"
    texts = token_bytes(gpt2)
    assert len(texts) == 50257
    assert sum(len(texts[id]) for id in encode(gpt2, text)) == len(text.encode())


@needs_corpora
def test_bytes_of_tinyshakespeare():
    """The usual character-level set-up: 65 symbols in the order of their values, one a byte."""
    encoding = open_tokenizer("bytes", SHAKESPEARE)
    assert encoding.n_vocab == 65
    assert is_bytewise(encoding)
    assert token_bytes(encoding) == sorted(token_bytes(encoding))
    text = SHAKESPEARE.read_bytes()[:10_000].decode()
    assert encode(encoding, text).tolist() == encoding.encode_ordinary(text)


def test_missing_symbols_are_named(folder):
    """Characters that the tokenizer lacks are named, a few of them, and tiktoken is never asked."""
    encoding = open_tokenizer("bytes", write(folder / "abc.txt", "abc"))
    with pytest.raises(UserError) as error:
        encode(encoding, "abécc語\n")
    one_line(error, "'é' (U+00E9), '語' (U+8A9E), '\\n' (U+000A)", "bytes", "gpt2")
    with pytest.raises(UserError) as error:
        encode(encoding, "0123456789")
    assert "and 5 more" in one_line(error, "'4'")
    lacking = write(folder / "lacking.tiktoken", b"YQ== 0\nYg== 1\nYWI= 2\n")
    with pytest.raises(UserError) as error:
        encode(load_ranks(lacking), "abz")
    one_line(error, "'z' (U+007A)", "ranks")


def test_text_that_cannot_be_encoded(ranks):
    """A lone surrogate, and whitespace beyond the pattern's engine, are one line each."""
    with pytest.raises(UserError) as error:
        encode(ranks, "ab\udcff")
    one_line(error, "U+DCFF", "character 2")
    with pytest.raises(UserError) as error:
        encode(ranks, "x" + " " * 1_000_000 + "x")
    one_line(error, "whitespace")


def test_empty_text(ranks):
    """No text, no tokens, of the right type all the same."""
    assert encode(ranks, "").shape == (0,)
    assert encode(ranks, "").dtype == np.uint16


def test_large_vocabularies_take_uint32():
    """Ids beyond 65,535 are not wrapped round."""
    tokens = {bytes([byte]): byte for byte in range(256)}
    pairs = {bytes([a, b]): 256 + 256 * a + b for a in range(256) for b in range(256)}
    for count, dtype in ((65_280, np.uint16), (65_281, np.uint32)):
        some = tokens | dict(list(pairs.items())[:count])
        encoding = tiktoken.Encoding("ranks", pat_str=r"(?s).+", mergeable_ranks=some, special_tokens={})
        assert encoding.n_vocab == 256 + count
        assert token_dtype(encoding) == dtype
    text = "\U0010ffff"  # F4 8F BF BF
    assert encode(encoding, text).tolist() == encoding.encode_ordinary(text)


# --- training and ranks files ---


def test_training_is_deterministic(folder, ranks):
    """The same text gives the same ranks, here and in another process with other hash seeds."""
    assert identity(train_tokenizer(folder / "training.txt", 2000)) == identity(ranks)
    code = (
        "import sys; from data.tokenizer_training import train_tokenizer; from data.tokenizers import identity\n"
        "print(identity(train_tokenizer(sys.argv[1], 2000))['sha256'])"
    )
    command = [sys.executable, "-c", code, folder / "training.txt"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == identity(ranks)["sha256"]


def test_training_streams_the_same_ranks(folder, ranks):
    """Ranks do not depend on how the text falls into pieces."""
    with mock.patch.object(data.text, "BLOCK_BYTES", 100):
        assert identity(train_tokenizer(folder / "training.txt", 2000)) == identity(ranks)


def test_training_sizes(folder):
    """256 is the bytes alone; a small text gives the merges that it has; less than 256 is refused."""
    path = write(folder / "small.txt", "aab ab")
    assert train_tokenizer(path, 256).n_vocab == 256
    small = train_tokenizer(path, 5000)
    assert small.n_vocab == 259
    assert token_bytes(small)[256] == b"ab"
    for size in (255, 0, -1, 1 << 40):
        with pytest.raises(ConfigError) as error:
            train_tokenizer(path, size)
        one_line(error, size, 256)


def test_training_on_bad_text(folder):
    """The text's own error comes through the trainer, and whitespace that would end the process is one."""
    with pytest.raises(UserError) as error:
        train_tokenizer(folder / "none.txt", 300)
    one_line(error, "no such file")
    with pytest.raises(UserError) as error:
        train_tokenizer(write(folder / "wide.txt", "x" + " " * 1_000_000 + "x"), 300)
    one_line(error, "whitespace")


def test_ranks_files_keep_the_tokenizer(folder, ranks):
    """A saved tokenizer is the same when loaded, by identity and by tokens; one of bytes keeps its name."""
    path = folder / "saved.tiktoken"
    save_ranks(ranks, path)
    assert identity(open_tokenizer(path)) == identity(open_tokenizer(str(path))) == identity(ranks)
    assert identity(ranks)["name"] == "ranks"
    by_byte = open_tokenizer("bytes", write(folder / "some.txt", "it's 語"))
    with pytest.raises(UserError, match="already exists"):
        save_ranks(by_byte, path)
    save_ranks(by_byte, path, overwrite=True)
    assert identity(load_ranks(path, name="bytes")) == identity(by_byte)
    assert identity(by_byte)["name"] == "bytes"
    assert list(folder.glob(f".*{STAGED}")) == []


def test_identity_tells_tokenizers_apart(folder):
    """Another token, another order or another border between two tokens is another tokenizer."""

    def sha256(*tokens):
        ranks = {token: rank for rank, token in enumerate(tokens)}
        encoding = tiktoken.Encoding("ranks", pat_str=".", mergeable_ranks=ranks, special_tokens={})
        return identity(encoding)["sha256"]

    variants = [(b"a", b"b"), (b"b", b"a"), (b"a", b"c"), (b"ab",), (b"a", b"b", b"c"), (b"a", b"bc")]
    assert len({sha256(*tokens) for tokens in variants}) == len(variants)
    assert sha256(b"a", b"b") == sha256(b"a", b"b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"YQ== 0\nYg=!= 1\n", ["line 2", "base64"]),
        (b"YQ== 0\nYg==\n", ["line 2", "a space and a rank"]),
        (b"YQ== 0\n\nYg== 1\n", ["line 2"]),
        (b"YQ== 0\nYg== 2\n", ["line 2", "rank 1 expected", "2"]),
        (b"YQ== 0\nYg== 0\n", ["line 2", "rank 1 expected"]),
        (b"YQ== 0\nYg== one\n", ["line 2", "rank 1 expected"]),
        (b"YQ== 0\nYQ== 1\n", ["line 2", "line 1 again"]),
        (b"YQ== 0\n 1\n", ["line 2", "empty"]),
        (b"YQ== 0\nYWI= 1\n", ["line 2", "0x62"]),
        (bytes(range(256)), ["line 1"]),
    ],
)
def test_bad_ranks_files(folder, content, words):
    """A ranks file with gaps, repeats or other contents is refused with the line and the reason."""
    path = write(folder / "bad.tiktoken", content)
    with pytest.raises(UserError) as error:
        load_ranks(path)
    one_line(error, path, *words)


def test_ranks_files_that_cannot_be_opened(folder, ranks):
    """Missing files to read and impossible places to write are one line each."""
    for path in (folder / "none.tiktoken", folder):
        with pytest.raises(UserError) as error:
            load_ranks(path)
        one_line(error, path)
    for path in (folder / "none" / "a.tiktoken", write(folder / "file", "") / "a.tiktoken"):
        with pytest.raises(UserError) as error:
            save_ranks(ranks, path)
        one_line(error, path, "written")


def test_a_failed_save_leaves_the_old_file(folder, ranks):
    """An interrupted save leaves what stood there, and nothing beside it."""
    path = folder / "kept.tiktoken"
    save_ranks(ranks, path)
    before, names = path.read_bytes(), sorted(folder.iterdir())
    with (
        mock.patch.object(base64, "b64encode", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        save_ranks(ranks, path, overwrite=True)
    assert path.read_bytes() == before
    assert sorted(folder.iterdir()) == names


def test_unknown_names():
    """An unknown tokenizer is answered with the three kinds there are; bytes without a text, by its want."""
    with pytest.raises(ConfigError) as error:
        open_tokenizer("gpt3")
    one_line(error, "gpt3", "gpt2", "bytes", ".tiktoken")
    with pytest.raises(ConfigError) as error:
        open_tokenizer("bytes")
    one_line(error, "bytes", "text")


def test_gpt2_without_network(tmp_path, monkeypatch):
    """Where gpt2's files are neither cached nor to be had, one line says how to provide them."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "gpt2", raising=False)
    with pytest.raises(UserError) as error:
        open_tokenizer("gpt2")
    one_line(error, "gpt2", "TIKTOKEN_CACHE_DIR")
    assert list(tmp_path.iterdir()) == []


def test_an_end_token_stands_for_no_text(gpt2):
    """Its name is no text of the document that it ends; all other tokens have their bytes."""
    names, texts = token_bytes(gpt2), text_bytes(gpt2)
    assert (names[gpt2.eot_token], texts[gpt2.eot_token]) == (b"<|endoftext|>", b"")
    assert names[: gpt2.eot_token] == texts[: gpt2.eot_token]
