"""What a user names becomes one stream of documents: folders, packed files, standard input, JSONL, separators."""

import gzip
import json
import lzma
import sys
from pathlib import Path
from unittest import mock

import pytest

import data.text
from contract.errors import ConfigError, UserError
from data.held_out import HeldOut
from data.prepare import open_prepared, prepare
from data.sources import Texts
from data.text import STDIN
from data.tokenizer_training import train_tokenizer
from data.tokenizers import END_OF_TEXT, encode, end_token, identity, load_ranks, open_tokenizer, save_ranks
from data.vocabulary import read_vocabulary, vocabulary_files
from tests.data.texts import one_line, write

PROSE = "The baby is sleeping.\r\nHer mother's “friends” weren't there, 我们去.\n\n"


def documents(texts, block_bytes=1 << 20, **options):
    """The documents of texts, read in blocks of any size."""
    found = [""]
    with mock.patch.object(data.text, "BLOCK_BYTES", block_bytes):
        for piece, ends in texts.pieces(**options):
            found[-1] += piece
            found += [""] * ends
    return found


def learnt(texts, tokenizer, out):
    """The text of the tokens that texts become, all of them to train on, and the tokenizer."""
    prepare(texts, tokenizer, out, held_out=HeldOut(0), overwrite=True)
    opened, tokenizer = open_prepared(out)
    return tokenizer.decode(opened.train[:].tolist()), tokenizer


def test_a_folder_is_its_files_in_order(tmp_path):
    """Those of inner folders too, by their names; hidden and empty ones are passed over."""
    for name in ("b.py", "a/z.py", "a/notes.md", "a b.py", ".git/config.py", "a/.hidden.py", "c/empty.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if "empty" in name else name)
    assert documents(Texts.of(tmp_path)) == ["a/notes.md", "a/z.py", "a b.py", "b.py"]
    assert documents(Texts((tmp_path,), patterns=("*.md", "b.*"))) == ["a/notes.md", "b.py"]
    assert documents(Texts((tmp_path,), patterns=("a/*",))) == ["a/notes.md", "a/z.py"]
    assert documents(Texts((tmp_path / "b.py", tmp_path / "a"))) == ["b.py", "a/notes.md", "a/z.py"]


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_files_are_read_as_they_are(tmp_path, pack, block_bytes):
    """By their first bytes, not their names; of several parts all; progress counts the packed bytes."""
    path = write(tmp_path / "story", pack(PROSE.encode()) + pack(PROSE.encode()))
    seen = []
    texts = Texts.of(path)
    assert documents(texts, block_bytes, progress=seen.append) == [PROSE * 2]
    assert seen == sorted(seen)
    assert seen[-1] == texts.size == path.stat().st_size


def test_progress_goes_on_from_file_to_file(tmp_path):
    texts = Texts((write(tmp_path / "a", "a" * 10), write(tmp_path / "b", "b" * 6)))
    seen = []
    documents(texts, 4, progress=seen.append)
    assert seen == [4, 8, 10, 14, 16]
    assert texts.size == 16


def test_standard_input(tmp_path, monkeypatch):
    """`-` is what comes through the pipe, here JSONL by its field; a terminal is refused."""
    path = write(tmp_path / "lines", '{"body": "one"}\n{"body": "two"}\n')
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert documents(Texts((STDIN,), field="body")) == ["one", "two"]
    monkeypatch.setattr(sys, "stdin", mock.Mock(isatty=lambda: True))
    with pytest.raises(UserError) as error:
        documents(Texts.of(STDIN))
    one_line(error, "-: standard input is a terminal; pipe a text into the command")


@pytest.mark.parametrize("block_bytes", [1, 5, 1 << 20])
@pytest.mark.parametrize("name", ["lines.jsonl", "lines.ndjson.gz"])
def test_jsonl(tmp_path, name, block_bytes):
    """A line's field is a document; inside it stand all characters, also those that end lines elsewhere."""
    wanted = ["one\r\ntwo", "a\u2028b\x85c", "我们 <|endoftext|>", " "]
    lines = [json.dumps({"id": n, "text": text}, ensure_ascii=n % 2 == 0) for n, text in enumerate(wanted)]
    content = "\r\n\n".join([*lines[:2], '{"text": ""}', *lines[2:]])
    path = write(tmp_path / name, gzip.compress(content.encode()) if ".gz" in name else content)
    assert documents(Texts.of(path), block_bytes) == wanted
    folded = documents(Texts((path,), newlines="lf"), block_bytes)
    assert folded == ["one\ntwo", *wanted[1:]]


@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
def test_newlines(tmp_path, block_bytes):
    """Kept unless asked; folded wherever a block ends, a carriage return at the end of the text too."""
    path = write(tmp_path / "dos.txt", "a\r\nb\r\r\nc\nd\r")
    assert documents(Texts.of(path), block_bytes) == ["a\r\nb\r\r\nc\nd\r"]
    assert documents(Texts((path,), newlines="lf"), block_bytes) == ["a\nb\n\nc\nd\n"]


def test_a_long_line_of_jsonl_is_refused_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.MAX_LINE", 100)
    path = write(tmp_path / "long.jsonl", '{"text": "' + "a" * 200)
    with pytest.raises(UserError) as error:
        documents(Texts.of(path), 16)
    one_line(error, path, "a line is longer than 100 characters")


@pytest.mark.parametrize("block_bytes", [1, 4, 1 << 20])
def test_an_end_token_stands_between_documents(tmp_path, block_bytes):
    """Once, also where a file ends in a separator; the bytes of a single document have none."""
    paths = write(tmp_path / "a.txt", "one--two--"), write(tmp_path / "b.txt", "three")
    with mock.patch.object(data.text, "BLOCK_BYTES", block_bytes):
        text, tokenizer = learnt(Texts(paths, separator="--"), "bytes", tmp_path / "out.bin")
    assert text == "one<|endoftext|>two<|endoftext|>three"
    opened, _ = open_prepared(tmp_path / "out.bin")
    assert opened.train[:].tolist().count(end_token(tokenizer)) == 2
    assert (opened.info.files, opened.info.documents, opened.info.text_bytes) == (2, 3, 11)
    assert end_token(open_tokenizer("bytes", paths[0])) is None


def test_without_an_end_token_what_separated_documents(tmp_path):
    """Or else a blank line: an older tokenizer's ranks have no end token."""
    ranks = train_tokenizer(write(tmp_path / "training.txt", PROSE), 260)
    paths = write(tmp_path / "a.txt", "one==two"), write(tmp_path / "b.txt", "three")
    assert learnt(Texts(paths), ranks, tmp_path / "out.bin")[0] == "one==two\n\nthree"
    assert learnt(Texts(paths, separator="=="), ranks, tmp_path / "out.bin")[0] == "one==two==three"


def test_ranks_of_documents_have_an_end_token(tmp_path):
    """It is the last one, survives the ranks file, and no text is ever read as it."""
    paths = write(tmp_path / "a.txt", PROSE), write(tmp_path / "b.txt", PROSE)
    ranks = train_tokenizer(Texts(paths), 270)
    assert ranks.n_vocab == 270
    assert end_token(ranks) == 269
    save_ranks(ranks, tmp_path / "docs.tiktoken")
    loaded = load_ranks(tmp_path / "docs.tiktoken")
    assert identity(loaded) == identity(ranks)
    for text in (END_OF_TEXT, f"{END_OF_TEXT * 3} {END_OF_TEXT}\n", f"a{END_OF_TEXT}b"):
        assert 269 not in encode(loaded, text)
        assert loaded.decode(encode(loaded, text).tolist()) == text
    alone = train_tokenizer(paths[0], 269)
    assert end_token(alone) is None
    with pytest.raises(ConfigError) as error:
        train_tokenizer(Texts(paths), 256)
    one_line(error, "ask for 257 (the bytes and an end token)")


def test_bytes_of_documents_are_read_as_bytes(tmp_path):
    """Text that looks like the end token is its letters, for the tokenizer of bytes too."""
    path = write(tmp_path / "a.jsonl", json.dumps({"text": f"x{END_OF_TEXT}y"}))
    text, tokenizer = learnt(Texts.of(path), "bytes", tmp_path / "out.bin")
    tokens = open_prepared(tmp_path / "out.bin")[0].train[:]
    assert text == f"x{END_OF_TEXT}y"
    assert len(tokens) == len(text)
    assert end_token(tokenizer) not in tokens


def test_the_end_token_survives_an_export(tmp_path):
    """Others' files of a tokenizer of documents, read back, have the same tokens and the same end."""
    path = write(tmp_path / "a.jsonl", json.dumps({"text": PROSE}))
    for tokenizer in (open_tokenizer("bytes", path), train_tokenizer(path, 280)):
        for name, content in vocabulary_files(tokenizer, 64).items():
            write(tmp_path / name, content)
        found = read_vocabulary(tmp_path)
        assert identity(found)["sha256"] == identity(tokenizer)["sha256"]
        assert end_token(found) == end_token(tokenizer) == tokenizer.n_vocab - 1


def test_texts_that_are_none():
    with pytest.raises(ConfigError) as error:
        Texts(())
    one_line(error, "no text is named")
    with pytest.raises(ConfigError) as error:
        Texts((Path("a"),), separator="")
    one_line(error, "--separator is empty")
