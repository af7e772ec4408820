"""Telling a text whose end is unlike the rest: sorted ones are, ordinary ones are not, whatever the tokenizer."""

import random

import numpy as np
import pytest

from data import likeness
from data.grammar import corpus
from data.held_out import HeldOut
from data.likeness import UNLIKE, end_surprise
from data.prepare import prepare, read_info
from data.token_store import TokenForm
from data.tokenizer_training import train_tokenizer
from data.tokenizers import save_ranks
from tests.shared_files import SHAKESPEARE, needs_corpora

LINES = [f"{sentence}\n" for sentence in corpus()]


def topics(draw: random.Random) -> list[str]:
    """Notes on ten topics, one after the other, each with words of its own."""
    notes = []
    for _ in range(10):
        words = ["".join(draw.choices("abcdefghiklmnoprstuvw", k=6)) for _ in range(12)]
        notes += [
            f"On day {draw.randint(1, 999)} {' '.join(draw.choices(words, k=4))}.\n" for _ in range(300)
        ]
    return notes


def shuffled(lines: list[str]) -> list[str]:
    return random.Random(0).sample(lines, len(lines))


@pytest.fixture
def surprise(tmp_path):
    """A function that prepares lines and gives the measure of their end."""

    def surprise(lines, tokenizer="bytes", **held_out):
        path = tmp_path / "text.txt"
        path.write_text("".join(lines), newline="")
        if tokenizer == "ranks":
            tokenizer = tmp_path / "text.tiktoken"
            save_ranks(train_tokenizer(path, 400), tokenizer, overwrite=True)
        out = tmp_path / "out.bin"
        prepare(path, str(tokenizer), out, held_out=HeldOut(**held_out), overwrite=True)
        return read_info(out).end_surprise

    return surprise


@pytest.mark.parametrize("tokenizer", ["bytes", "ranks"])
@pytest.mark.parametrize(
    "lines",
    [sorted(LINES), topics(random.Random(0)), sorted(LINES[:1500])],
    ids=["corpus", "topics", "short"],
)
def test_sorted_and_shuffled(surprise, lines, tokenizer):
    """The same lines, sorted and in any order, are on both sides of what is warned of, with room to spare."""
    apart = 0.9 * UNLIKE
    assert surprise(lines, tokenizer) > UNLIKE / 0.9
    assert 0.85 < surprise(shuffled(lines), tokenizer) < apart


@needs_corpora
@pytest.mark.parametrize("tokenizer", ["bytes", "ranks"])
def test_prose(surprise, tokenizer):
    """A play's last scenes are its own, and yet like the others."""
    text = SHAKESPEARE.read_text()
    assert 1 < surprise([text], tokenizer) < 0.9 * UNLIKE
    assert surprise([text[:30_000]], tokenizer) < UNLIKE


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_other_fractions(surprise, fraction):
    """What is held out may be little or most of the text."""
    assert surprise(sorted(LINES), fraction=fraction) > UNLIKE
    assert surprise(LINES, fraction=fraction) < UNLIKE


def test_nothing_to_say(surprise):
    """Of a short text, of none held out, and of blocks."""
    assert surprise(LINES[:20]) is None
    assert surprise(LINES, fraction=0) is None
    assert surprise(sorted(LINES), way="blocks") is None


def test_parts_tell_as_much(surprise, monkeypatch):
    """Of a large file only parts of each block are read."""
    monkeypatch.setattr(likeness, "READ", 200)
    assert surprise(sorted(LINES)) > UNLIKE
    assert 0.85 < surprise(shuffled(LINES)) < 0.9 * UNLIKE


def test_counts_are_exact(tmp_path):
    """A text of two halves: its loss by hand, from counts of tokens and of pairs."""
    draw = np.random.default_rng(0)
    train, end = draw.integers(0, 3, 9000), draw.integers(3, 5, 1000)
    path = tmp_path / "tokens.bin"
    tokens = np.concatenate([train, end]).astype(np.uint16)
    tokens.tofile(path)
    with open(path, "rb") as file:
        found = end_surprise(file, TokenForm(tokens.dtype), 9000, 10_000, 20_000, 5)
    # Tokens 3 and 4 never stand before the end: half a count each, of some 8,000 and 2.5 in all.
    unseen, seen = -np.log(0.5 / 8000), np.log(3)
    assert found == pytest.approx(unseen / seen, rel=0.03)


def test_a_text_of_one_symbol(surprise):
    """Nothing in it can be hard to predict, and the model that counts is never wrong."""
    assert surprise(["a" * 20_000], tokenizer="bytes") is None
