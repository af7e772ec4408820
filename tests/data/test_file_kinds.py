"""Files that are not UTF-8 text: each is known for what it is, and its message's advice leads to a text."""

import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from contract.errors import UserError
from data.file_kinds import describe_kind
from data.prepare import open_tokens, prepare
from data.text import stream_text
from data.tokenizers import open_tokenizer

ENGLISH = "The baby is sleeping.\nIts mother's friends weren't there.\n" * 20
FRENCH = "Où est passé l’été ? Déjà, à Noël, « ça » gêne.\n" * 20
RUSSIAN = "Привет, мир! Это простой текст, чтобы его прочесть.\n" * 20
CHINESE = "我们去。你们来，他们走！这是一个简单的例子。\n" * 20
TRADITIONAL = "我們去。你們來，他們走！這是一個簡單的例子。\n" * 20
JAPANESE = "日本語です。カタカナ、ひらがな。\n" * 20
KOREAN = "안녕하세요. 이것은 간단한 예입니다.\n" * 20


def message(path) -> str:
    """The line that refuses a file."""
    with pytest.raises(UserError) as error:
        for _ in stream_text(path):
            pass
    assert "\n" not in str(error.value)
    return str(error.value)


def require(program: str):
    """Skip where a program that a message advises is missing."""
    if shutil.which(program) is None:
        pytest.skip(f"needs {program} (on Debian, apt-get install unzip zip xz-utils bzip2 zstd tar)")


def follow(path, text, encoding="ENCODING"):
    """Run the command that a file's message ends with, in the file's folder; the text that it makes is `text`."""
    command = re.search(r"(?:with: )(.*)$", message(path))[1].replace("ENCODING", encoding)
    program = shlex.split(command)[0]
    require(program)
    subprocess.run(command, shell=True, cwd=path.parent, check=True, timeout=600)
    new = path.with_name("NEW.txt")
    assert "".join(stream_text(new)) == text
    prepare(new, open_tokenizer("bytes", new), path.with_name("new.bin"))
    assert open_tokens(path.with_name("new.bin")).info.text_bytes == len(text.encode())


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("WINDOWS-1252", FRENCH),
        ("ISO-8859-1", FRENCH.replace("’", "'")),
        ("MACINTOSH", FRENCH),
        ("WINDOWS-1250", "Příliš žluťoučký kůň úpěl ďábelské ódy.\n" * 20),
        ("WINDOWS-1251", RUSSIAN),
        ("KOI8-R", RUSSIAN),
        ("GBK", CHINESE),
        ("GB18030", CHINESE),
        ("BIG5", TRADITIONAL),
        ("SHIFT_JIS", JAPANESE),
        ("CP932", JAPANESE + "①髙～"),
        ("EUC-JP", JAPANESE),
        ("EUC-KR", KOREAN),
        ("CP949", KOREAN + "똠방각하"),
    ],
)
def test_other_encodings(tmp_path, encoding, text):
    """The encoding is among those named, each with how the text would read; the command converts the text."""
    path = tmp_path / "a text's.txt"
    path.write_bytes(text.encode(encoding))
    found = message(path)
    assert "its encoding must be known" in found
    name = {"GBK": "GB18030", "ISO-8859-1": "WINDOWS-1252"}.get(encoding, encoding)
    start = next(place for place, character in enumerate(text) if not character.isascii())
    assert f"{name} ({text[start : start + 12].encode(encoding).decode(name)!r})" in found
    assert "iconv -f ENCODING" in found
    follow(path, text, name)


@pytest.mark.parametrize("text", [FRENCH, RUSSIAN, CHINESE, JAPANESE, KOREAN], ids=lambda text: text[:8])
def test_candidates_are_few(tmp_path, text):
    """Those that cannot decode a text are not named, and never is one named alone."""
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode("gb18030"))
    candidates = re.findall(r"([A-Z0-9-]+) \('", message(path))
    assert 2 <= len(candidates) <= 8


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", [ENGLISH, FRENCH, RUSSIAN, CHINESE, "wide", "🎈🎈\n" * 2000], ids=lambda text: text[:8]
)
def test_wide_encodings(tmp_path, encoding, text):
    """UTF-16 and UTF-32 are told apart, by their mark or, without one, by their NULs."""
    path = tmp_path / "wide.txt"
    path.write_bytes(text.encode(encoding))
    assert f"looks like {encoding[:6].upper()}" in message(path)
    follow(path, text)


@pytest.mark.parametrize("mark", ["utf-16-be", "utf-32-be"])
def test_marks_of_the_other_order(tmp_path, mark):
    path = tmp_path / "wide.txt"
    path.write_bytes(("\ufeff" + ENGLISH).encode(mark))
    assert f"looks like {mark[:6].upper()} (it starts with" in message(path)
    follow(path, ENGLISH)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("bzip2 -c", "a bzip2 archive"),
        ("zstd -c", "a zstd archive"),
        ("zip -q -", "a zip archive"),
        ("tar -cO", "a tar archive"),
    ],
)
@pytest.mark.parametrize("name", ["my text.txt", "-c;touch x", "$(touch x)"])
def test_archives(tmp_path, command, kind, name):
    """An archive is named, with a command that unpacks it whatever its file is called."""
    (tmp_path / "text").write_text(ENGLISH)
    program = command.split()[0]
    require(program)
    path = tmp_path / name
    with path.open("wb") as file:
        subprocess.run([*command.split(), "text"], cwd=tmp_path, check=True, stdout=file, timeout=600)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert f"this looks like {kind}" in message(Path(name))
        follow(Path(name), ENGLISH)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("first", ["[Content_Types].xml", "mimetype", "_rels/.rels"])
def test_documents(tmp_path, first):
    """A document that is a zip inside is no archive of texts."""
    path = tmp_path / "thesis.docx"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(first, "content")
    assert "this looks like a document (a zip inside); open it in its program" in message(path)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"%PDF-1.4\n1 0 obj\n", "a PDF; take its text out with: pdftotext book.pdf NEW.txt"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a picture (PNG)"),
        (b"\xff\xd8\xff\xe0\0", "a picture (JPEG)"),
        (b"7z\xbc\xaf\x27\x1c\0", "a 7z archive"),
        (b"Rar!\x1a\x07\0", "a rar archive"),
        (b"PAR1\x15\0", "a table (Parquet)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    ],
)
def test_other_formats(tmp_path, head, kind):
    path = tmp_path / "book.pdf"
    path.write_bytes(head)
    assert f"this looks like {kind.replace('book.pdf', str(path))}" in message(path)


@pytest.mark.parametrize(
    "head",
    [
        ENGLISH.encode(),
        b"BZh1 is how it begins",
        b"PK is a name",
        CHINESE.encode(),
        "\ufeffmark".encode(),
        b"",
    ],
)
def test_texts_are_no_archives(tmp_path, head):
    assert describe_kind(tmp_path / "text.txt", head) is None


@pytest.mark.parametrize(
    "content", [b"ab\0cd", b"words\0more", b"ab\0c", bytes(1000), bytes(range(256)) * 4, b"\0\1" * 99]
)
def test_other_binary_files(tmp_path, content):
    """A NUL alone makes no UTF-16."""
    path = tmp_path / "binary.dat"
    path.write_bytes(content)
    assert f"this looks like a binary file (a NUL byte at offset {content.index(0)})" in message(path)


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xc3"])
def test_damaged_utf8(tmp_path, bad):
    """A file that is UTF-8 but for a few bytes is not taken for another encoding; what is advised drops them."""
    path = tmp_path / "damaged.txt"
    path.write_bytes(FRENCH.encode() + bad + FRENCH.encode())
    assert "the rest is UTF-8" in message(path)
    follow(path, FRENCH * 2)


def test_bytes_of_no_encoding(tmp_path):
    path = tmp_path / "noise.dat"
    path.write_bytes(bytes([*range(1, 256)]) * 4)
    assert "none of the common ones fits" in message(path)
