"""Tokenizers that grow by what a new text needs: old ids stay, the text comes back, merges are those of training."""

import os

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from data.grammar import corpus
from data.growing import grown, learn_merges
from data.sources import Texts
from data.tokenizer_training import train_tokenizer
from data.tokenizers import (
    END_OF_TEXT,
    encode,
    encoding_of,
    end_token,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    token_bytes,
)
from data.vocabulary import vocabulary_of

NEW = "Größe und 日本 und Größe und 日本.\n" * 30


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the hound and the sound\n", newline="")
    return path


@pytest.fixture
def new(tmp_path):
    """The new text, of one document."""
    path = tmp_path / "new.txt"
    path.write_text(NEW, newline="")
    return Texts.of(path)


def both(tokenizer, kept):
    """Every token of the first tokenizer has its id in the second."""
    return token_bytes(kept)[: tokenizer.n_vocab] == token_bytes(tokenizer)


def test_missing_symbols(text, new, tmp_path):
    """Each byte that is missing becomes one token, in the order of their values, and is kept by a file."""
    tokenizer = open_tokenizer("bytes", text)
    found = grown(tokenizer, [new], 0)
    assert both(tokenizer, found)
    added = token_bytes(found)[tokenizer.n_vocab :]
    assert added == [bytes([byte]) for byte in sorted(set(NEW.encode()) - set(text.read_bytes()))]
    assert found.decode(encode(found, NEW).tolist()) == NEW
    save_tokenizer(found, tmp_path / "kept")
    assert token_bytes(load_tokenizer(tmp_path / "kept", found.name)) == token_bytes(found)


def test_nothing_is_missing(text):
    """The tokenizer itself, which hashes as before."""
    tokenizer = open_tokenizer("bytes", text)
    assert grown(tokenizer, [Texts.of(text)], 0) is tokenizer


def test_a_text_to_validate_on_counts(text, new):
    """Its symbols get tokens too."""
    found = grown(open_tokenizer("bytes", text), [Texts.of(text), new], 0)
    assert found.decode(encode(found, NEW).tolist()) == NEW


@pytest.mark.parametrize("merges", [0, 5])
def test_the_end_token_keeps_its_id(text, new, merges):
    """New tokens stand behind it; no text is read as it."""
    documents = Texts((text,), separator="\n")
    tokenizer = open_tokenizer("bytes", documents)
    found = grown(tokenizer, [new], merges)
    assert both(tokenizer, found)
    assert end_token(found) == end_token(tokenizer) == tokenizer.n_vocab - 1
    assert end_token(found) not in encode(found, "the <|endoftext|> sound")


def test_documents_bring_an_end_token(text, tmp_path):
    """A tokenizer without one gets one, and its bytes, for a text of several documents, and keeps it as a token."""
    tokenizer = open_tokenizer("bytes", text)
    found = grown(tokenizer, [Texts((text,), separator="d")], 0)
    assert both(tokenizer, found)
    assert end_token(found) == found.n_vocab - 1
    assert found.decode([end_token(found)]) == END_OF_TEXT
    assert end_token(found) not in encode(found, END_OF_TEXT)


def test_merges_are_those_of_training(tmp_path):
    """Grown from all bytes, a tokenizer writes a text in as many tokens as one that rustbpe has trained on it."""
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in corpus()[:2000]), newline="")
    alone = encoding_of("bytes", [bytes([byte]) for byte in range(256)])
    ours, theirs = grown(alone, [Texts.of(path)], 200), train_tokenizer(path, 456)
    assert ours.n_vocab == theirs.n_vocab == 456
    tokens = [len(encode(each, path.read_text())) for each in (ours, theirs)]
    assert tokens[0] == pytest.approx(
        tokens[1], rel=1e-3
    )  # of equally frequent pairs they take different ones


def test_merges_behind_those_of_a_trained_tokenizer(text, new):
    """The old text keeps its tokens where no new one fits; the new one takes fewer; export finds every merge."""
    tokenizer = train_tokenizer(text, 262)
    found = grown(tokenizer, [new], 12)
    assert both(tokenizer, found)
    assert found.n_vocab == 274
    assert found.name == "ranks"
    np.testing.assert_array_equal(encode(found, "the hound the"), encode(tokenizer, "the hound the"))
    tokens = encode(found, NEW)
    assert found.decode(tokens.tolist()) == NEW
    assert len(tokens) < 0.5 * len(encode(tokenizer, NEW))
    assert "日本".encode() in {token.strip() for token in token_bytes(found)}
    ids, merges = vocabulary_of(found)
    assert len(ids) == 274
    assert len(merges) == 6 + 12


def test_a_small_text_gives_fewer_tokens(text, new):
    """Merging ends where no pair stands in the text twice."""
    found = grown(open_tokenizer("bytes", text), [new], 10_000)
    assert found.n_vocab < 100


def test_learned_merges():
    """The most frequent pair first, the others as they are after it; ties by their tokens; none twice, none known."""
    words = {tuple("ababc"): 3, tuple("bc"): 2, tuple("xy"): 1, tuple("bb"): 3}
    assert learn_merges(words, set(), 9) == [("a", "b"), ("ab", "ab"), ("abab", "c"), ("b", "b"), ("b", "c")]
    assert learn_merges(words, {"ab"}, 2) == [("b", "c"), ("a", "bc")]
    assert learn_merges(words, set(), 1) == [("a", "b")]
    assert learn_merges({tuple("aaaa"): 2}, set(), 9) == [("a", "a"), ("aa", "aa")]


@pytest.mark.parametrize("count", [-1, 1 << 24])
def test_impossible_numbers(text, new, count):
    """A number of tokens that no vocabulary has."""
    with pytest.raises(ConfigError, match="--grow-vocabulary must be from 0 to"):
        grown(open_tokenizer("bytes", text), [new], count)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes (Linux or macOS)")
def test_a_pipe(text, tmp_path):
    """It can be read only once: all bytes get tokens, and none can be learned from it."""
    os.mkfifo(tmp_path / "pipe")
    pipe, tokenizer = Texts.of(tmp_path / "pipe"), open_tokenizer("bytes", text)
    assert grown(tokenizer, [pipe], 0).n_vocab == 256
    with pytest.raises(UserError, match="pipe is a pipe, which can be read only once"):
        grown(tokenizer, [pipe], 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen2", "smollm", "mistral", "gemma"])
def test_published_tokenizers(new, kind):
    """Theirs grow by merges alone: old ids and special tokens stay, a text comes back from fewer tokens."""
    pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[models]')")
    from tests.small_tokenizers import published

    tokenizer = published(kind)
    assert grown(tokenizer, [new], 0) is tokenizer
    found = grown(tokenizer, [new], 4)
    assert found.vocabulary.items() > tokenizer.vocabulary.items()
    assert found.n_vocab == tokenizer.n_vocab + 4
    assert (found.ends, found.around) == (tokenizer.ends, tokenizer.around)
    before, after = encode(tokenizer, NEW), encode(found, NEW)
    assert len(after) < len(before)
    assert set(range(tokenizer.n_vocab, found.n_vocab)) & set(after.tolist())
    texts = (
        b"".join(each.decode_single_token_bytes(int(token)) for token in tokens)
        for each, tokens in ((tokenizer, before), (found, after))
    )
    assert next(texts) == next(texts)
    again = type(found)(*found.to_dict().values())
    np.testing.assert_array_equal(encode(again, NEW), after)


def test_special_tokens_outside_the_vocabulary_keep_their_ids(new):
    """Llama 3's file names them only beside its model's vocabulary: they would be numbered after the new ones."""
    pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[models]')")
    from data.published import PublishedTokenizer
    from tests.small_tokenizers import published

    made = published("qwen2")
    vocabulary, last = made.content["model"]["vocab"], made.n_vocab
    added = [{**made.content["added_tokens"][0], "content": f"<|{n}|>", "id": last + n} for n in range(3)]
    content = made.content | {"added_tokens": made.content["added_tokens"] + added}
    tokenizer = PublishedTokenizer(content, made.settings)
    assert tokenizer.vocabulary["<|2|>"] == last + 2
    assert "<|2|>" not in vocabulary
    found = grown(tokenizer, [new], 4)
    assert found.vocabulary.items() > tokenizer.vocabulary.items()
    assert (
        found.encode("<|2|>", special=True).tolist()
        == tokenizer.encode("<|2|>", special=True).tolist()
        == [last + 2]
    )
