"""Training on texts as people have them: folders, packed files, JSONL, several at once, and what is held out."""

import gzip
import json
import re

import pytest

from data.grammar import corpus
from data.prepare import open_prepared
from harness.training.generation import encode_prompt, ends
from tests.commands.small_runs import SMALL

SENTENCES = [f"{sentence}\n" for sentence in corpus()[:400]]


@pytest.fixture
def texts(tmp_path):
    """A folder with two texts, a picture and a JSONL of documents that all end after "c"."""
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("".join(SENTENCES[:300]), newline="")
    (folder / "inner" / "b.txt.gz").write_bytes(gzip.compress("".join(SENTENCES[300:]).encode()))
    (folder / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "short.jsonl").write_text('{"text": "abc"}\n' * 300)
    return tmp_path


def test_prepare_a_folder(succeed, run_cli, texts, monkeypatch):
    """Named after the folder, in one token file; what is no text is told, and how to leave it out."""
    monkeypatch.chdir(texts)
    code, _, err = run_cli("prepare", "texts")
    assert code == 1
    assert "c.png: this looks like a picture" in err
    _, err = succeed("prepare", "texts", "--pattern", "*.txt", "--pattern", "*.gz")
    opened, tokenizer = open_prepared(texts / "texts.bin")
    assert tokenizer.decode([*opened.train[:], *opened.validation[:]]).replace(
        "<|endoftext|>", ""
    ) == "".join(SENTENCES)
    assert "documents: 2, from 2 files" in err


def test_prepare_says_what_is_held_out(succeed, texts):
    """Of documents how many and by which seed; what can be learnt by heart is a warning."""
    _, err = succeed("prepare", texts / "short.jsonl", "--held-out-seed", "5", "--validation-fraction", "0.2")
    assert re.search(
        r"held out: 60 documents, drawn by seed 5\nwarning: 100 % of the held-out text stands word", err
    )
    _, err = succeed("prepare", texts / "texts" / "a.txt", "--held-out", "blocks")
    assert re.search(r"held out: \d+ blocks, drawn by seed 0\n$", err)


def test_generation_ends_by_itself(succeed, texts):
    """Trained on documents, the model learns where one ends, and begins a new one without a prompt."""
    run = texts / "run"
    flags = "--steps 60 --learning-rate 2e-2 --eval-interval 60"
    _, err = succeed("train", "--text", texts / "short.jsonl", "--out", run, *SMALL.split(), *flags.split())
    assert re.search(r"^documents +300, from 1 file$", err, re.MULTILINE)
    assert re.search(r"^held out +\d+ documents, drawn by seed 0$", err, re.MULTILINE)
    assert re.search(r"^warning +100 % of the held-out text", err, re.MULTILINE)
    out, _ = succeed("generate", run, "--temperature", "0", "--max-new-tokens", "40")
    assert out.strip() == "abc"
    out, _ = succeed(
        "generate", run, "--prompt", "a", "--temperature", "0", "--ignore-eos", "--max-new-tokens", "7"
    )
    assert out.strip() == "abc<|endoftext|>abc<|endoftext|>"
    _, tokenizer = open_prepared(run / "tokens.bin")
    assert encode_prompt(tokenizer, None) == ends(tokenizer) == [tokenizer.n_vocab - 1]


def test_train_on_several_texts_and_evaluate(succeed, texts):
    """Each named or found in a folder; `evaluate` measures what the run has held out, a text of its own here."""
    run, other = texts / "run", texts / "other.txt"
    other.write_bytes(b"The farmer hid.\r\n" * 9)
    named = ("--text", texts / "texts" / "a.txt", "--text", texts / "texts" / "inner", "--newlines", "lf")
    succeed("train", *named, "--validation", other, "--out", run, *SMALL.split(), "--steps", "2")
    opened, tokenizer = open_prepared(run / "tokens.bin")
    assert tokenizer.decode(opened.train[:].tolist()) == "<|endoftext|>".join(
        ["".join(SENTENCES[:300]), "".join(SENTENCES[300:])]
    )
    out, _ = succeed("evaluate", run, "--json")
    found = json.loads(out)
    assert found["tokens"] == len("The farmer hid.\n" * 9) - 1
    _, err = succeed("train", "--resume", "--out", run, "--steps", "3")
    assert "trained 3 steps" in err


def test_tokenizer_train_on_documents(succeed, texts):
    """Its ranks have an end token, which then stands between documents."""
    ranks = texts / "docs.tiktoken"
    succeed("tokenizer", "train", texts / "short.jsonl", "--vocab-size", "259", "--out", ranks)
    succeed("prepare", texts / "short.jsonl", "--tokenizer", ranks, "--out", texts / "docs.bin")
    opened, tokenizer = open_prepared(texts / "docs.bin")
    assert tokenizer.n_vocab == 259
    assert tokenizer.decode(opened.train[:4].tolist()) == "abc<|endoftext|>abc<|endoftext|>"


def test_bits_per_byte_are_of_the_text(succeed, texts):
    """An end token costs bits and stands for no byte."""
    run = texts / "run"
    flags = "--steps 2 --held-out end"
    succeed("train", "--text", texts / "short.jsonl", "--out", run, *SMALL.split(), *flags.split())
    found = json.loads(succeed("evaluate", run, "--json")[0])
    opened, tokenizer = open_prepared(run / "tokens.bin")
    predicted = opened.validation[1:]
    text = int((predicted != tokenizer.n_vocab - 1).sum())
    assert text < len(predicted)
    wanted = found["nats_per_token"] * len(predicted) / 0.6931471805599453 / text
    assert found["bits_per_byte"] == pytest.approx(wanted)


def test_a_sorted_text_is_a_warning(succeed, texts):
    """Its end is held out, and unlike the rest; blocks are not, and so is a text in another order."""
    path = texts / "sorted.txt"
    path.write_text("".join(sorted(f"{sentence}\n" for sentence in corpus()[:3000])), newline="")
    _, err = succeed("prepare", path)
    assert re.search(
        r"\nwarning: the end of the text, which is held out, is \d\.\d times as hard to predict as", err
    )
    assert err.endswith("hold out parts from all over it with --held-out blocks\n")
    _, err = succeed("train", "--text", path, "--out", texts / "run", *SMALL.split(), "--steps", "1")
    assert re.search(r"^warning +the end of the text, which is held out", err, re.MULTILINE)
    _, err = succeed("prepare", path, "--held-out", "blocks", "--overwrite")
    assert "the end of the text" not in err
    path.write_text("".join(f"{sentence}\n" for sentence in corpus()[:3000]), newline="")
    _, err = succeed("prepare", path, "--overwrite")
    assert "warning" not in err


def test_evaluate_takes_what_train_takes(succeed, run_cli, texts):
    """Fields of JSONL, folders, several texts, folded line ends: the tokens are those that `prepare` makes of them."""
    run = texts / "run"
    named = ("--text", texts / "texts" / "a.txt", "--text", texts / "short.jsonl")
    succeed("train", *named, "--out", run, *SMALL.split(), "--steps", "2")
    (texts / "body.jsonl").write_text('{"id": 1, "body": "The farmer hid."}\n{"id": 2, "body": "Tom ran."}\n')
    out, _ = succeed(
        "evaluate", run, "--text", texts / "body.jsonl", "--field", "body", "--json", "--per-document"
    )
    found = json.loads(out)
    assert found["text"] == "body.jsonl"
    assert found["tokens"] == len("The farmer hid.") + 1 + len("Tom ran.") - 1
    assert [row["begins"] for row in found["per_document"]] == ["The farmer hid.", "Tom ran."]
    (texts / "texts" / "windows.txt").write_bytes(b"Tom ran.\r\n" * 3)
    patterns = ("--pattern", "windows.*", "--pattern", "*.gz", "--newlines", "lf")
    out, _ = succeed(
        "evaluate", run, "--text", texts / "texts", "--text", texts / "texts" / "a.txt", *patterns, "--json"
    )
    found = json.loads(out)
    assert found["text"] == "texts and 1 more"
    files = ["".join(SENTENCES[300:]), "Tom ran.\n" * 3, "".join(SENTENCES[:300])]
    assert found["tokens"] == sum(map(len, files)) + 2 - 1
    code, _, err = run_cli("evaluate", run, "--text", texts / "body.jsonl")
    assert code == 1
    assert "has no field 'text' (its fields: id, body); name the text's with --field" in err


@pytest.fixture
def chats(tmp_path):
    """A JSONL of conversations that all have one reply, to questions that cannot be foretold."""
    path = tmp_path / "chats.jsonl"
    message = '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "yes"}]}\n'
    path.write_text("".join(message % n for n in range(1000, 1400)), newline="")
    return path


def test_train_on_replies_and_reply(succeed, run_cli, chats, tmp_path):
    """The loss is of the replies alone, a sample begins with a question, and `--chat` ends after the reply."""
    run = tmp_path / "run"
    named = ("--text", chats, "--field", "messages", "--out", run, *SMALL.split())
    flags = "--context-length 32 --steps 120 --learning-rate 0.01 --eval-interval 60 --sample-every 120"
    _, err = succeed("train", *named, *flags.split())
    assert re.search(r"^replies +19 % of the tokens, and only they are learnt$", err, re.MULTILINE)
    assert re.search(r"step 120 +sample:\nUser: 1\d\d\d\?\nAssistant: yes\n", err.replace("    ", " "))
    found = json.loads(succeed("evaluate", run, "--json")[0])
    corpus, _ = open_prepared(run / "tokens.bin")
    assert found["tokens"] == corpus.info.validation_targets == 5 * 40
    assert found["nats_per_token"] < 0.01  # a question's digits alone would cost more
    out, _ = succeed("generate", run, "--chat", "1234?", "--temperature", "0")
    assert out == "yes\n"
    _, err = succeed("train", "--resume", "--out", run, "--steps", "121")
    assert "trained 121 steps" in err


def test_a_dry_run_shows_what_is_learnt(succeed, run_cli, chats, tmp_path, monkeypatch):
    """Token by token, after what a training would say; nothing is kept."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    flags = ("--field", "messages", *SMALL.split(), "--context-length", "32", "--steps", "7", "--dry-run")
    out, err = succeed("train", "--text", chats, *flags)
    assert re.search(r"^training +steps 0 to 7", err, re.MULTILINE)
    assert "nothing was trained; the first 200 tokens, + before those that are learnt" in err
    lines = out.splitlines()
    assert len(lines) == 200
    learnt = "".join(line.split(None, 2)[2].strip("'") for line in lines if line.startswith("+"))
    assert learnt.startswith(" yes<|endoftext|> yes<|endoftext|>")
    assert sorted(tmp_path.iterdir()) == before
    out, _ = succeed(
        "train", "--text", chats, "--field", "messages", *SMALL.split(), "--dry-run", "--dropout", "0.1"
    )
    assert len(out.splitlines()) == 200
    plain = tmp_path / "plain.txt"
    plain.write_text("".join(SENTENCES), newline="")
    out, _ = succeed("train", "--text", plain, *SMALL.split(), "--dry-run")
    assert all(line.startswith("+") for line in out.splitlines())


def test_conversations_without_replies_to_validate_on(run_cli, chats, tmp_path):
    flags = ("--field", "messages", "--validation-fraction", "0", "--out", tmp_path / "run", *SMALL.split())
    code, _, err = run_cli("train", "--text", chats, *flags)
    assert code == 1
    assert "tokens of replies to train on and 0 to validate on, and both parts need some" in err
    assert err.count("\n") == 1
