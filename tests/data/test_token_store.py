"""Token files under those who read them: a file that changes is named, one that is touched alone is not."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from contract.errors import UserError
from contract.schema import checksum
from data.prepare import TokenFileInfo, info_path, open_tokens, prepare
from data.tokenizers import load_ranks, open_tokenizer

STAMP = 10**18  # in the past, so that no change falls into the same tick of the file system's clock


@pytest.fixture
def tokens(text, tmp_path):
    """An open token file."""
    path = tmp_path / "tokens.bin"
    prepare(text, open_tokenizer("bytes", text), path)
    os.utime(path, ns=(STAMP, STAMP))
    return open_tokens(path)


def zero(path):
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))


def zero_in_secret(path):
    before = path.stat().st_ctime_ns
    zero(path)
    while path.stat().st_ctime_ns == before:  # the clock of a file system ticks some hundred times a second
        os.utime(path, ns=(STAMP, STAMP))


CHANGES = {
    "zeroed": zero,
    "zeroed, with its old time": zero_in_secret,
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "half": lambda path: os.truncate(path, path.stat().st_size // 4 * 2),
    "one byte less": lambda path: os.truncate(path, path.stat().st_size - 1),
    "nothing": lambda path: os.truncate(path, 0),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_named(tokens, kind):
    """Whatever is written into the open file, the next reading of either part says so in one line."""
    np.testing.assert_array_equal(tokens.train[:5], tokens.train[:5])
    CHANGES[kind](tokens.path)
    for read in (lambda: tokens.train[:5], lambda: tokens.validation[:5], tokens.verify):
        with pytest.raises(
            UserError, match=r"tokens\.bin: the token file has changed while it was in use"
        ) as error:
            read()
        assert "\n" not in str(error.value)


def test_the_last_change_is_found_by_the_hash(tokens, monkeypatch):
    """A change that no size and no time shows is found by `verify`."""
    store = tokens.train.store
    stamp = store._find_stamp()
    zero(tokens.path)
    monkeypatch.setattr(type(store), "_find_stamp", lambda store: stamp)
    assert not tokens.train[:5].any()
    with pytest.raises(UserError, match="has changed"):
        tokens.verify()


def test_the_advice_helps(tokens, text, tmp_path):
    """Once the file is put back, or the text prepared again, reading goes on."""
    wanted = tokens.train[:]
    content = tokens.path.read_bytes()
    zero(tokens.path)
    with pytest.raises(UserError, match="put it back"):
        tokens.train[:]
    tokens.path.write_bytes(content)
    np.testing.assert_array_equal(tokens.train[:], wanted)
    zero(tokens.path)
    with pytest.raises(UserError, match="prepare the same text again"):
        tokens.train[:]
    prepare(text, open_tokenizer("bytes", text), tokens.path, overwrite=True)
    np.testing.assert_array_equal(open_tokens(tokens.path).train[:], wanted)


@pytest.mark.skipif(os.name == "nt", reason="needs Linux or macOS (Windows moves and removes no open file)")
@pytest.mark.parametrize(
    "touch",
    [
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path),
        lambda path: path.rename(path.with_name("other.bin")),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()),
        lambda path: (path.with_name("new").write_bytes(b"other"), path.with_name("new").replace(path)),
    ],
    ids=["chmod", "touch", "rename", "remove", "the same bytes", "another file in its place"],
)
def test_a_touched_file_is_read_on(tokens, monkeypatch, touch):
    """What leaves the bytes as they are costs one more hash and no word."""
    wanted = tokens.train[:]
    touch(tokens.path)
    np.testing.assert_array_equal(tokens.train[:], wanted)
    monkeypatch.setattr(type(tokens.train.store), "_scan", lambda store: pytest.fail("hashed again"))
    np.testing.assert_array_equal(tokens.train[:], wanted)


def test_a_reading_that_fails_is_one_line(tokens, monkeypatch):
    """A file system that goes away, or gives less than was asked for, is named, not a traceback."""
    store = tokens.train.store

    class Gone:
        def __init__(self, problem):
            self.problem = problem

        def fileno(self):
            return file.fileno()

        def seek(self, place):
            pass

        def read(self, size):
            if self.problem:
                raise self.problem
            return b""

    file = store._file
    for problem, words in ((OSError(5, "Input/output error"), "Input/output error"), (None, "shorter")):
        monkeypatch.setattr(store, "_file", Gone(problem))
        with pytest.raises(UserError, match=rf"tokens\.bin: .*{words}"):
            tokens.train[:5]
    monkeypatch.setattr(store, "_file", file)


def forge(tokens, ids, **changes):
    """Write other ids over a token file, with a JSON whose hashes fit."""
    tokens.path.write_bytes(ids.tobytes())
    found = hashlib.sha256(ids.tobytes()).hexdigest()
    info = TokenFileInfo(**asdict(tokens.info) | {"tokens_sha256": found} | changes)
    info_path(tokens.path).write_text(json.dumps(asdict(info) | {"checksum": checksum(asdict(info))}))


@pytest.mark.parametrize("place", [0, -1])
def test_tokens_that_the_vocabulary_lacks(tokens, place):
    """Ids beyond the vocabulary are refused wherever they stand, hash or not; the largest of it is fine."""
    ids = np.concatenate([tokens.train[:], tokens.validation[:]])
    V = tokens.info.tokenizer["vocab_size"]
    ids[place] = V - 1
    forge(tokens, ids)
    open_tokens(tokens.path)
    ids[place] = V
    forge(tokens, ids)
    with pytest.raises(
        UserError, match=rf"tokens\.bin: holds the token {V}, but the vocabulary .* ends at {V - 1}"
    ):
        open_tokens(tokens.path)


@pytest.mark.parametrize(
    "tokenizer", [{}, {"name": "bytes", "vocab_size": "5", "sha256": ""}, {"name": None}]
)
def test_a_tokenizer_of_another_form(tokens, tokenizer):
    """A JSON whose tokenizer lacks a field, or has one of another type, is refused, its checksum made to fit."""
    forge(tokens, tokens.train[:], tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"tokens\.json: does not describe a token file .*tokenizer\."):
        open_tokens(tokens.path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes (Linux or macOS)")
@pytest.mark.parametrize("name", ["tokens.bin", "tokens.json", "tokens.tiktoken"])
def test_a_pipe_is_no_file(tokens, tmp_path, name):
    """Where a token file, its JSON or ranks should be, a pipe, a device or a folder is refused at once."""
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()):
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(UserError, match=rf"{name}: .*not a regular file"):
            load_ranks(path) if name.endswith("tiktoken") else open_tokens(tokens.path)
