"""What a file is that is not UTF-8 text, and the command that makes UTF-8 text of it.

`describe_kind` recognises formats by their first bytes and UTF-16 or UTF-32 by mark or NULs. The bytes of an 8-bit
or multi-byte encoding do not say which it is: `describe_encoding` names all common ones that can decode them.
"""

import codecs
import re
import unicodedata
from pathlib import Path

from contract.errors import quoted

HEAD_BYTES = 4096  # enough to recognise a file by
SAMPLE_LENGTH = 12  # characters shown, to recognise the right encoding by
NEW = "NEW.txt"  # stands for the converted file in the commands

# A pattern of the first bytes, what the file is, the command that unpacks it (or what else to do).
_FORMATS = (
    # The first member of a document that is a zip inside: Word, Excel, LibreOffice, EPUB.
    (rb"PK\x03\x04.{26}(\[Content_Types\]\.xml|_rels/|docProps/|word/|mimetype|META-INF/)",
     "a document (a zip inside)", "open it in its program and save it as UTF-8 text"),
    (rb"PK\x03\x04", "a zip archive", "unpack it with: unzip -p {file} > {new}"),
    (rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)", "a bzip2 archive", "unpack it with: bunzip2 -c < {file} > {new}"),
    (rb"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it with: zstd -dc < {file} > {new}"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it with: 7z x {file}"),
    (rb"Rar!\x1a\x07", "a rar archive", "unpack it with: unrar x {file}"),
    (rb".{257}ustar", "a tar archive", "unpack it with: tar -xOf {file} > {new}"),
    (rb"%PDF-", "a PDF", "take its text out with: pdftotext {file} {new}"),
    (rb"\x89PNG\r\n\x1a\n", "a picture (PNG)", "give a UTF-8 text file"),
    (rb"\xff\xd8\xff", "a picture (JPEG)", "give a UTF-8 text file"),
    (rb"PAR1", "a table (Parquet)", "write its column of text to a UTF-8 text file"),
    (rb"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "fetch the file itself with: git lfs pull"),
)  # fmt: skip
_MARKS = ((rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32"), (rb"\xff\xfe|\xfe\xff", "UTF-16"))
# By the names that both iconv and Python know; of a line the first one that decodes the bytes. Multi-byte encodings
# come first: bytes that are something else seldom fit them.
_ENCODINGS = (
    ("GB18030",),
    ("BIG5", "CP950"),
    ("SHIFT_JIS", "CP932"),
    ("EUC-JP",),
    ("EUC-KR", "CP949"),
    ("WINDOWS-1252", "MACINTOSH"),
    ("WINDOWS-1250",),
    ("WINDOWS-1251",),
    ("KOI8-R",),
)


def describe_kind(path: Path, head: bytes) -> str | None:
    """What a file is, and what to do, if its first `HEAD_BYTES` are not those of UTF-8 text.

    returns: "a gzip archive; unpack it with: ...", or None if they may be UTF-8 text or something unknown
    """
    for pattern, name, advice in _FORMATS:
        if re.match(pattern, head, re.DOTALL):
            return f"{name}; {advice.format(file=quoted(path), new=NEW)}"
    for pattern, name in _MARKS:
        if mark := re.match(pattern, head):
            return f"{name} (it starts with {mark[0].hex(' ')}); {_convert(path, name)}"
    name = _unmarked_unicode(head[:HEAD_BYTES])
    return f"{name} (by its NUL bytes); {_convert(path, name)}" if name else None


def describe_encoding(path: Path, block: bytes) -> str:
    """What to do with a file whose bytes, of which `block` is a part, are not UTF-8."""
    text = block.decode(errors="replace")
    characters = sum(not character.isascii() for character in text)
    if characters > 10 * text.count("\ufffd"):
        return (
            "the rest is UTF-8, so the file seems damaged there; repair it, or drop such bytes with: "
            f"iconv -c -f UTF-8 -t UTF-8 {quoted(path)} > {NEW}"
        )
    samples = []
    for names in _ENCODINGS:
        readings = ((name, _sample(name, block)) for name in names)
        samples += next(([f"{name} ({sample!r})"] for name, sample in readings if sample), [])
    found = f"of the common ones these can decode it: {', '.join(samples)}"
    found = found if samples else "none of the common ones fits"
    return f"its encoding must be known ({found}); {_convert(path, 'ENCODING')}"


def _convert(path: Path, encoding: str) -> str:
    return f"convert it with: iconv -f {encoding} -t UTF-8 {quoted(path)} > {NEW}"


def _unmarked_unicode(head: bytes) -> str | None:
    """The name of the UTF-32 or UTF-16 without a mark that `head`, which then holds NULs, seems to be."""
    if 0 not in head:
        return None
    ascii_with_nuls = all(byte in b"\0\t\n\r" or 32 <= byte < 127 for byte in head)
    for name, width, high in (("UTF-32LE", 4, 3), ("UTF-32BE", 4, 0), ("UTF-16LE", 2, 1), ("UTF-16BE", 2, 0)):
        text = _decoded(name, head) if len(head) % width == 0 else None
        if not text or "\0" in text or not _is_text(text):
            continue
        if width == 4:
            return name
        # Latin text has a NUL in nearly every high byte. Bytes of ASCII between fewer NULs could be Chinese by
        # chance only. Low bytes are rarely NUL; that of U+4E00, the Chinese 1, is.
        high_nuls, low_nuls = head[high::2].count(0), head[1 - high :: 2].count(0)
        if low_nuls <= len(text) / 4 and (high_nuls > len(text) / 2 or not ascii_with_nuls):
            return name
    return None


def _sample(name: str, block: bytes) -> str | None:
    """The beginning of what is not ASCII in `block` if it is text in the encoding `name`, else None."""
    text = _decoded(name, block)
    if text is None or not _is_text(text):
        return None
    return text[re.match(r"[\0-\x7f]*", text).end() :][:SAMPLE_LENGTH] or text[:SAMPLE_LENGTH]


def _decoded(name: str, data: bytes) -> str | None:
    """The text of bytes that may end inside a character; None if they are of another encoding."""
    try:
        return codecs.getincrementaldecoder(name)().decode(data)
    except UnicodeDecodeError:
        return None


def _is_text(text: str) -> bool:
    """Whether all characters are assigned, and none is a control character but for whitespace."""
    return all(
        character.isspace() or unicodedata.category(character) not in ("Cc", "Cn", "Co", "Cs")
        for character in set(text)
    )
