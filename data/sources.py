"""The texts that a user names, as one stream of documents: files, folders, standard input, packed files, JSONL."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from io import IncrementalNewlineDecoder
from os import PathLike
from pathlib import Path, PurePath

from contract.errors import ConfigError, UserError
from contract.schema import shortened
from data.conversation import MESSAGES, Conversation, conversation_of
from data.text import BETWEEN_WORDS, BLOCK_BYTES, STDIN, cut_text, is_pipe, read_text, stream_text

FIELD = "text"  # of a JSONL, unless another is named
NEWLINES = ("keep", "lf")
MAX_LINE = 1 << 26  # characters of a line of JSONL, which is parsed as a whole
_PACKED = (".gz", ".xz")
_JSONL = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Texts:
    """What a user named to learn from, and how it is read.

    named: files, folders or `data.text.STDIN`
    patterns: of the files to take from folders, such as "*.py"; none for all but hidden ones
    field: of every line of a JSONL, whose text is a document, or `MESSAGES`, whose messages are a conversation. With
        None a file is one if its name says so, with `FIELD`
    separator: what stands between two documents of a file that is no JSONL; None for one document a file
    newlines: "keep", or "lf", which folds every line end into a line feed
    Raises ConfigError for what is impossible, UserError for a folder without files, as soon as `files` is asked.
    """

    named: tuple[Path, ...]
    patterns: tuple[str, ...] = ()
    field: str | None = None
    separator: str | None = None
    newlines: str = "keep"

    def __post_init__(self):
        if not self.named:
            raise ConfigError("no text is named; name a file, a folder, or - for standard input")
        if self.named.count(STDIN) > 1:
            raise ConfigError("- stands for standard input, which can be read only once; name it once")
        if self.separator == "":
            raise ConfigError("--separator is empty; give the text that stands between two documents")
        if self.newlines not in NEWLINES:
            raise ConfigError(f"unknown newlines {self.newlines!r}; choose {' or '.join(NEWLINES)}")
        if self.patterns and not any(path.is_dir() for path in self.named):
            raise ConfigError("--pattern is of the files in a folder; name a folder, or omit it")

    @classmethod
    def of(cls, text: "Texts | str | PathLike") -> "Texts":
        """Texts as they are, or those of one path."""
        return text if isinstance(text, Texts) else cls((Path(text),))

    def like(self, other: Path) -> "Texts":
        """Another text that is read as these are."""
        return replace(self, named=(other,), patterns=self.patterns if other.is_dir() else ())

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All files in the order in which they are read: as named, those of a folder by their names."""
        return tuple(file for path in self.named for file in self._in_folder(path))

    def _in_folder(self, path: Path) -> list[Path]:
        """The files of a folder and the folders in it; of another path itself."""
        if path == STDIN or not path.is_dir():
            return [path]
        found = []
        for place, folders, names in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files = (Path(place, name) for name in names if not name.startswith("."))
            found += [file for file in files if self._matches(file) and file.is_file()]
        found = [file for file in found if file.stat().st_size]
        if not found:
            kind = f"file that matches {' or '.join(self.patterns)}" if self.patterns else "file"
            raise UserError(
                f"{path}: this folder holds no {kind} with anything in it; name another --pattern or path"
            )
        return sorted(found, key=lambda file: file.relative_to(path).parts)

    def _matches(self, file: Path) -> bool:
        return not self.patterns or any(PurePath(file).match(pattern) for pattern in self.patterns)

    @property
    def name(self) -> str:
        """The first one's name, and how many others there are."""
        first, others = self.named[0], len(self.named) - 1
        name = first.name or first.resolve().name
        return f"{name} and {others} more" if others else name

    @property
    def size(self) -> int | None:
        """Bytes of all files together, None if one is a pipe."""
        return None if self.read_once else sum(_size(file) for file in self.files)

    @property
    def read_once(self) -> bool:
        """Whether one of them is a pipe, so that they can be read only once."""
        return any(map(is_pipe, self.files))

    @property
    def has_documents(self) -> bool:
        """Whether these are several documents, by what was named: a JSONL of a single line counts too."""
        return len(self.files) > 1 or self.separator is not None or any(map(self._is_jsonl, self.files))

    @property
    def has_conversations(self) -> bool:
        """Whether these are conversations, of which replies are learnt."""
        return self.field == MESSAGES

    def pieces(
        self, progress: Callable[[int], None] | None = None, *, cuts: re.Pattern | None = BETWEEN_WORDS
    ) -> Iterator[tuple[str, bool]]:
        """Parts of documents, and whether a document ends after the part, which another one follows.

        A `data.conversation.Conversation` is one part.

        progress, cuts: as for `data.text.stream_text`
        Raises UserError for what cannot be read, naming the file, and the line of a JSONL.
        """
        is_open, before = False, 0
        for file in self.files:
            report = _from(before, progress)
            for document in self._documents(file, report, cuts):
                if is_open:
                    yield "", True
                for piece, ends in document:
                    yield piece, ends
                    is_open = not ends and (is_open or piece != "")
            before += _size(file)

    def _documents(
        self, file: Path, progress, cuts: re.Pattern | None
    ) -> Iterator[Iterator[tuple[str, bool]]]:
        """The documents of a file; those between separators come as one, with their ends."""
        fold = self.newlines == "lf"
        if not self._is_jsonl(file):
            yield split_documents(stream_text(file, progress, cuts=cuts, fold=fold), self.separator)
            return
        for document in _jsonl_texts(file, self.field or FIELD, progress):
            if isinstance(document, Conversation):
                yield iter([(_folded_messages(document) if fold else document, False)])
                continue
            text = _folded(document) if fold else document
            parts = (text[at : at + BLOCK_BYTES] for at in range(0, len(text), BLOCK_BYTES))
            yield ((piece, False) for piece in cut_text(parts, file, cuts))

    def _is_jsonl(self, file: Path) -> bool:
        return self.field is not None or unpacked_name(file).suffix in _JSONL


def _folded(text: str) -> str:
    return IncrementalNewlineDecoder(None, translate=True).decode(text, True)


def _folded_messages(conversation: Conversation) -> Conversation:
    messages = [message | {"content": _folded(message["content"])} for message in conversation.messages]
    return Conversation(messages, conversation.place)


def unpacked_name(path: Path) -> Path:
    """The name of a file without the ending of its packing."""
    return path.with_suffix("") if path.suffix in _PACKED else path


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _from(before: int, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """A file's progress, as that of all files, `before` bytes of which have been read."""
    return progress and (lambda read: progress(before + read))


def split_documents(pieces: Iterator[str], separator: str | None) -> Iterator[tuple[str, bool]]:
    """The text without its separators: parts of documents, and whether a document ends after the part."""
    held = ""
    for piece in pieces:
        if separator is None:
            yield piece, False
            continue
        *whole, held = (held + piece).split(separator)
        for document in whole:
            yield document, True
        if not any(held.endswith(separator[:length]) for length in range(1, len(separator))):
            yield held, False  # no separator can have begun in it
            held = ""
    if held:
        yield held, False


def _jsonl_texts(file: Path, field: str, progress) -> Iterator[str]:
    """The text of each line's field that is not empty."""
    none = True
    for number, line in enumerate(_lines(file, progress), 1):
        if line and not line.isspace() and (text := _field_of(line, field, f"{file}: line {number}")):
            none = False
            yield text
    if none:
        raise UserError(f"{file}: no line has any text in its field {field!r}; give a JSONL with some")


def _field_of(line: str, field: str, place: str) -> str:
    """The text in a field of a line of JSONL. Raises UserError naming the place."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = getattr(error, "msg", "nested too deeply")
        raise UserError(
            f"{place} is not JSON ({problem}, at {shortened(line)}); repair it, or name a text in another form"
        ) from None
    if not isinstance(record, dict):
        raise UserError(
            f"{place} is {shortened(record)}, expected an object with the field {field!r}; repair it"
        )
    if field not in record:
        fields = ", ".join(record) or "none"
        raise UserError(
            f"{place} has no field {field!r} (its fields: {fields}); name the text's with --field"
        )
    text = record[field]
    if field == MESSAGES:
        return conversation_of(text, place)
    if not isinstance(text, str):
        raise UserError(
            f"{place}: the field {field!r} is {shortened(text)}, expected text; name another with --field"
        )
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: the field {field!r} holds U+{ord(text[error.start]):04X}, half of a character; repair it"
        ) from None
    return text


def _lines(file: Path, progress) -> Iterator[str]:
    """The lines of a file; only a line feed ends one, since JSON may hold every other line break."""
    held: list[str] = []
    for block in read_text(file, progress, fold=False):
        first, *others = block.split("\n")
        held.append(first)
        if others:
            yield "".join(held)
            yield from others[:-1]
            held = others[-1:]
        elif sum(map(len, held)) > MAX_LINE:
            raise UserError(
                f"{file}: a line is longer than {MAX_LINE:,} characters; is it a JSONL, an object a line?"
            )
    yield "".join(held)
