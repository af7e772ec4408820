"""GPT-2's vocabulary files, `vocab.json` and `merges.txt`, to and from a `tiktoken.Encoding`.

The files list which pairs of tokens merge; tiktoken merges any two neighbours whose bytes together are a token. Both
take the pair of lowest rank first, and give the same tokens for every text when two things hold, which are checked in
both directions:

1. A merged token's id grows with the place of its merge.
2. Merging a token's own bytes, by the merges before its own, ends at exactly the two tokens of its merge.

For suppose that tiktoken is about to merge two neighbours c, d into the token t, of which the files say a, b. No pair
of lower rank is left, and nothing has merged across the ends of c d, so its bytes have gone through the merges that
they would have gone through alone: by 2 they stand as a, b, which is the files' own pair.

A token that no merge makes, such as `<|endoftext|>`, is special: it keeps its id and its text, so that it is written
out when a model generates it, and no text is ever read as one.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import tiktoken

from contract.errors import UserError, explaining
from contract.schema import read_json
from data.symbols import BYTE_OF, SYMBOLS
from data.tokenizers import END_OF_TEXT, encoding_of, token_bytes

_OTHER_EXPORT = "export to torch or npz instead"
FILE_NAMES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # the second as first published
TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
# What else a published model's folder says of text.
GENERATION_FILE, TEMPLATE_FILE = "generation_config.json", "chat_template.jinja"
ROLES_FILE = "special_tokens_map.json"


_IDS = {str: int}  # token -> id, a token's bytes written as symbols
_TOKENIZER = {
    "model": {"type": str, "vocab": _IDS, "merges": list},
    "pre_tokenizer": {"type": str},
    "added_tokens": ([{"content": str, "id": int}], None),
}
Merges = list[Sequence[str]]  # the two tokens of each, in order


# --- files to encoding ---


def read_vocabulary(folder: Path) -> tiktoken.Encoding | None:
    """The tokenizer of a folder's vocabulary files, with the files' ids; None if there are none.

    Read are `vocab.json` and `merges.txt`, else their names as first published, else `tokenizer.json`.
    Raises UserError naming the file and what is not of GPT-2's kind.
    """
    settings = folder / SETTINGS_FILE
    with _naming(settings):
        if settings.is_file() and read_json(settings).get("add_prefix_space"):
            raise ValueError("add_prefix_space puts a space before every text, which changes its tokens")
    for names in FILE_NAMES:
        vocab, merges = (folder / name for name in names)
        if vocab.is_file() != merges.is_file():
            present, absent = (vocab, merges) if vocab.is_file() else (merges, vocab)
            raise UserError(f"{absent} is missing beside {present.name}; get both files")
        if vocab.is_file():
            ids = {}
            for path in (vocab, folder / "added_tokens.json"):
                with _naming(path):
                    ids |= read_json(path, _IDS) if path.is_file() else {}
            with _naming(merges):
                pairs = _parse_merges(merges.read_text(encoding="utf-8"))
            with _naming(vocab):
                return _encoding_of(ids, pairs)
    path = folder / TOKENIZER_FILE
    with _naming(path):
        return _encoding_of(*_vocabulary_in(read_json(path, _TOKENIZER))) if path.is_file() else None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an error while reading a file, or a ValueError about its contents, into a UserError that names it."""
    kind = f"{path}: not a vocabulary of GPT-2's kind", "use a model that has one", ValueError
    with explaining(f"{path} cannot be read", "get it again"), explaining(*kind):
        yield


def _parse_merges(text: str) -> Merges:
    merges = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+0085 is a symbol like any other
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise ValueError(f"line {number}: two tokens and a space expected, found {line[:40]!r}")
        merges.append(pair)
    return merges


def _vocabulary_in(content: dict) -> tuple[dict[str, int], Merges]:
    """The ids and merges in the contents of a `tokenizer.json`."""
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
            raise ValueError(f"{name} is {found!r}, and GPT-2's is {expected!r}")
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    for pair in merges:
        if not isinstance(pair, list) or list(map(type, pair)) != [str, str]:
            raise ValueError(f"two tokens expected in model.merges, found {pair!r:.60}")
    return model["vocab"] | added, merges


def _encoding_of(ids: dict[str, int], merges: Merges) -> tiktoken.Encoding:
    """The encoding with these ids, proven to give the files' tokens (see the top of this file)."""
    if not ids:
        raise ValueError("it has no tokens")
    if "" in ids:
        raise ValueError(f"the token '' has the id {ids['']}")
    if absent := set(range(len(ids))).difference(ids.values()):
        raise ValueError(
            f"{len(ids)} tokens, but none has the id {min(absent)}: ids count up from 0 without a gap"
        )
    tokens = {ids[symbol]: bytes([byte]) for symbol, byte in BYTE_OF.items() if symbol in ids}
    tokens |= _merged_tokens(ids, merges)
    ranks = {token: id for id, token in tokens.items()}
    for left, right in merges:
        found = merged_parts(tokens[ids[left + right]], ranks)
        if found != [tokens[ids[left]], tokens[ids[right]]]:
            raise ValueError(
                f"{left + right!r} is the merge of {left!r} and {right!r}, but the merges before it split its "
                f"bytes into {found}"
            )
    specials = {id: token.encode(errors="replace") for token, id in ids.items() if id not in tokens}
    tokens |= specials
    listed = [tokens[id] for id in range(len(tokens))]
    _check_specials(listed, specials)
    return encoding_of("bytes" if all(len(token) == 1 for token in listed) else "ranks", listed)


def _merged_tokens(ids: dict[str, int], merges: Merges) -> dict[int, bytes]:
    """The bytes of each token that a merge makes, by its id."""
    tokens: dict[int, bytes] = {}
    last = -1
    for number, (left, right) in enumerate(merges, 1):
        merged = left + right
        for token in (left, right, merged):
            if token not in ids:
                raise ValueError(f"merge {number}, {left!r} and {right!r}: {token!r} has no id")
        makes = f"merge {number} makes {merged!r}"
        if ids[merged] <= last:
            raise ValueError(
                f"{makes}, id {ids[merged]}, after a merge that made id {last}: ids must grow in the order of merges"
            )
        last = ids[merged]
        if not BYTE_OF.keys() >= set(merged):
            raise ValueError(f"{makes}, which holds symbols for no byte")
        tokens[last] = bytes(BYTE_OF[symbol] for symbol in merged)
    return tokens


def _check_specials(tokens: list[bytes], specials: dict[int, bytes]):
    """Refuse a special token that text could be read as."""
    counts = Counter(tokens)
    encoding = encoding_of("probe", tokens)
    for id, token in specials.items():
        if lacking := [byte for byte in token if bytes([byte]) not in counts]:
            raise ValueError(f"no merge makes {token!r}, and its byte 0x{lacking[0]:02x} has no token")
        if counts[token] > 1:
            raise ValueError(f"two tokens stand for {token!r}")
        if id in encoding.encode_ordinary(token.decode()):
            raise ValueError(f"no merge makes {token.decode()!r}, though it is like ordinary text")


def merged_parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
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


def vocabulary_of(encoding: tiktoken.Encoding) -> tuple[dict[str, int], Merges]:
    """The ids and merges that give an encoding's tokens, the merges recovered from the ranks.

    Raises UserError naming a token that is neither a byte, nor a merge of two earlier tokens, nor special.
    """
    tokens = token_bytes(encoding)
    ranks = {token: id for id, token in enumerate(tokens)}
    ids: dict[str, int] = {}
    merges: Merges = []
    for id, token in enumerate(tokens):
        parts = merged_parts(token, ranks)
        if len(parts) == 2:
            merges.append((_symbols(parts[0]), _symbols(parts[1])))
        name = _symbols(token) if len(parts) in (1, 2) else _special_name(encoding, id, token)
        if not token or name in ids:
            problem = "cannot stand in vocab.json: it is empty or there already"
            raise UserError(f"the tokenizer's token {id}, {token!r}, {problem}; {_OTHER_EXPORT}")
        ids[name] = id
    return ids, merges


def _symbols(token: bytes) -> str:
    return "".join(SYMBOLS[byte] for byte in token)


def _special_name(encoding: tiktoken.Encoding, id: int, token: bytes) -> str:
    with suppress(UnicodeDecodeError):
        if id not in encoding.encode_ordinary(token.decode()):
            return token.decode()
    raise UserError(
        f"the tokenizer's token {id}, {token!r}, is not made by merging two earlier tokens, as merges.txt says "
        f"of every token; {_OTHER_EXPORT}"
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
