"""The command line as a person uses it: every command but `train`, and what goes where."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

import cli
from data.grammar import corpus
from data.prepare import open_tokens
from data.tokenizers import open_tokenizer
from harness.training.checkpoint import load_checkpoint
from harness.training.evaluation import Evaluation
from tests.commands.small_runs import SMALL, config, losses, metrics

ROOT = Path(__file__).parents[2]


# Start-up


def test_help_is_fast():
    """`--help` takes at most three times the CPU time that its libraries take to be imported; the best of five.

    Windows tells no CPU time of a child and gets by with 0.
    """

    def seconds(*arguments):
        before = os.times()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    libraries = min(seconds("-c", "import numpy, typer.main") for _ in range(5))
    assert min(seconds("cli.py", "--help") for _ in range(5)) <= 3 * libraries


def test_help_lists_the_commands(run_cli):
    """Help names every command; each command has help of its own; no arguments mean help."""
    code, out, _ = run_cli("--help")
    assert code == 0
    for command in ("prepare", "train", "generate", "evaluate", "info", "tokenizer"):
        assert command in out
        assert run_cli(command, "--help")[0] == 0
    assert "Commands" in "".join(run_cli()[1:])


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("prepare", ["TEXT with .bin"]),
        ("tokenizer train", ["TEXT-VOCAB_SIZE.tiktoken"]),
        ("train", ["data/tense.txt", "a new one in runs/", "1500", "one per CPU"]),
        ("generate", ["begin as the model does", "all", "one per CPU"]),
        ("evaluate", ["the run's held-out split"]),
    ],
)
def test_help_says_what_absence_means(run_cli, monkeypatch, command, defaults):
    """An option whose default is no number says in words what happens without it."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    _, out, _ = run_cli(*command.split(), "--help")
    for default in defaults:
        assert f"[default: {default}]" in out


def test_numpy_commands_leave_pytorch_alone(text, tmp_path):
    """Preparing, training, generating, evaluating and describing in NumPy never import torch."""
    program = (
        "import sys, cli\n"
        "def run(*arguments):\n"
        "    sys.argv = ['cli.py', *arguments]\n"
        "    assert cli.main() == 0, arguments\n"
        f"out = {str(tmp_path / 'run')!r}\n"
        f"run('prepare', {str(text)!r}, '--out', {str(tmp_path / 'tokens.bin')!r})\n"
        f"ranks = {str(tmp_path / 'ranks.tiktoken')!r}\n"
        f"run('tokenizer', 'train', {str(text)!r}, '--vocab-size', '260', '--out', ranks)\n"
        f"run('train', '--text', {str(text)!r}, '--out', out, '--steps', '2', *{SMALL.split()!r})\n"
        "run('generate', out)\n"
        "run('evaluate', out)\n"
        "run('info', out)\n"
        "print('torch' in sys.modules, file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines()[-1] == "False"


# Corpus


def test_prepare(succeed, text, tmp_path):
    """A text becomes a token file with JSON and ranks beside it, and `train` takes it."""
    out = tmp_path / "tokens.bin"
    _, err = succeed("prepare", text, "--out", out, "--validation-fraction", "0.2")
    info = json.loads(out.with_suffix(".json").read_text())
    assert info["text_bytes"] == info["tokens"] == text.stat().st_size
    assert info["validation_tokens"] / info["tokens"] == pytest.approx(0.2, abs=0.02)
    assert f"{info['tokens']:,} tokens" in err
    flags = ("--text", out, "--out", tmp_path / "run", "--steps", "3", *SMALL.split())
    succeed("train", *flags)
    assert len(losses(tmp_path / "run")) == 3


def test_tokenizer_train(succeed, text, tmp_path):
    """Ranks trained on a text have the size asked for, and a run with them the same vocabulary."""
    ranks = tmp_path / "ranks.tiktoken"
    succeed("tokenizer", "train", text, "--vocab-size", "300", "--out", ranks)
    assert len(ranks.read_bytes().splitlines()) == 300
    succeed("prepare", text, "--tokenizer", ranks, "--out", tmp_path / "tokens.bin")
    assert json.loads((tmp_path / "tokens.json").read_text())["tokenizer"]["vocab_size"] == 300
    flags = ("--tokenizer", ranks, "--out", tmp_path / "run", "--steps", "2", *SMALL.split())
    succeed("train", "--text", text, *flags)
    assert config(tmp_path / "run")["model"]["vocab_size"] == 300


# Linux hands a parent's peak on to its children, so this fresh process is what starts the program.
PEAK_OF = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def varied_text(size: int):
    """Blocks of text, `size` bytes and a little more in all: lines that differ, in several scripts, without end."""
    lines, written, number = corpus(), 0, 0
    while written < size:
        picked = np.random.default_rng(number).integers(len(lines), size=10_000)
        mixed = (f"{lines[i]}\r\n" if i % 9 else f"{number}: “{lines[i]}” — 我们去。{i}\n" for i in picked)
        block = "".join(mixed).encode()
        written, number = written + len(block), number + 1
        yield block


@pytest.mark.skipif(os.name == "nt", reason="needs Linux or macOS (Windows has no getrusage)")
@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(
            "bytes", marks=pytest.mark.endurance
        ),  # flat memory is a test of data/test_prepare.py, too
        pytest.param("data/tense.tiktoken", marks=pytest.mark.slow),
    ],
)
def test_a_large_text_in_little_memory(tmp_path, tokenizer):
    """8 MB are prepared within 130 MB, Python included, to the tokens that encoding a part at once gives."""
    text, out = tmp_path / "large.txt", tmp_path / "large.bin"
    with text.open("wb") as file:
        file.writelines(varied_text(8_000_000))
    command = [sys.executable, "cli.py", "prepare", text, "--tokenizer", tokenizer, "--out", out]
    result = subprocess.run(
        [sys.executable, "-c", PEAK_OF, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 130e6
    tokens = open_tokens(out)
    assert tokens.info.text_bytes == text.stat().st_size
    with text.open("rb") as file:
        beginning = file.read(2_000_000).rpartition(b"\n")[0].decode()
    path = tokenizer if tokenizer == "bytes" else ROOT / tokenizer
    wanted = open_tokenizer(path, text).encode_ordinary(beginning)
    np.testing.assert_array_equal(tokens.train[: len(wanted)], wanted)
    for path in (text, out):  # pytest keeps the folders of the last runs
        path.unlink()


# Generation


def test_generate(succeed, trained):
    """The prompt and its continuation go to stdout, nothing else; one seed gives one text."""
    command = ("generate", trained[0], "--prompt", "The baby", "--max-new-tokens", "20", "--seed", "3")
    out, err = succeed(*command)
    assert out.startswith("The baby")
    assert len(out) == len("The baby") + 20 + 1
    assert err == ""
    assert succeed(*command)[0] == out
    assert succeed(*command[:-1], "4")[0] != out


def test_greedy_needs_no_seed(succeed, trained):
    """Temperature 0 takes the likeliest token, as top-k 1 does; a tiny top-p too."""
    base = ("generate", trained[0], "--prompt", "The", "--max-new-tokens", "15")
    texts = {
        succeed(*base, *flags.split())[0]
        for flags in ("--temperature 0", "--temperature 0 --seed 9", "--top-k 1", "--top-p 1e-9 --seed 4")
    }
    assert len(texts) == 1


def test_several_samples(succeed, trained):
    """Samples differ, and each is the one that it is however many there are."""
    base = ("generate", trained[0], "--prompt", "The", "--max-new-tokens", "10")
    three = succeed(*base, "--num-samples", "3")[0]
    assert three.startswith(succeed(*base, "--num-samples", "2")[0])
    assert len(three) == 3 * (3 + 10 + 1)
    assert len({three[i : i + 14] for i in (0, 14, 28)}) == 3


def test_a_long_prompt_keeps_its_tail(succeed, trained):
    """Beyond the context only the end of a prompt counts, and stderr says so."""
    flags = ("--temperature", "0", "--max-new-tokens", "5")
    long, err = succeed("generate", trained[0], "--prompt", "The girls are sleeping.", *flags)
    assert "the prompt has 23 tokens; the model sees only the last 8 of them" in err
    assert long.startswith("The girls are sleeping.")
    short, err = succeed("generate", trained[0], "--prompt", "leeping.", *flags)
    assert err == ""
    assert long[23:] == short[8:]


def test_tokens_stream(trained):
    """The first of many hours' tokens are there long before the last."""
    command = [sys.executable, "cli.py", "generate", trained[0], "--max-new-tokens", "100000000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        patience = Timer(600, process.kill)
        patience.start()
        first = process.stdout.read(20)
        patience.cancel()
        process.kill()
    assert len(first) == 20


def test_a_token_is_written_as_it_comes(trained, monkeypatch):
    """Each token is written before the next one is drawn."""
    events = []
    decoding = importlib.import_module("contract.decoding")
    monkeypatch.setattr("sys.argv", ["cli.py", "generate", str(trained[0]), "--max-new-tokens", "4"])
    monkeypatch.setattr("commands.console.write", lambda piece: events.append(piece))
    sample = decoding.sample
    monkeypatch.setattr(
        decoding, "sample", lambda *args, **kwargs: events.append(sample) or sample(*args, **kwargs)
    )
    assert cli.main() == 0
    pieces = [event for event in events if event is not sample]
    assert [event is sample for event in events] == [False, *[True, False] * 4, False, False]
    assert all(len(piece) == 1 for piece in pieces[1:5])


@pytest.mark.skipif(os.name == "nt", reason="needs Linux or macOS (Windows has no head)")
def test_a_reader_that_has_enough(trained):
    """A closed pipe ends the program without a word."""
    command = f'"{sys.executable}" cli.py generate "{trained[0]}" --max-new-tokens 5000 | head -c 5'
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (len(result.stdout), result.stderr) == (5, "")


# Evaluation and description


def test_evaluate(succeed, trained, text):
    """Without a text it is the held-out split's loss, the one that training ended with."""
    found = json.loads(succeed("evaluate", trained[0] / "latest", "--json")[0])
    assert found["nats_per_token"] == pytest.approx(metrics(trained[0])[-1]["validation_loss"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(found["nats_per_token"]))
    assert found["bits_per_byte"] == pytest.approx(found["nats_per_token"] / np.log(2))  # a token is a byte
    other = json.loads(succeed("evaluate", trained[0], "--text", text, "--json", "--batch-size", "5")[0])
    assert other["tokens"] == text.stat().st_size - 1
    plain, err = succeed("evaluate", trained[0])
    assert f"{found['tokens']:,}" in plain
    assert err == ""


def test_json_has_no_infinity(succeed, trained, monkeypatch):
    """A number that is not finite, such as the perplexity of a hopeless model, is null for machines."""
    monkeypatch.setattr("harness.training.evaluation.evaluate", lambda *a, **k: Evaluation(float("nan"), 5))
    out, _ = succeed("evaluate", trained[0], "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (found["nats_per_token"], found["bits_per_byte"], found["tokens"]) == (None, None, 5)
    monkeypatch.setattr("harness.training.evaluation.evaluate", lambda *a, **k: Evaluation(1e6, 5))
    assert json.loads(succeed("evaluate", trained[0], "--json")[0])["perplexity"] is None
    assert "perplexity       inf" in succeed("evaluate", trained[0])[0]
    damaged = load_checkpoint(trained[0] / "latest")
    damaged.training["losses"] = [1.0, float("inf")]
    monkeypatch.setattr("harness.training.checkpoint.load_checkpoint", lambda folder: damaged)
    found = json.loads(succeed("info", trained[0], "--json")[0], parse_constant=pytest.fail)
    assert found["training"]["losses"] == [1.0, None]


def test_info_tells_the_flags(succeed, train):
    """What a run was given on the command line stands in `info --json`, for machines: one JSON object alone."""
    model = "--d-ff 24 --activation relu --position sinusoidal --dropout 0.25"
    folder, _, _ = train(f"--steps 1 --seed 11 --beta1 0.8 --clip 0.5 {model}")
    out, err = succeed("info", folder, "--json")
    found = json.loads(out)
    assert err == ""
    wanted = {"d_ff": 24, "activation": "relu", "position": "sinusoidal", "dropout": 0.25, "n_layer": 1}
    assert found["model"] | wanted == found["model"]
    assert found["training"] | {"seed": 11, "beta1": 0.8, "clip": 0.5} == found["training"]


def test_info(succeed, trained):
    """A checkpoint's model, tokenizer and training, for people and for machines."""
    found = json.loads(succeed("info", trained[0], "--json")[0])
    assert found["model"]["d_model"] == 16
    assert found["training"]["batch_size"] == 4
    assert found["tokenizer"]["name"] == "bytes"
    assert found["step"] in (15, 30)
    assert found["validation_tokens"] == metrics(trained[0])[-1]["validation_tokens"]
    assert found["final_validation_loss"] is None
    plain, _ = succeed("info", trained[0])
    assert f"{found['parameters']:,}" in plain
    assert "model.d_model" in plain
    assert re.search(rf"\nvalidation_tokens +{found['validation_tokens']:,}\n", plain)
