"""Preparing token files: the whole text's tokens, complete files or none, bounded memory."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import data.text
from contract.errors import ConfigError, UserError
from contract.schema import checksum
from data.held_out import SPLIT_REACH, HeldOut
from data.prepare import FORMAT_VERSION, info_path, open_tokens, prepare
from data.tokenizer_training import train_tokenizer
from data.tokenizers import identity, open_tokenizer, save_ranks
from tests.shared_files import SHAKESPEARE, needs_corpora

ROOT = Path(__file__).parents[2]
not_on_windows = pytest.mark.skipif(
    sys.platform == "win32", reason="needs Linux or macOS (Windows has no getrusage)"
)

PROSE = (
    "The baby is sleeping. Its mother's friends weren't there; they'd left at 10:45, hadn't they?\r\n"
    "“Naïve,” said the old man – and 3,000 people, none of whom knew why, agreed with him.\n\n"
    "    def f(x):\n\t\treturn x  # 我们去。你们来，他们走！ こんにちは、世界。 👍🏽 Привет, мир\n"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "training.txt"
    path.write_bytes((PROSE * 3).encode())
    return train_tokenizer(path, 400)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes((PROSE * 20).encode())
    return path


def one_line(error, *words):
    """The message of an error that is a single line and names all of `words`."""
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["ranks", "bytes"])
@pytest.mark.parametrize("block_bytes", [7, 1000, 1 << 20])
def test_token_file_is_the_whole_text(text, tmp_path, ranks, kind, block_bytes):
    """The parts of a token file, one after the other, are the tokens of the text encoded at once."""
    encoding = ranks if kind == "ranks" else open_tokenizer("bytes", text)
    with mock.patch.object(data.text, "BLOCK_BYTES", block_bytes):
        info = prepare(text, encoding, tmp_path / "out.bin")
    opened = open_tokens(tmp_path / "out.bin")
    expected = encoding.encode_ordinary(PROSE * 20)
    assert [*opened.train[:], *opened.validation[:]] == expected
    assert opened.info == info
    assert names(tmp_path) == ["out.bin", "out.json", "out.tiktoken", "text.txt"]


def test_info_describes_both_files(text, tmp_path, ranks):
    """The JSON has the tokenizer's identity, counts that add up, true hashes, and a name without a path."""
    out = tmp_path / "out.bin"
    info = prepare(text, ranks, out, held_out=HeldOut(0.25))
    found = json.loads((tmp_path / "out.json").read_bytes())
    assert found["format_version"] == FORMAT_VERSION
    assert found["tokenizer"] == info.tokenizer == identity(ranks)
    assert found["dtype"] == "uint16"
    assert found["tokens"] == found["train_tokens"] + found["validation_tokens"] == out.stat().st_size // 2
    assert found["text_bytes"] == text.stat().st_size
    assert found["text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert found["tokens_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert found["source"] == "text.txt"


@needs_corpora
def test_tinyshakespeare(tmp_path):
    """Real text, character by character: the usual 1,115,394 symbols of 65 kinds, nine tenths to train."""
    encoding = open_tokenizer("bytes", SHAKESPEARE)
    info = prepare(SHAKESPEARE, encoding, tmp_path / "shakespeare.bin")
    assert info.tokens == info.text_bytes == 1_115_394
    assert info.tokenizer["vocab_size"] == 65
    opened = open_tokens(tmp_path / "shakespeare.bin")
    assert encoding.decode([*opened.train[:], *opened.validation[:]]).encode() == SHAKESPEARE.read_bytes()
    assert info.train_tokens == 1_003_836  # behind the last line within reach of nine tenths
    assert encoding.decode(opened.train[-1:]) == "\n"


def test_tokens_are_read_only(text, tmp_path, ranks):
    """Training cannot change its data by mistake."""
    prepare(text, ranks, tmp_path / "out.bin")
    opened = open_tokens(tmp_path / "out.bin")
    for part in (opened.train, opened.validation):
        with pytest.raises(ValueError, match="read-only"):
            part[:5][0] = 0
        with pytest.raises(TypeError):
            part[0] = 0


def test_slices_are_those_of_an_array(text, tmp_path, ranks):
    """Parts of stored tokens are what the same parts of an array are, beyond the ends too."""
    prepare(text, ranks, tmp_path / "out.bin")
    opened = open_tokens(tmp_path / "out.bin")
    tokens = np.fromfile(tmp_path / "out.bin", np.uint16)
    for part, wanted in zip(
        (opened.train, opened.validation), np.split(tokens, [opened.info.train_tokens]), strict=True
    ):
        np.testing.assert_array_equal(np.array(part), wanted)
        for places in (slice(0), slice(3, 9), slice(-4, None), slice(5, 2), slice(-(10**9), 10**9)):
            np.testing.assert_array_equal(part[places], wanted[places])
            assert part[places].dtype == wanted.dtype
        assert np.asarray(part, np.int64).dtype == np.int64


@pytest.mark.parametrize(
    ("content", "fraction", "expected"),
    [
        ("a" * 100, 0.1, 90),
        ("a" * 50 + "\n" + "a" * 49, 0.1, 90),  # the line ends too far away
        ("a" * 88 + "\n" + "a" * 11, 0.1, 89),
        ("a" * 89 + "\n" + "a" * 10, 0.1, 90),
        ("a" * 90 + "\n" + "a" * 9, 0.1, 90),
        ("a\n" * 50, 0.25, 74),
        ("a" * 40 + "\n" + "a" * 3 + ". b" + "c " + "a" * 51, 0.5, 45),  # the line ends too far away
        ("a" * 45 + "\n" + ". b" + "c " + "a" * 49, 0.5, 46),  # a line before a nearer sentence
        ("a" * 45 + ".” b" + "c " + "a" * 47, 0.5, 49),  # a sentence before a nearer word
        ("a" * 45 + " b" + "c" * 53, 0.5, 45),  # a word before a nearer character
        ("é" * 25 + "é" * 25, 0.33, 66),  # a character rather than half of one: 67 was asked for
        ("a" * 44 + "。" + "é" * 27, 0.5, 47),
        ("\n" + "a" * (SPLIT_REACH * 2 + 1), 0.5, SPLIT_REACH + 1),
        ("a" * 510_000 + "\n" + "a" * 489_999, 0.48, 520_000),  # SPLIT_REACH is less than a tenth here
        ("a" * 517_000 + "\n" + "a" * 482_999, 0.48, 517_001),
        ("a\n" * 50 + "b", 0.0, 101),
        ("a", 0.9, 1),
        ("ab", 0.9, 1),
        ("CHAPTER I\n" + "word " * 800, 0.1, 3609),
    ],
)
def test_split(tmp_path, content, fraction, expected):
    """The split stands behind a line, sentence, word or character a little before its place, or at its place."""
    path = tmp_path / "split.txt"
    path.write_bytes(content.encode())
    encoding = open_tokenizer("bytes", path)
    info = prepare(path, encoding, tmp_path / "split.bin", held_out=HeldOut(fraction))
    assert info.train_tokens == expected
    opened = open_tokens(tmp_path / "split.bin")
    assert (len(opened.train), len(opened.validation)) == (expected, len(content.encode()) - expected)


@settings(deadline=None, max_examples=60)
@given(
    lines=st.lists(st.text("ab é。.!'\"\r", max_size=60), min_size=1, max_size=30),
    end=st.sampled_from(["", "\n", " ", "\r\n"]),
    fraction=st.floats(0, 0.999),
)
def test_the_held_out_share_is_what_was_asked(ranks, lines, end, fraction):
    """Whatever the lines, it differs by a tenth at most, or by the part of a token that cannot be cut."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "share.txt")
        path.write_bytes("x".join([*lines, "x"]).replace("x", end or "x").encode() or b"x")
        for name, encoding in (("ranks", ranks), ("bytes", open_tokenizer("bytes", path))):
            info = prepare(path, encoding, path.with_name(f"{name}.bin"), held_out=HeldOut(fraction))
            wanted = min(fraction * info.tokens, info.tokens - 1)  # one is always left to train on
            assert abs(info.validation_tokens - wanted) <= max(0.1 * wanted, 0.5) + 1e-6


def test_large_vocabularies_take_uint32(tmp_path):
    """Ids beyond 65,535 are written, and read, in four bytes."""
    singles = [bytes([byte]) for byte in range(256)]
    pairs = [a + b for a in singles for b in singles if a + b != b"ab"]
    tokens = {token: rank for rank, token in enumerate([*singles, *pairs, b"ab"])}
    encoding = tiktoken.Encoding("ranks", pat_str=r"(?s).{1,2}", mergeable_ranks=tokens, special_tokens={})
    path = tmp_path / "large.txt"
    path.write_text("abcdab")
    info = prepare(path, encoding, tmp_path / "large.bin", held_out=HeldOut(0))
    assert info.dtype == "uint32"
    train = open_tokens(tmp_path / "large.bin").train[:]
    assert train.tolist() == encoding.encode_ordinary("abcdab")
    assert train[-1] == 65_791


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("existing", [False, True])
def test_interruption_leaves_nothing_half_written(text, tmp_path, ranks, existing, error):
    """Stopped in the middle, preparation leaves no new file, and an older one as it was."""
    out = tmp_path / "out.bin"
    if existing:
        prepare(text, ranks, out, held_out=HeldOut(0.5))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(read):
        if read > text.stat().st_size // 2:
            raise error

    with (
        mock.patch.object(data.text, "BLOCK_BYTES", 500),
        pytest.raises((KeyboardInterrupt, UserError)),
    ):
        prepare(text, ranks, out, overwrite=True, progress=stop)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bad_text_leaves_nothing(tmp_path, ranks):
    """A text that turns out to be bad late, or lacks symbols, leaves no file; the error names it."""
    path = tmp_path / "bad.txt"
    path.write_bytes(PROSE.encode() * 20 + b"\xff")
    with pytest.raises(UserError) as error:
        prepare(path, ranks, tmp_path / "out.bin")
    one_line(error, path, "0xff", f"offset {20 * len(PROSE.encode())}")
    assert names(tmp_path) == ["bad.txt"]
    (tmp_path / "abc.txt").write_text("abc")
    (tmp_path / "abd.txt").write_text("abd")
    with pytest.raises(UserError) as error:
        prepare(tmp_path / "abd.txt", open_tokenizer("bytes", tmp_path / "abc.txt"), tmp_path / "out.bin")
    one_line(error, "'d' (U+0064)")
    assert names(tmp_path) == ["abc.txt", "abd.txt", "bad.txt"]


def test_impossible_settings(text, tmp_path, ranks):
    """Fractions, names and places that cannot be are one line each, and the text is never overwritten."""
    for fraction in (-0.1, 1, 1.5, float("nan")):
        with pytest.raises(ConfigError) as error:
            HeldOut(fraction)
        one_line(error, fraction)
    with pytest.raises(ConfigError) as error:
        prepare(text, ranks, tmp_path / "out.tokens")
    one_line(error, ".bin")
    for name in ("story.bin", "story.json"):
        story = text.rename(tmp_path / name)
        with pytest.raises(ConfigError) as error:
            prepare(story, ranks, tmp_path / "story.bin")
        one_line(error, story)
        text = story
    with pytest.raises(UserError) as error:
        prepare(text, ranks, tmp_path / "none" / "out.bin")
    one_line(error, "cannot be written", "none")
    assert names(tmp_path) == ["story.json"]


def damage(change):
    """A function that changes the fields of a token file's JSON, and its checksum with them."""

    def apply(out):
        fields = json.loads(info_path(out).read_bytes()) | change
        fields = {name: value for name, value in fields.items() if value is not None and name != "checksum"}
        info_path(out).write_text(json.dumps(fields | {"checksum": checksum(fields)}))

    return apply


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda out: out.unlink(), ["out.bin", "No such file"]),
        (lambda out: info_path(out).unlink(), ["out.json", "No such file"]),
        (lambda out: info_path(out).write_text("{"), ["out.json", "not valid JSON"]),
        (lambda out: info_path(out).write_bytes(b"\xff"), ["out.json", "not valid JSON"]),
        (lambda out: info_path(out).write_text("[]"), ["out.json", "expected an object"]),
        (damage({"format_version": 99}), ["out.json", "format version 99"]),
        (damage({"text_bytes": None}), ["out.json", "text_bytes"]),
        (damage({"tokens": "many"}), ["out.json", "tokens is 'many', expected a whole number"]),
        (damage({"dtype": "float32"}), ["out.json", "float32"]),
        (damage({"train_tokens": -1}), ["out.json", "train_tokens is -1"]),
        (damage({"train_tokens": 0}), ["out.json", "add up"]),
        (damage({"surprise": 1}), ["out.json", "surprise"]),
        (
            lambda out: info_path(out).write_text(info_path(out).read_text().replace("1", "2", 1)),
            ["out.json"],
        ),
        (lambda out: out.write_bytes(out.read_bytes()[:-2]), ["out.bin", "bytes"]),
        (lambda out: out.write_bytes(b"x" + out.read_bytes()[1:]), ["out.bin", "SHA-256"]),
    ],
)
def test_damaged_token_files_are_refused(text, tmp_path, ranks, spoil, words):
    """Missing, truncated, changed and foreign files are each named in one line."""
    out = tmp_path / "out.bin"
    prepare(text, ranks, out)
    open_tokens(out)
    spoil(out)
    with pytest.raises(UserError) as error:
        open_tokens(out)
    one_line(error, *words, "prepare the text again")


# --- memory ---

CHILD = """
import sys
from pathlib import Path
from data.prepare import prepare
from data.tokenizers import open_tokenizer

def peak():
    # Linux hands a parent's ru_maxrss on to its child, so the child's own peak is read where it is told.
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

tokenizer, out, *texts = sys.argv[1:]
for text in texts:
    prepare(text, open_tokenizer(tokenizer, text), out, overwrite=True)
    print(peak())
"""


def peaks(tokenizer, out, *texts):
    """Peak resident memory in MiB of a process after it has prepared each of the texts."""
    command = [sys.executable, "-c", CHILD, tokenizer, out, *texts]
    # Left alone, glibc's threshold rises by what was freed, and the gaps in its heap depend on chance.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [float(line) for line in result.stdout.split()]


def write_repeated(path, size):
    """A text of at least `size` bytes, in numbered paragraphs so that it does not simply repeat."""
    with open(path, "wb") as file:
        number = 0
        while file.tell() < size:
            file.write("".join(f"{n}. {PROSE}" for n in range(number, number + 2000)).encode())
            number += 2000
    return path


@not_on_windows
@pytest.mark.parametrize("kind", ["bytes", "ranks"])
def test_memory_stays_flat(tmp_path, ranks, kind):
    """A text four times as long takes no more memory; what it grows by is less than the text by far."""
    save_ranks(ranks, tmp_path / "small.tiktoken")
    tokenizer = "bytes" if kind == "bytes" else tmp_path / "small.tiktoken"
    short = write_repeated(tmp_path / "short.txt", 6 << 20)
    long = write_repeated(tmp_path / "long.txt", 24 << 20)
    before, after = peaks(tokenizer, tmp_path / "out.bin", short, long)
    long.unlink()
    assert after - before < 10
