"""GPT-2's vocabulary files, `vocab.json` and `merges.txt`, to and from a `tiktoken.Encoding`.

The files list which pairs of tokens merge; tiktoken merges any two neighbours whose bytes together are a
token. Both take the pair of lowest rank first, and give the same tokens for every text when two things hold,
which are checked in both directions:

1. A merged token's id grows with the place of its merge.
2. Merging a token's own bytes, by the merges before its own, ends at exactly the two tokens of its merge.

For suppose that tiktoken is about to merge two neighbours c, d into the token t, of which the files say a, b.
No pair of lower rank is left, and nothing has merged across the ends of c d, so its bytes have gone through
the merges that they would have gone through alone: by 2 they stand as a, b, which is the files' own pair.

A token that no merge makes, such as `<|endoftext|>`, is a special one. It keeps its id and its text, so that
it is written out when a model generates it, and no text is ever read as one.
"""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import tiktoken

from contract.errors import UserError
from contract.files import open_regular
from contract.schema import read_json
from data.tokenizers import encoding_of, token_bytes

END_OF_TEXT = "<|endoftext|>"
FILE_NAMES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # the second as first published
TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"


def _byte_symbols() -> list[str]:
    """The character for each byte in the files: itself if printable, else one from U+0100 on."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


_SYMBOLS = _byte_symbols()
_BYTES = {symbol: byte for byte, symbol in enumerate(_SYMBOLS)}


class Vocabulary(NamedTuple):
    """What the files hold.

    ids: token -> id, a token's bytes written as symbols; merges: the two tokens of each merge, in order
    """

    ids: dict[str, int]
    merges: list[tuple[str, str]]


# --- files to encoding ---


def read_vocabulary(folder: Path) -> tiktoken.Encoding | None:
    """The tokenizer of a folder's vocabulary files, with the files' ids; None if there are none.

    Read are `vocab.json` and `merges.txt`, else their names as first published, else `tokenizer.json`.
    Raises UserError naming the file and what is not of GPT-2's kind.
    """
    settings = folder / SETTINGS_FILE
    if settings.is_file() and _read_json(settings).get("add_prefix_space"):
        raise _refusal(settings, "add_prefix_space puts a space before every text, which changes its tokens")
    for names in FILE_NAMES:
        vocab, merges = (folder / name for name in names)
        if vocab.is_file() != merges.is_file():
            present, absent = (vocab, merges) if vocab.is_file() else (merges, vocab)
            raise UserError(f"{absent} is missing beside {present.name}; get both files")
        if vocab.is_file():
            added = folder / "added_tokens.json"
            ids = _read_json(vocab, {str: int}) | (_read_json(added, {str: int}) if added.is_file() else {})
            return _encoding_of(Vocabulary(ids, _read_merges(merges)), vocab)
    path = folder / TOKENIZER_FILE
    return _encoding_of(_read_tokenizer_file(path), path) if path.is_file() else None


def _refusal(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: not a vocabulary of GPT-2's kind: {problem}; use a model that has one")


def _read_text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); get it again") from None


def _read_json(path: Path, schema=dict) -> dict:
    try:
        return read_json(path, schema)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); get it again") from None
    except ValueError as error:
        raise _refusal(path, str(error)) from None


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = _read_text(path).split("\n")  # not splitlines: U+0085 is a symbol like any other
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2:
            raise _refusal(path, f"line {number}: two tokens and a space expected, found {line[:40]!r}")
        merges.append(pair)
    return merges


_TOKENIZER = {
    "model": {"type": str, "vocab": {str: int}, "merges": list},
    "pre_tokenizer": {"type": str},
    "added_tokens": ([{"content": str, "id": int}], None),
}


def _read_tokenizer_file(path: Path) -> Vocabulary:
    content = _read_json(path, _TOKENIZER)
    try:
        model, before = content["model"], content["pre_tokenizer"]
        wanted = {
            "model.type": (model["type"], "BPE"),
            "model.ignore_merges": (model.get("ignore_merges", False), False),
            "normalizer": (content.get("normalizer"), None),
            "pre_tokenizer.type": (before["type"], "ByteLevel"),
            "pre_tokenizer.add_prefix_space": (before.get("add_prefix_space", True), False),
            "pre_tokenizer.use_regex": (before.get("use_regex", True), True),
        }
        for name, (found, expected) in wanted.items():
            if found != expected:
                raise _refusal(path, f"{name} is {found!r}, and GPT-2's is {expected!r}")
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        merges = [
            tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]
        ]
        if not all(len(pair) == 2 for pair in merges):
            raise TypeError
        return Vocabulary(model["vocab"] | added, merges)
    except (KeyError, TypeError, AttributeError):
        raise _refusal(path, "vocabulary, merges or pre-tokenizer are not where they belong") from None


def _encoding_of(vocabulary: Vocabulary, path: Path) -> tiktoken.Encoding:
    """The encoding with these ids, proven to give the files' tokens (see the top of this file)."""
    ids, merges = vocabulary
    _check_ids(ids, path)
    tokens: dict[int, bytes] = {ids[symbol]: bytes([_BYTES[symbol]]) for symbol in _SYMBOLS if symbol in ids}
    tokens |= _merged_tokens(ids, merges, path)
    ranks = {token: id for id, token in tokens.items()}
    for left, right in merges:
        found = _split(tokens[ids[left + right]], ranks)
        if found != [tokens[ids[left]], tokens[ids[right]]]:
            raise _refusal(
                path,
                f"{left + right!r} is the merge of {left!r} and {right!r}, but the merges before it split its "
                f"bytes into {found}",
            )
    specials = {id: token.encode(errors="replace") for token, id in ids.items() if id not in tokens}
    tokens |= specials
    listed = [tokens[id] for id in range(len(tokens))]
    _check_specials(listed, specials, path)
    return encoding_of("bytes" if all(len(token) == 1 for token in listed) else "ranks", listed)


def _check_ids(ids: dict[str, int], path: Path):
    """Refuse ids that are not the numbers from 0 on, one for each token."""
    if not ids:
        raise _refusal(path, "it has no tokens")
    for token, id in ids.items():
        if type(id) is not int or not isinstance(token, str) or not token:
            raise _refusal(path, f"the token {token!r} has the id {id!r}, not a whole number")
    if absent := set(range(len(ids))) - set(ids.values()):
        raise _refusal(
            path, f"{len(ids)} tokens, but none has the id {min(absent)}: ids count up from 0 without a gap"
        )


def _merged_tokens(ids: dict[str, int], merges: list[tuple[str, str]], path: Path) -> dict[int, bytes]:
    """The bytes of each token that a merge makes, by its id."""
    tokens: dict[int, bytes] = {}
    last = -1
    for number, (left, right) in enumerate(merges, 1):
        merged = left + right
        for token in (left, right, merged):
            if token not in ids:
                raise _refusal(path, f"merge {number}, {left!r} and {right!r}: {token!r} has no id")
        if ids[merged] <= last:
            raise _refusal(
                path,
                f"merge {number} makes {merged!r}, id {ids[merged]}, after a merge that made id {last}: ids "
                "must grow in the order of the merges",
            )
        last = ids[merged]
        if not _BYTES.keys() >= set(merged):
            raise _refusal(path, f"merge {number} makes {merged!r}, which holds symbols for no byte")
        tokens[last] = bytes(_BYTES[symbol] for symbol in merged)
    return tokens


def _check_specials(tokens: list[bytes], specials: dict[int, bytes], path: Path):
    """Refuse a special token that text could be read as."""
    counts = Counter(tokens)
    encoding = encoding_of("probe", tokens)
    for token in specials.values():
        if lacking := [byte for byte in token if bytes([byte]) not in counts]:
            raise _refusal(path, f"no merge makes {token!r}, and its byte 0x{lacking[0]:02x} has no token")
        if counts[token] > 1:
            raise _refusal(path, f"two tokens stand for {token!r}")
    for id, token in specials.items():
        if id in encoding.encode_ordinary(token.decode()):
            raise _refusal(path, f"no merge makes {token.decode()!r}, though it is like ordinary text")


def _split(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """What a token's bytes have become when only its own merge is left: two parts, for a proper merge."""
    own = ranks.get(token, len(ranks))
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 1:
        pairs = (ranks.get(parts[at] + parts[at + 1], own) for at in range(len(parts) - 1))
        rank, at = min((rank, at) for at, rank in enumerate(pairs))
        if rank >= own:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


# --- encoding to files ---


def vocabulary_of(encoding: tiktoken.Encoding) -> Vocabulary:
    """The vocabulary that gives an encoding's tokens, its merges recovered from the ranks.

    Raises UserError naming a token that is neither a byte, nor a merge of two earlier tokens, nor special.
    """
    tokens = token_bytes(encoding)
    ranks = {token: id for id, token in enumerate(tokens)}
    ids: dict[str, int] = {}
    merges: list[tuple[str, str]] = []
    for id, token in enumerate(tokens):
        parts = _split(token, ranks)
        if len(parts) == 2:
            merges.append((_symbols(parts[0]), _symbols(parts[1])))
        name = _symbols(token) if len(parts) in (1, 2) else _special_name(encoding, id, token)
        if not token or name in ids:
            raise UserError(
                f"the tokenizer's token {id}, {token!r}, cannot stand in vocab.json: it is empty or there already; "
                "export to torch or npz instead"
            )
        ids[name] = id
    return Vocabulary(ids, merges)


def _symbols(token: bytes) -> str:
    return "".join(_SYMBOLS[byte] for byte in token)


def _special_name(encoding: tiktoken.Encoding, id: int, token: bytes) -> str:
    try:
        name = token.decode()
        if id not in encoding.encode_ordinary(name):
            return name
    except UnicodeDecodeError:
        pass
    raise UserError(
        f"the tokenizer's token {id}, {token!r}, is not made by merging two earlier tokens, as merges.txt says "
        "of every token; export to torch or npz instead"
    )


def vocabulary_files(encoding: tiktoken.Encoding, context_length: int) -> dict[str, str]:
    """The text of each file by its name, such that `transformers.AutoTokenizer` gives the encoding's tokens.

    context_length: of the model
    Raises UserError if the encoding cannot be written so.
    """
    ids, merges = vocabulary_of(encoding)
    # Omitted, these three would be <|endoftext|>, which a vocabulary without it would be given a new id for.
    end = END_OF_TEXT if END_OF_TEXT in ids else None
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": context_length,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
    }
    vocab, lines = FILE_NAMES[0]
    return {
        vocab: json.dumps(ids, ensure_ascii=False) + "\n",
        lines: "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        SETTINGS_FILE: json.dumps(settings, indent=2) + "\n",
    }
