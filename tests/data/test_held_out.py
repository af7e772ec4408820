"""What is held out: the end, whole documents or blocks by a seed, another text; and what of it was trained on."""

import hashlib
import json

import numpy as np
import pytest

from contract.errors import UserError
from contract.schema import write_record
from data.grammar import corpus
from data.held_out import HeldOut
from data.overlap import CHUNK, shared_share
from data.prepare import info_path, open_prepared, open_tokens, prepare
from data.sources import Texts
from data.tokenizer_training import train_tokenizer
from data.tokenizers import encode, end_token
from tests.data.texts import one_line, write

NEW_FIELDS = ("files", "documents", "held_out", "held_out_parts", "held_out_seed", "overlap", "end_surprise")
LINES = [f"{number}: {sentence}\n" for number, sentence in enumerate(corpus()[:600])]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A JSONL of documents of different lengths."""
    texts = ["".join(LINES[n : n + 1 + n % 7]) for n in range(0, 600, 7)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    return write(tmp_path_factory.mktemp("stories") / "stories.jsonl", content), texts


def split(texts, out, tokenizer="bytes", **held_out):
    """The two parts of the tokens as text, and the token file's JSON."""
    info = prepare(texts, tokenizer, out, held_out=HeldOut(**held_out), overwrite=True)
    opened, tokenizer = open_prepared(out)
    assert opened.info == info
    return *(tokenizer.decode(part[:].tolist()) for part in (opened.train, opened.validation)), info


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_documents_are_whole_and_in_order(stories, tmp_path, fraction):
    """Each stands in one of the parts with the end that follows it, and the share is about what was asked for."""
    path, texts = stories
    *parts, info = split(path, tmp_path / "out.bin", fraction=fraction, way="documents", seed=3)
    found = [[text for text in part.split("<|endoftext|>") if text] for part in parts]
    assert sorted([*found[0], *found[1]]) == sorted(texts)
    assert all(sorted(part, key=texts.index) == part for part in found)
    assert abs(info.validation_tokens / info.tokens - fraction) <= 0.1 * fraction + 1e-9
    assert (info.documents, info.held_out, info.held_out_parts) == (len(texts), "documents", len(found[1]))
    assert info.held_out_seed == 3
    assert sum(part.count("<|endoftext|>") for part in parts) == len(texts) - 1


def test_the_seed_draws(stories, tmp_path):
    """The same seed the same documents, another one others; the default is to draw documents where there are some."""
    held_out = [split(stories[0], tmp_path / "out.bin", **way)[1] for way in ({}, {"seed": 0}, {"seed": 1})]
    assert held_out[0] == held_out[1] != held_out[2]


def test_the_model_s_beginning_moves_with_its_document(stories, tmp_path):
    """A published tokenizer's document begins with its own token in both parts, and ends with its own."""
    pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[dev]')")
    from tests.small_tokenizers import published

    ours = published("llama3")
    prepare(stories[0], ours, tmp_path / "out.bin", held_out=HeldOut(0.3))
    opened = open_tokens(tmp_path / "out.bin")
    begin, end, found = ours.begin, end_token(ours), []
    for part in (opened.train[:].tolist(), opened.validation[:].tolist()):
        assert part[0] == begin
        starts = [place for place, token in enumerate(part) if token == begin]
        assert all(part[place - 1] == end for place in starts[1:])
        found += [part[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(part)], strict=True)]
    wanted = [encode(ours, text).tolist() for text in stories[1]]
    assert sorted(each[:-1] if each[-1] == end else each for each in found) == sorted(wanted)


def test_blocks_come_from_everywhere(tmp_path):
    """Whole lines, from every fifth of a text, none lost; a text sorted by topic is held out fairly."""
    path = write(tmp_path / "text.txt", "".join(LINES * 5))
    *parts, info = split(path, tmp_path / "out.bin", way="blocks")
    assert sorted("".join(parts).splitlines()) == sorted("".join(LINES * 5).splitlines())
    assert info.held_out == "blocks"
    assert info.held_out_parts > 20
    assert abs(info.validation_tokens / info.tokens - 0.1) <= 0.006
    path = write(tmp_path / "sorted.txt", "".join(LINES))
    numbers = [
        int(line.split(":")[0]) for line in split(path, tmp_path / "out.bin", way="blocks")[1].splitlines()
    ]
    assert numbers == sorted(numbers)
    assert {number // 120 for number in numbers} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("length", [40, 300, 5000])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_short_texts_can_be_held_out_in_blocks(tmp_path, length, fraction):
    """Nothing is lost and something is left to train on."""
    text = "".join(LINES)[:length]
    *parts, info = split(
        write(tmp_path / "text.txt", text), tmp_path / "out.bin", way="blocks", fraction=fraction
    )
    assert sorted("".join(parts)) == sorted(text)
    assert 0.4 * fraction <= info.validation_tokens / length < 1


@pytest.mark.parametrize(("text", "fraction"), [("a", 0.1), ("ab", 0.1)])
def test_what_is_too_short_for_blocks(tmp_path, text, fraction):
    with pytest.raises(UserError) as error:
        split(write(tmp_path / "text.txt", text), tmp_path / "out.bin", way="blocks", fraction=fraction)
    one_line(error, f"no blocks make {100 * fraction:g} % of the text")


def test_few_long_documents(tmp_path):
    """Where none fits the share, the end is held out, unless documents were asked for."""
    paths = tuple(write(tmp_path / f"{n}.txt", "".join(LINES[n * 200 : n * 200 + 200])) for n in range(3))
    _, held, info = split(Texts(paths), tmp_path / "out.bin")
    assert (info.held_out, info.documents, info.held_out_parts) == ("end", 3, None)
    assert "".join(LINES).endswith(held)
    with pytest.raises(UserError) as error:
        split(Texts(paths), tmp_path / "out.bin", way="documents")
    one_line(error, "no documents make 10 % of the text: it has 3, the shortest with 3", "--held-out")
    short = write(tmp_path / "short.txt", "".join(LINES[:10]))  # too short to be held out alone
    assert split(Texts((short, *paths)), tmp_path / "out.bin")[2].held_out == "end"


def test_something_is_left_to_train_on(tmp_path):
    """Whatever share is asked for: of two documents one."""
    paths = tuple(write(tmp_path / f"{n}.txt", f"number {n}") for n in range(2))
    train, held, info = split(Texts(paths), tmp_path / "out.bin", way="documents", fraction=0.92)
    assert {train.replace("<|endoftext|>", ""), held.replace("<|endoftext|>", "")} == {"number 0", "number 1"}
    assert info.held_out_parts == 1


def test_a_text_of_its_own(tmp_path):
    """All of it is held out and nothing of the other; its symbols have tokens."""
    path, other = (
        write(tmp_path / "text.txt", "".join(LINES)),
        write(tmp_path / "other.txt", "Ça, non.\n" * 9),
    )
    train, held, info = split(path, tmp_path / "out.bin", text=other)
    assert (train, held) == ("".join(LINES), "Ça, non.\n" * 9)
    assert info.held_out == "other.txt"
    assert info.text_bytes == path.stat().st_size + other.stat().st_size
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.txt", "Oui.\n" * 20)
    write(folder / "b.md", "no")
    texts = Texts((folder,), patterns=("*.txt",))
    assert split(texts, tmp_path / "out.bin", text=other)[:2] == ("Oui.\n" * 20, "Ça, non.\n" * 9)
    assert split(texts, tmp_path / "out.bin", text=folder)[1] == "Oui.\n" * 20


def test_a_single_text_gives_the_bytes_of_earlier_versions(tmp_path):
    """Its JSON tells more; one that tells less opens as before."""
    path, out = write(tmp_path / "text.txt", "".join(LINES)), tmp_path / "out.bin"
    *_, info = split(path, out)
    assert info.train_tokens == 23_047
    wanted = "1ec5327117f9ad504ec4307d0c5f66b1165ad6f914802880da1768cf7227798d"
    assert hashlib.sha256(out.read_bytes()).hexdigest() == wanted
    fields = json.loads(info_path(out).read_text())
    earlier = {name: fields[name] for name in fields if name not in NEW_FIELDS}
    info_path(out).unlink()
    earlier.pop("checksum")
    write_record(info_path(out), earlier)
    opened = open_tokens(out)
    assert opened.info.documents is opened.info.overlap is opened.info.held_out is None
    assert len(opened.train) == 23_047


# --- overlap ---


def brute(tokens, at, length):
    """The share of the held-out part's passages, side by side, that the training part has."""
    train = {tuple(tokens[n : n + length]) for n in range(at - length + 1)}
    held = [tuple(tokens[n : n + length]) for n in range(at, len(tokens) - length + 1, length)]
    return sum(each in train for each in held) / len(held)


@pytest.mark.parametrize("bytes_per_token", [1, 4])
@pytest.mark.parametrize("kinds", [3, 50_000])
def test_overlap_is_what_counting_gives(tmp_path, bytes_per_token, kinds):
    """Whatever the tokens and their length, also across the edges of what is looked at at a time."""
    random = np.random.default_rng(kinds)
    tokens = random.integers(kinds, size=2 * CHUNK + 4000).astype("<u2")
    at, length = 2 * CHUNK, 50 // bytes_per_token + (bytes_per_token == 4)
    for place in (5, CHUNK - 20, 2 * CHUNK - 600):
        start = int(random.integers(at, len(tokens) - 600))
        tokens[start : start + 600] = tokens[place : place + 600]
    tokens[at + 1000 : at + 1500] = 0
    tokens.tofile(tmp_path / "tokens")
    wanted = brute(tokens.tolist(), at, length)
    with open(tmp_path / "tokens", "rb") as file:
        found = shared_share(file, tokens.dtype, at, len(tokens), bytes_per_token * len(tokens))
    assert 0.1 < wanted < 0.9
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["bytes", "ranks"])
def test_overlap_of_texts(tmp_path, kind):
    """None in lines that differ, all in a text that is there twice, and none to tell of where nothing is held out."""
    path, twice = write(tmp_path / "a.txt", "".join(LINES)), write(tmp_path / "b.txt", "".join(LINES * 2))
    tokenizer = "bytes" if kind == "bytes" else train_tokenizer(path, 500)
    assert split(path, tmp_path / "out.bin", tokenizer)[2].overlap < 0.02
    assert split(twice, tmp_path / "out.bin", tokenizer, fraction=0.4)[2].overlap > 0.95
    assert split(path, tmp_path / "out.bin", tokenizer, fraction=0)[2].overlap is None
