"""A tokenizer that came with its model: what its `tokenizer.json` says, run by the library `tokenizers`.

Kept beside it is what the model's other files say of text: which tokens stand at its ends, what is put around it, how a
conversation is written (`tokenizer_config.json`, `generation_config.json` and `config.json`).
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np

from contract.errors import UserError, explaining, needs
from contract.files import write_file
from contract.schema import read_json, shortened
from data.symbols import BYTE_OF

_SPACE = "▁"  # what SentencePiece writes for a space
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # what it writes for a byte of a character that it lacks


class PublishedTokenizer:
    """Answers as a `tiktoken.Encoding` does where both are asked, and knows the roles of its tokens.

    content: what `tokenizer.json` holds
    settings: what `tokenizer_config.json` holds, `chat_template` included
    generation: what `generation_config.json` holds: `eos_token_id`, a number or several, is where texts end
    Raises UserError naming the field that cannot be honoured, or if `tokenizers` is not installed.
    """

    name = "published"

    def __init__(self, content: dict, settings: dict, generation: dict | None = None):
        with needs("this model's tokenizer", "models", ["tokenizers"]):
            from tokenizers import Tokenizer
        _check_kind(content)
        self.content, self.settings, self.generation = content, settings, generation or {}
        content = content | {"truncation": None, "padding": None}  # of batches for training, not of the text
        with explaining("the tokenizer's tokenizer.json", "get it again", Exception):
            self._tokenizer = Tokenizer.from_str(json.dumps(content))
        self._added = {id: token.content for id, token in self._tokenizer.get_added_tokens_decoder().items()}

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens after which the model's text ends."""
        found = self.generation.get("eos_token_id", self._role("eos_token"))
        ids = found if isinstance(found, list) else [found]
        return tuple(id for id in ids if id is not None)

    @cached_property
    def n_vocab(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.vocabulary.values())

    def encode(self, text: str, *, special: bool = False, after_line: bool = False) -> np.ndarray:
        """The ids of a text alone: int (T,).

        special: whether the text of a special token, such as "<|im_end|>", means that token; else it is ordinary text
        after_line: whether the text goes on after a line break, so that nothing is put before it as before a whole one
        """
        self._tokenizer.encode_special_tokens = not special
        line = self._ids("\n") if after_line else []
        return np.array(self._ids("\n" + text if line else text)[len(line) :], np.int64)

    def encode_places(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of a text with special tokens, and which characters each begins and ends at: int (T,) all three."""
        self._tokenizer.encode_special_tokens = False
        found = self._tokenizer.encode(text, add_special_tokens=False)
        starts, stops = np.array(found.offsets, np.int64).reshape(-1, 2).T
        return np.array(found.ids, np.int64), starts, stops

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token by its text, as `tokenizer.json` writes it; special ones included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def words(self, text: str) -> Iterator[tuple[str, ...]]:
        """The tokens of each word of a text: what may be merged with each other."""
        self._tokenizer.encode_special_tokens = True
        encoding, word, last = self._tokenizer.encode(text, add_special_tokens=False), [], None
        for token, place in zip(encoding.tokens, encoding.word_ids, strict=True):
            # A byte's own name (<0x0A>) is not made longer by merging; SentencePiece's whole text is one word.
            is_byte = not self._is_byte_level and _BYTE.fullmatch(token)
            if place != last or is_byte or (not self._is_byte_level and token.startswith(_SPACE)):
                yield tuple(word)
                word = []
            last = None if is_byte else place
            word.append(token)
        yield tuple(word)

    def grown(self, merges: Sequence[tuple[str, str]]) -> "PublishedTokenizer":
        """The tokenizer with merges behind its own, whose tokens have the ids from `n_vocab` on.

        Raises UserError if an old token were to lose its id.
        """
        model, before = self.content["model"], self.vocabulary
        # Tokens that only `added_tokens` names would be numbered after the model's, which are more now.
        listed = {token: id for id, token in self._added.items()}
        new = {left + right: self.n_vocab + at for at, (left, right) in enumerate(merges)}
        as_text = model["merges"] and isinstance(model["merges"][0], str)
        written = [f"{left} {right}" if as_text else [left, right] for left, right in merges]
        grown = {"vocab": model["vocab"] | listed | new, "merges": [*model["merges"], *written]}
        found = PublishedTokenizer(self.content | {"model": model | grown}, self.settings, self.generation)
        if found.vocabulary != before | new:
            raise UserError("this model's tokenizer.json cannot take new tokens; omit --grow-vocabulary")
        return found

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids that the model expects before a text and after it, often none."""
        before, after = self._processed()
        begin, end = self._role("bos_token"), self._role("eos_token")
        # These two settings overrule what tokenizer.json says.
        if (add := self.settings.get("add_bos_token")) is not None and begin is not None:
            before = [begin] if add else [id for id in before if id != begin]
        if (add := self.settings.get("add_eos_token")) is not None and end is not None:
            after = [end] if add else [id for id in after if id != end]
        return before, after

    def _processed(self) -> tuple[list[int], list[int]]:
        """What tokenizer.json's `post_processor` puts around a text."""
        alone = self._ids("a")
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        for at in range(len(whole) - len(alone) + 1):
            if whole[at : at + len(alone)] == alone:
                return whole[:at], whole[at + len(alone) :]
        raise UserError("the tokenizer's post_processor changes the text itself, which is not supported")

    def _role(self, name: str) -> int | None:
        """The id of the token that the settings call `bos_token`, `eos_token` or `pad_token`."""
        value = self.settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return self._tokenizer.token_to_id(text) if isinstance(text, str) else None

    @property
    def begin(self) -> int | None:
        """The token that the model's texts begin with, if it has one."""
        return self._role("bos_token")

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a conversation; of several the one called "default"."""
        template = self.settings.get("chat_template")
        if isinstance(template, list):
            template = {each.get("name"): each.get("template") for each in template}.get("default")
        return template if isinstance(template, str) else None

    def role_texts(self) -> dict[str, str]:
        """The texts of the tokens with a role, by the names that templates know them by."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        ids = {name: self._role(name) for name in names}
        return {name: self._tokenizer.id_to_token(id) for name, id in ids.items() if id is not None}

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text, a special token its name. Raises KeyError for an unknown id."""
        if token in self._added:
            return self._added[token].encode()
        text = self._tokenizer.id_to_token(token) if token >= 0 else None
        if text is None:
            raise KeyError(token)
        if self._is_byte_level:
            return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode() for c in text)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace(_SPACE, " ").encode()

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in _kinds(self.content["decoder"], "decoders")

    def to_dict(self) -> dict:
        """All that it is made of, ready for JSON."""
        return {"tokenizer": self.content, "settings": self.settings, "generation": self.generation}

    def save(self, path: str | PathLike, *, overwrite: bool = False):
        """Write it to one file; see `contract.files.write_file`."""
        with write_file(path, overwrite=overwrite) as file:
            file.write(json.dumps(self.to_dict(), ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: str | PathLike) -> "PublishedTokenizer":
        """Read what `save` wrote. Raises UserError if the file is missing or damaged."""
        with explaining(f"{path}: the tokenizer cannot be read", "restore the file", (OSError, ValueError)):
            found = read_json(Path(path), {"tokenizer": dict, "settings": dict, "generation": dict})
        return cls(found["tokenizer"], found["settings"], found["generation"])


def _kinds(part: dict | None, inside: str) -> list[str]:
    """The types of a part of tokenizer.json, or of what its sequence holds."""
    if part is None:
        return []
    return [each["type"] for each in part.get(inside, [])] if part["type"] == "Sequence" else [part["type"]]


def _check_kind(content: dict):
    """Refuse what has tokens that cannot be told apart as bytes of text."""
    kind = (content.get("model") or {}).get("type")
    if kind != "BPE":
        raise UserError(
            f"tokenizer.json: model.type is {shortened(kind)}; only byte-pair vocabularies (BPE) are supported"
        )
    known = {"ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace"}
    kinds = _kinds(content.get("decoder"), "decoders")
    if not kinds or not known >= set(kinds):
        found = ", ".join(kinds) or "missing"
        raise UserError(f"tokenizer.json: decoder is {found}; supported are {', '.join(sorted(known))}")
