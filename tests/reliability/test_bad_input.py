"""Input that nobody hoped for: any value for any flag, and texts from everywhere."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from processes import SMALL, run

import cli

# Flags of each command with what must stand beside them for a quick end.
COMMANDS = {
    "train": (
        ["train", "--text", "text.txt", "--out", "new", "--steps", "1", *SMALL],
        ["--n-layer", "--n-head", "--d-model", "--d-ff", "--context-length", "--activation", "--position", "--dropout",
         "--batch-size", "--accumulate", "--learning-rate", "--min-learning-rate", "--warmup-steps", "--weight-decay",
         "--beta1", "--beta2", "--clip", "--eval-interval", "--seed", "--dtype", "--backend", "--threads", "--preset",
         "--tokenizer", "--device", "--from", "--epochs"],
    ),
    "generate": (
        ["generate", "run", "--prompt", "The", "--max-new-tokens", "2"],
        ["--temperature", "--top-k", "--top-p", "--seed", "--num-samples", "--backend", "--threads", "--prompt"],
    ),
    "evaluate": (["evaluate", "run"], ["--batch-size", "--stride", "--text", "--backend", "--threads"]),
    "prepare": (["prepare", "text.txt", "--out", "new.bin"], ["--validation-fraction", "--tokenizer"]),
    "tokenizer": (["tokenizer", "train", "text.txt", "--out", "new.tiktoken"], ["--vocab-size"]),
    "info": (["info", "run"], ["--json", "--wings"]),
    "export": (["export", "run", "--out", "new"], ["--format"]),
}  # fmt: skip
VALUES = st.one_of(
    st.integers(-(2**70), 8).map(str),
    st.integers(2**40, 2**80).map(str),  # too large for anything; those between might train for hours
    st.floats(max_value=2).map(str),
    st.sampled_from(
        ["", " ", "-", "--", "nan", "inf", "-inf", "1e999", "0x10", "１", "1_0", "None", "true", "..", "*"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)


@pytest.fixture(scope="module")
def place(text, tmp_path_factory):
    """A folder with a text and a trained run."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_bytes(text.read_bytes()[:4000])
    result = run("train", "--text", "text.txt", "--out", "run", *SMALL, "--steps", 2, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("count", [120, pytest.param(2000, marks=pytest.mark.endurance)])
def test_any_value_of_any_flag(place, monkeypatch, capsys, count, figure):
    """It works, or is one line on stderr with code 1 or 2 and no file has changed."""
    monkeypatch.chdir(place)
    before = fingerprint(place)
    outcomes = dict.fromkeys((0, 1, 2), 0)

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip
    @given(command=st.sampled_from(sorted(COMMANDS)), data=st.data())
    def try_one(command, data):
        arguments, flags = COMMANDS[command]
        flag, value = data.draw(st.sampled_from(flags)), data.draw(VALUES)
        # A million samples are fine, and written group after group.
        assume(flag != "--num-samples" or not value.isdecimal() or int(value) < 10)
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments, f"{flag}={value}"])
        code = cli.main()
        _, err = capsys.readouterr()
        after = fingerprint(place)
        for path in place.glob("new*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert code in outcomes, (sys.argv, err)
        outcomes[code] += 1
        assert "Traceback" not in err
        assert "Warning" not in err, (sys.argv, err)
        if code:
            assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, (
                sys.argv,
                err,
            )
            # A run whose numbers went bad had been started.
            assert after == before or "no longer finite" in err, (sys.argv, err)

    try_one()
    assert outcomes[2] > count / 10
    figure(
        f"{sum(outcomes.values())} values of flags: {outcomes[1] + outcomes[2]} refused in one line, {outcomes[0]} fine"
    )


# Texts

LINE = "The baby is sleeping.\n"
STRANGE = {
    "right to left": "שלום עולם. مرحبا بالعالم.\n" * 200,
    "combining characters": "e\u0301 a\u0308 n\u0303 \u0928\u0940 \u1100\u1161\u11a8 z\u0351\u0323\u0302\n"
    * 300,
    "emoji and rare planes": "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 \U0001f1fa\U0001f1f8 \U00020000 \U0010fffd\n"
    * 200,
    "special tokens of GPT-2": "<|endoftext|> is text. <|fim_prefix|>\n" * 200,
    "Windows line ends": LINE.replace("\n", "\r\n") * 200,
    "old Mac line ends": LINE.replace("\n", "\r") * 200,
    "one line": LINE.strip() * 400,
    "every token the same": "a" * 4000,
    "white space alone": " \t\n" * 1000,
    "a byte order mark": "\ufeff" + LINE * 200,
    "control characters": "\x01\x07\x1b[31m\x7f\u0085\u2028\u202e\n" * 300,
}
REFUSED = {
    "a NUL byte": (b"The baby\0 is sleeping.\n", "binary file"),
    "a lone surrogate": (b"The \xed\xa0\x80 baby", "not UTF-8"),
    "an overlong form": (b"The \xc0\xaf baby", "not UTF-8"),
    "half a character": ("é".encode()[:1], "not UTF-8"),
    "an empty line only": (b"\n", "tokens"),
    "nothing": (b"", "the file is empty"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "the file is empty"),
}


@pytest.mark.parametrize("tokenizer", ["bytes", "data/tense.tiktoken"])
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_texts(run_cli, tmp_path, kind, tokenizer):
    """They are prepared to the byte, trained on, evaluated and continued."""
    from data.prepare import open_tokens
    from data.tokenizers import load_ranks, token_bytes

    root = Path(__file__).parents[2]
    source = tmp_path / "text.txt"
    source.write_text(STRANGE[kind], encoding="utf-8", newline="")
    name = tokenizer if tokenizer == "bytes" else root / tokenizer
    code, out, err = run_cli("prepare", source, "--tokenizer", name, "--out", tmp_path / "tokens.bin")
    assert code == 0, err
    corpus = open_tokens(tmp_path / "tokens.bin")
    pieces = token_bytes(load_ranks(tmp_path / "tokens.tiktoken"))
    tokens = [*corpus.train[:].tolist(), *corpus.validation[:].tolist()]
    assert b"".join(pieces[token] for token in tokens).decode() == STRANGE[kind].removeprefix("\ufeff")

    folder = tmp_path / "run"
    code, out, err = run_cli(
        "train", "--text", tmp_path / "tokens.bin", "--out", folder, *SMALL, "--steps", 3
    )
    assert code == 0, err
    code, out, err = run_cli("evaluate", folder, "--text", source, "--json")
    assert code == 0, err
    assert json.loads(out)["tokens"] == len(tokens) - 1


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_texts(tmp_path, kind):
    """What is no text is one line, and leaves nothing behind."""
    content, words = REFUSED[kind]
    (tmp_path / "text.txt").write_bytes(content)
    result = run("train", "--text", tmp_path / "text.txt", "--out", tmp_path / "run", *SMALL)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.endurance
@pytest.mark.parametrize("tokenizer", ["bytes", "data/tense.tiktoken"])
def test_a_hundred_megabytes_on_one_line(tmp_path, tokenizer):
    """A line of 100 MB is like any other text."""
    source = tmp_path / "line.txt"
    with source.open("w") as file:
        for _ in range(100):
            file.write("The baby is sleeping, and nobody presses return. " * 21400)
    name = tokenizer if tokenizer == "bytes" else Path(__file__).parents[2] / tokenizer
    result = run("prepare", source, "--tokenizer", name, "--out", tmp_path / "tokens.bin")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "tokens.json").read_text())["text_bytes"] == source.stat().st_size
