"""GPT-2's vocabulary files: the same tokens as transformers', there and back, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from contract.errors import UserError
from data.prepare import DEFAULT_RANKS, DEFAULT_TEXT
from data.symbols import SYMBOLS
from data.tokenizer_training import train_tokenizer
from data.tokenizers import encode, encoding_of, identity, load_ranks, token_bytes
from data.vocabulary import END_OF_TEXT, read_vocabulary, vocabulary_files, vocabulary_of
from tests.shared_files import CACHE, SHAKESPEARE, require_cache

ROOT = Path(__file__).parents[2]
# tiktoken's cache names a file by the SHA-1 of where it came from.
ENCODER, MERGES = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory):
    """GPT-2's vocabulary files, under the names that Hugging Face gives them."""
    require_cache()
    folder = tmp_path_factory.mktemp("gpt2")
    for cached, name in ((ENCODER, "vocab.json"), (MERGES, "merges.txt")):
        shutil.copyfile(CACHE / cached, folder / name)
    return folder


@pytest.fixture(scope="module")
def gpt2_tokenizer(gpt2_files):
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    return transformers.GPT2TokenizerFast.from_pretrained(gpt2_files, local_files_only=True)


# Characters of every kind, those that patterns and bytes treat apart among them, and pieces of English.
PIECES = [
    *" \t\n\r'.,-0aZ",
    "'s",
    "'ll",
    " the",
    "The",
    "ing",
    "\r\n",
    "  ",
    "\n\n",
    END_OF_TEXT,
    "\xa0",
    "\u2028",
]
KINDS = [
    (0, 0x80),
    (0x80, 0x250),
    (0x370, 0x600),
    (0x900, 0xE00),
    (0x3040, 0x3100),
    (0x4E00, 0x9FA6),
    (0x1F300, 0x1F650),
]


def random_texts(count, seed):
    """Strings of up to forty characters from all of Unicode, and from its more common parts."""
    random = np.random.default_rng(seed)

    def character():
        kind = random.integers(8)
        if kind == 0:
            return PIECES[random.integers(len(PIECES))]
        if kind == 1:
            return "e"
        first, stop = (0, 0x110000) if kind == 2 else KINDS[random.integers(len(KINDS))]
        code = int(random.integers(first, stop))
        return "é" if 0xD800 <= code < 0xE000 else chr(code)

    for _ in range(count):
        yield "".join(character() for _ in range(random.integers(1, 41)))


def test_tokens_are_those_of_transformers(gpt2_files, gpt2_tokenizer):
    """10,000 random Unicode strings and a million characters of prose have GPT2TokenizerFast's tokens."""
    ours = read_vocabulary(gpt2_files)
    texts = list(random_texts(10_000, seed=0))
    if SHAKESPEARE.exists():
        texts.append(SHAKESPEARE.read_text(encoding="utf-8"))
    theirs = gpt2_tokenizer(texts, split_special_tokens=True, verbose=False)["input_ids"]
    for text, expected in zip(texts, theirs, strict=True):
        assert encode(ours, text).tolist() == expected, ascii(text[:200])


def test_vocabulary_is_tiktokens(gpt2_files, monkeypatch):
    """The files give tiktoken's own gpt2, ids and all, <|endoftext|> as data; written, they are the same files."""
    ours = read_vocabulary(gpt2_files)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    assert identity(ours)["sha256"] == identity(tiktoken.get_encoding("gpt2"))["sha256"]
    assert token_bytes(ours)[50256] == END_OF_TEXT.encode()
    assert 50256 not in encode(ours, END_OF_TEXT)
    files = vocabulary_files(ours, 1024)
    assert json.loads(files["vocab.json"]) == json.loads(
        (gpt2_files / "vocab.json").read_text(encoding="utf-8")
    )
    assert files["merges.txt"] == (gpt2_files / "merges.txt").read_text(encoding="utf-8")


def test_every_name_of_the_files(gpt2_files, gpt2_tokenizer, tmp_path):
    """The first published names, and the one file that transformers writes today, give the same tokenizer."""
    expected = identity(read_vocabulary(gpt2_files))
    for old, new in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        shutil.copyfile(gpt2_files / old, tmp_path / new)
    assert identity(read_vocabulary(tmp_path)) == expected
    gpt2_tokenizer.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "vocab.json").exists()
    assert identity(read_vocabulary(tmp_path / "new")) == expected
    content = json.loads((tmp_path / "new" / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = {token: id for token, id in content["model"]["vocab"].items() if id < 256}
    content |= {"model": content["model"] | {"vocab": vocab, "merges": []}, "added_tokens": []}
    for change in (
        {},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": None},
        {"model": {"type": "Unigram"}},
        {"model": None},
    ):
        (tmp_path / "new" / "tokenizer.json").write_text(json.dumps(content | change))
        if not change:
            assert read_vocabulary(tmp_path / "new").n_vocab == 256
            continue
        with pytest.raises(UserError, match=r"tokenizer\.json: not a vocabulary of GPT-2's kind") as error:
            read_vocabulary(tmp_path / "new")
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Ranks trained on strings of every kind, so that merges cross whatever can be crossed."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes("x".join(random_texts(2000, seed=1)).replace("\0", "").encode())
    return train_tokenizer(path, 1500)


@pytest.mark.parametrize("which", ["trained", "default", "bytes"])
def test_exported_tokenizer(which, trained, tmp_path):
    """AutoTokenizer opens what was written for trained ranks and for bytes, and gives the same tokens and texts."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    if which == "bytes":
        ours = encoding_of("bytes", [bytes([n]) for n in (10, *range(32, 127))])
        texts = [
            "".join(c for c in text if c == "\n" or " " <= c <= "~") for text in random_texts(500, seed=2)
        ]
    else:
        ours = trained if which == "trained" else load_ranks(DEFAULT_RANKS)
        texts = [*random_texts(2000, seed=2), DEFAULT_TEXT.read_text(encoding="utf-8")[:100_000]]
    for name, text in vocabulary_files(ours, 64).items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(theirs) == ours.n_vocab
    assert (theirs.eos_token, theirs.model_max_length) == (None, 64)
    for text, expected in zip(texts, theirs(texts, verbose=False)["input_ids"], strict=True):
        tokens = encode(ours, text).tolist()
        assert tokens == expected, ascii(text[:200])
        assert theirs.decode(expected) == ours.decode(tokens)
    assert identity(read_vocabulary(tmp_path)) == identity(ours)


def test_special_tokens_of_any_id(trained, tmp_path):
    """Special tokens that stand before the bytes, as other trainers have them, keep their ids and are never read."""
    tokens = [b"<s>", b"<pad>", *token_bytes(trained), END_OF_TEXT.encode()]
    for name, text in vocabulary_files(encoding_of("ranks", tokens), 64).items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")
    found = read_vocabulary(tmp_path)
    assert token_bytes(found) == tokens
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == END_OF_TEXT
    for text in ("<s>", "a<pad>b", END_OF_TEXT):
        assert encode(found, text).tolist() == [id + 2 for id in encode(trained, text).tolist()]


LETTERS = {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize(
    ("ids", "merges", "problem"),
    [
        (LETTERS | {"ab": 4}, "a b", "none has the id 3"),
        (LETTERS | {"ab": 2}, "a b", "none has the id 3"),
        (LETTERS | {"ab": -1}, "a b", "none has the id 3"),
        (LETTERS | {"ab": 3.0}, "a b", "ab is 3.0, expected a whole number"),
        (LETTERS | {"ab": True}, "a b", "ab is True, expected a whole number"),
        (LETTERS | {"": 3}, "", "the token '' has the id 3"),
        (LETTERS | {"ab": 4, "bc": 3}, "a b\nb c", "merge 2 makes 'bc', id 3, after a merge that made id 4"),
        (LETTERS | {"ab": 3}, "a b\na b", "merge 2 makes 'ab', id 3"),
        (LETTERS | {"ab": 3}, "a d", "'d' has no id"),
        (LETTERS, "a b", "'ab' has no id"),
        (LETTERS | {"ab": 3}, "a b c", "line 2: two tokens and a space"),
        # "abc" is formed from a and bc here, but "ab" comes first, so its bytes never get there
        (LETTERS | {"ab": 3, "bc": 4, "abc": 5}, "a b\nb c\na bc", "'abc' is the merge of 'a' and 'bc'"),
        (LETTERS | {"abc": 3}, "", "no merge makes 'abc'"),
        (LETTERS | {"ac": 3, "ab": 4}, "a b", "no merge makes 'ac'"),
        (LETTERS | {"<x>": 3}, "", "byte 0x3c has no token"),
        (LETTERS | {"日": 3, "a日": 4}, "a 日", "symbols for no byte"),
    ],
)  # fmt: skip
def test_another_kind_of_vocabulary_is_refused(tmp_path, ids, merges, problem):
    """A vocabulary whose tokens tiktoken could not reproduce is refused with the reason."""
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    with pytest.raises(UserError, match="not a vocabulary of GPT-2's kind") as error:
        read_vocabulary(tmp_path)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_ranks_that_no_merges_express():
    """Ranks that are not made by merging two earlier tokens are refused by name, with what to do."""
    for tokens in ([b"a", b"b", b"c", b"abc"], [b"a", b"a\xff", b"\xff", b"a\xffa\xff\xff"]):
        with pytest.raises(
            UserError, match=r"is not made by merging two earlier tokens.*export to torch or npz"
        ):
            vocabulary_of(encoding_of("ranks", tokens))


def test_symbols_are_gpt2s():
    """Each byte has its own symbol, which is never a space or a control character."""
    symbols = SYMBOLS
    assert len(set(symbols)) == 256
    assert all(symbol.isprintable() and not symbol.isspace() for symbol in symbols)
    assert (symbols[ord("a")], symbols[ord(" ")], symbols[ord("\n")]) == ("a", "Ġ", "Ċ")
