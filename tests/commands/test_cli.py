"""The command line as a person uses it: every command, every flag, and what goes where."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
from safetensors.numpy import load_file

import cli
from contract.errors import UserError
from data.grammar import corpus
from data.prepare import open_tokens
from data.tokenizers import open_tokenizer
from harness.training.checkpoint import load_checkpoint
from harness.training.evaluation import Evaluation

ROOT = Path(__file__).parents[2]
SMALL = (
    "--preset nano --n-layer 1 --n-head 2 --d-model 16 --context-length 8 --batch-size 4 --eval-interval 5"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of four hundred sentences."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in corpus()[:400]), newline="")
    return path


@pytest.fixture
def succeed(run_cli):
    """The same for what must go well: stdout and stderr."""

    def run(*arguments):
        code, out, err = run_cli(*arguments)
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def train(succeed, text, tmp_path):
    """A function that trains a small run: its folder, stdout and stderr."""

    def train(flags="--steps 5", name="run"):
        folder = tmp_path / name
        return folder, *succeed("train", "--text", text, "--out", folder, *SMALL.split(), *flags.split())

    return train


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A small run that several tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "cli.py", "train", "--text", text, "--out", folder, *SMALL.split()]
    command += ["--steps", "30", "--eval-interval", "15"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return folder, result


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def config(folder: Path) -> dict:
    return json.loads((folder / "latest" / "config.json").read_text())


# Start-up


def test_help_is_fast():
    """`--help` answers in half a second of CPU time, whatever else the machine does; the best of five.

    Windows tells no CPU time of a child and gets by with 0.
    """
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "cli.py", "--help"], cwd=ROOT, capture_output=True, check=True)
        after = os.times()
        times.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(times) < 0.5


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
        ("generate", ["start a new line", "all", "one per CPU"]),
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


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs Linux or macOS (Windows has no getrusage)")
@pytest.mark.parametrize("tokenizer", ["bytes", "data/tense.tiktoken"])
def test_a_large_text_in_little_memory(tmp_path, tokenizer):
    """20 MB are prepared within 130 MB, Python included, to the tokens that encoding a part at once gives."""
    text, out = tmp_path / "large.txt", tmp_path / "large.bin"
    with text.open("wb") as file:
        file.writelines(varied_text(20_000_000))
    command = [sys.executable, "cli.py", "prepare", text, "--tokenizer", tokenizer, "--out", out]
    result = subprocess.run(
        [sys.executable, "-c", PEAK_OF, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 130e6
    tokens = open_tokens(out)
    assert tokens.info.text_bytes == text.stat().st_size
    with text.open("rb") as file:
        beginning = file.read(5_000_000).rpartition(b"\n")[0].decode()
    path = tokenizer if tokenizer == "bytes" else ROOT / tokenizer
    wanted = open_tokenizer(path, text).encode_ordinary(beginning)
    np.testing.assert_array_equal(tokens.train[: len(wanted)], wanted)
    for path in (text, out):  # pytest keeps the folders of the last runs
        path.unlink()


# Training


def test_what_training_says(trained):
    """Before: parameters, tokens, steps, memory, threads. After: loss, perplexity, where things are, a sample."""
    folder, result = trained
    for words in ("parameters", "tokens to train on", "steps 0 to 30", "threads", "MB of memory at the peak"):
        assert words in result.stderr
    loss = metrics(folder)[-1]["validation_loss"]
    assert f"validation loss {loss:.4f} nats per token, perplexity {np.exp(loss):.3f}" in result.stderr
    assert "step     15  training loss" in result.stderr
    assert len(result.stdout) > 20  # the sample, alone
    assert "loss" not in result.stdout
    for name in ("latest", "best", "metrics.jsonl", "loss.png", "tokens.bin"):
        assert (folder / name).exists()


def test_no_bar_where_there_is_no_terminal(trained):
    """Piped output holds no escape codes and no bar."""
    for stream in (trained[1].stdout, trained[1].stderr):
        assert "\x1b" not in stream
        assert "\r" not in stream.replace("\r\n", "")
        assert "━" not in stream


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--n-layer 2", "n_layer", 2),
        ("--n-head 4", "n_head", 4),
        ("--d-model 24", "d_model", 24),
        ("--d-model 24", "d_ff", 96),
        ("--d-ff 20", "d_ff", 20),
        ("--context-length 12", "context_length", 12),
        ("--activation relu", "activation", "relu"),
        ("--position sinusoidal", "position", "sinusoidal"),
        ("--dropout 0.25", "dropout", 0.25),
    ],
)
def test_model_flags(train, flags, field, value):
    """A model flag goes over the preset and stands in the checkpoint."""
    folder, _, _ = train(f"--steps 1 {flags}")
    assert config(folder)["model"][field] == value


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--batch-size 3", "batch_size", 3),
        ("--accumulate 2", "accumulate", 2),
        ("--learning-rate 0.02", "learning_rate", 0.02),
        ("--min-learning-rate 0.0005", "min_learning_rate", 0.0005),
        ("--warmup-steps 7", "warmup_steps", 7),
        ("--weight-decay 0.3", "weight_decay", 0.3),
        ("--beta1 0.8", "beta1", 0.8),
        ("--beta2 0.9", "beta2", 0.9),
        ("--clip 0.5", "clip", 0.5),
        ("--eval-interval 2", "eval_interval", 2),
        ("--seed 5", "seed", 5),
        ("--dtype float64", "dtype", "float64"),
    ],
)
def test_training_flags(train, flags, field, value):
    """A training flag is what the run is told, and it changes the run."""
    folder, _, _ = train(f"--steps 4 --warmup-steps 2 {flags}")
    assert config(folder)["training"][field] == value
    usual, _, _ = train("--steps 4 --warmup-steps 2", "usual")
    assert metrics(folder) != metrics(usual)


def test_rates_of_the_schedule(train):
    """The rate climbs for the warm-up, reaches its peak, and ends near its minimum."""
    folder, _, _ = train("--steps 40 --learning-rate 0.01 --min-learning-rate 0.001 --warmup-steps 4")
    rates = [row["learning_rate"] for row in metrics(folder) if "loss" in row]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert max(rates) == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.001, rel=0.02)


def test_parts_and_threads_change_no_result(train):
    """Micro-batches and threads give the losses of the whole batch, but for rounding."""
    usual = losses(train("--steps 6 --dtype float64 --dropout 0.2 --threads 1")[0])
    for number, flags in enumerate(
        ("--accumulate 4 --threads 1", "--threads 2", "--threads 3 --accumulate 2")
    ):
        found = losses(train(f"--steps 6 --dtype float64 --dropout 0.2 {flags}", f"run-{number}")[0])
        assert found == pytest.approx(usual, rel=1e-12)


def test_a_schedule_is_explained(train, run_cli):
    """A warm-up longer than the training is said, and how the rate jumps where a resume names more steps."""
    folder, _, err = train("--steps 4 --warmup-steps 8 --learning-rate 1e-3")
    assert (
        "warm-up     8 steps exceed the training's 4: the learning rate only reaches 5.0e-04 of 1.0e-03"
        in err
    )
    folder, _, err = train("--steps 20 --learning-rate 1e-3", "usual")
    assert "warm-up " not in err
    assert "schedule " not in err
    code, _, err = run_cli("train", "--resume", "--out", folder, "--steps", "40")
    assert code == 0
    assert (
        "schedule    learning rate goes from 1.1e-04 up to 5.9e-04: the schedule now ends at step 40, at 1.0e-04"
        in err
    )
    code, _, err = run_cli("train", "--resume", "--out", folder, "--steps", "60", "--learning-rate", "1e-5")
    assert code == 0
    assert "goes from 1.0e-04 down to 3.4e-06: the schedule now ends at step 60, at 1.0e-06" in err


def test_no_clipping(train):
    """`--clip inf` is stored as what it means, in valid JSON."""
    folder, _, _ = train("--steps 1 --clip inf")
    assert config(folder)["training"]["clip"] is None


def test_a_final_evaluation(train, run_cli):
    """Where the last evaluation of training sees a part, the final one of more is announced and told by its size."""
    folder, _, err = train("--steps 2 --context-length 4 --eval-tokens 1000000")
    (row,) = [row for row in metrics(folder) if "final_validation_loss" in row]
    loss, tokens = row["final_validation_loss"], row["final_validation_tokens"]
    assert tokens > 1024
    assert f"step      2  training loss {metrics(folder)[1]['loss']:.4f}  validation loss " in err
    assert "(1,024 tokens)" in err
    assert f"final evaluation on {tokens:,} held-out tokens" in err
    assert (
        f"validation loss {loss:.4f} nats per token, perplexity {np.exp(loss):.3f}, "
        f"over all {tokens + 1:,} held-out tokens\n" in err
    )
    found = json.loads(run_cli("info", folder, "--json")[1])
    assert (found["final_validation_loss"], found["final_validation_tokens"]) == (loss, tokens)
    assert (found["validation_tokens"], found["training"]["eval_tokens"]) == (1024, 1000000)
    _, _, err = train("--steps 2 --context-length 4", "usual")
    assert "final evaluation" not in err
    assert f"over 1,024 of {tokens + 1:,} held-out tokens\n" in err


def test_a_plot_that_cannot_be_written(train, monkeypatch):
    """It is a line of talk, and the run ends well."""

    def fail(metrics, image):
        raise UserError("loss.png: no room")

    monkeypatch.setattr("harness.training.trainer.plot_metrics", fail)
    folder, out, err = train("--steps 2")
    assert f"could not draw the plot {folder / 'loss.png'}: loss.png: no room\n" in err
    assert f"\ncheckpoints {folder / 'latest'} and" in err
    assert out


def test_clipping_holds_the_norm(train):
    """A tiny limit changes the losses from the second step on, a huge one nothing; the norm before is logged."""
    usual = metrics(train("--steps 3 --clip 1e9 --weight-decay 0")[0])
    assert metrics(train("--steps 3 --clip inf --weight-decay 0", "none")[0]) == usual
    tiny = metrics(train("--steps 3 --clip 1e-9 --weight-decay 0", "tiny")[0])
    assert tiny[0] == usual[0]
    assert tiny[0]["gradient_norm"] > 0.1
    assert all(a["loss"] != b["loss"] for a, b in zip(tiny[1:3], usual[1:3], strict=True))


def test_threads_are_those_asked_for(train, monkeypatch):
    """`--threads` is what the run is told, and without it there is one per CPU."""
    monkeypatch.setattr("harness.training.backend.available_cpus", lambda: 5)
    assert "machine     3 threads" in train("--steps 1 --threads 3")[2]
    assert "machine     5 threads" in train("--steps 1", "usual")[2]


def test_the_seed_draws_the_weights(train):
    """One seed gives one set of weights, bit by bit; another gives others everywhere."""
    first, again, other = (
        load_file(train(f"--steps 1 --seed {seed}", f"run-{number}")[0] / "latest" / "model.safetensors")
        for number, seed in enumerate((7, 7, 8))
    )
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, again[name], name)
        if weight.ndim == 2:
            assert (weight != other[name]).all(), name


def test_float64_is_stored_as_float64(train):
    """`--dtype` is the type of the weights that are kept."""
    for dtype in ("float32", "float64"):
        folder, _, _ = train(f"--steps 1 --dtype {dtype}", dtype)
        weights = load_file(folder / "latest" / "model.safetensors")
        assert {weight.dtype.name for weight in weights.values()} == {dtype}


def test_a_text_without_line_breaks(succeed, tmp_path):
    """A run on one long line ends well, its sample begun with a symbol of the text."""
    text = tmp_path / "line.txt"
    text.write_text("the baby is sleeping and " * 40)
    out, err = succeed("train", "--text", text, "--out", tmp_path / "run", "--steps", "2", *SMALL.split())
    assert "trained 2 steps" in err
    assert set(out.rstrip("\n")) <= set(text.read_text())
    assert len(out) > 50


def test_a_loss_that_explodes(run_cli, text, tmp_path):
    """Where the loss is no longer finite the run ends with one line: no warnings, the folder as it was begun."""
    flags = "--steps 5 --learning-rate 1e30 --warmup-steps 0"
    command = ("train", "--text", text, "--out", tmp_path / "run", *SMALL.split(), *flags.split())
    code, out, err = run_cli(*command)
    assert (code, out) == (1, "")
    assert [line for line in err.splitlines() if "error" in line or "Warning" in line] == err.splitlines()[
        -1:
    ]
    assert "no longer finite" in err
    assert "a lower --learning-rate" in err


def test_epochs(train, text):
    """`--epochs` takes the place of `--steps`."""
    folder, _, err = train("--epochs 0.5 --eval-interval 500")
    steps = config(folder)["training"]["steps"]
    assert steps == pytest.approx(0.5 * 0.9 * text.stat().st_size / 8 / 4, rel=0.02)
    assert "0.5 epochs" in err


def test_overwrite(train, run_cli, text):
    """An old run is replaced when that is asked for."""
    folder, _, _ = train("--steps 3")
    train("--steps 2 --overwrite")
    assert len(losses(folder)) == 2


def test_the_default_folder_is_new(succeed, text, tmp_path, monkeypatch):
    """Without `--out` a run gets a folder that nobody has, named after its text."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        succeed("train", "--text", text, "--steps", "1", *SMALL.split())
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["sentences", "sentences-2"]


@pytest.mark.parametrize("out", [".", "new/folders/run", "../beside"])
def test_any_place_for_a_run(succeed, text, tmp_path, monkeypatch, out):
    """A run may go into the folder one stands in, or behind folders that are yet to be made."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    succeed("train", "--text", text, "--out", out, "--steps", "1", *SMALL.split())
    wanted = [
        ".lock",
        "best",
        "latest",
        "loss.png",
        "metrics.jsonl",
        "tokens.bin",
        "tokens.json",
        "tokens.tiktoken",
    ]
    assert sorted(path.name for path in (tmp_path / "here" / out).iterdir()) == wanted


def test_more_steps_on_resume(train, succeed):
    """`--resume` goes on, with more steps where they are given."""
    folder, _, _ = train("--steps 3")
    _, err = succeed("train", "--resume", "--out", folder, "--steps", "6")
    assert "steps 3 to 6" in err
    assert len(losses(folder)) == 6


@pytest.fixture(scope="module")
def straight(text, tmp_path_factory):
    """The command of a run without its folder, and the folder of one that was never interrupted."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    flags = f"{SMALL} --steps 1500 --dropout 0.1 --eval-interval 100".split()
    base = [sys.executable, "cli.py", "train", "--text", text, *flags]
    subprocess.run([*base, "--out", folder], cwd=ROOT, capture_output=True, check=True)
    return base, folder


@pytest.mark.skipif(
    os.name == "nt", reason="needs Linux or macOS (Windows sends no signal to one process alone)"
)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_stopping_by_signal(straight, tmp_path, name):
    """A signal saves and leaves with 130 and the command to go on; the run then ends as a straight one would."""
    base, straight_run = straight
    with subprocess.Popen(
        [*base, "--out", tmp_path / "run"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if line.startswith("step    100"):
                break
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    stopped = config(tmp_path / "run")["step"]
    assert 100 <= stopped < 1500
    assert f"stopped at step {stopped:,}; continue with: python cli.py train --resume --out" in err
    resume = [sys.executable, "cli.py", "train", "--resume", "--out", tmp_path / "run"]
    subprocess.run(resume, cwd=ROOT, capture_output=True, check=True)
    assert metrics(tmp_path / "run") == metrics(straight_run)
    for file in ("model.safetensors", "optimizer.safetensors"):
        wanted, found = (load_file(run / "latest" / file) for run in (straight_run, tmp_path / "run"))
        assert wanted.keys() == found.keys()
        for each, value in wanted.items():
            np.testing.assert_array_equal(found[each], value, each)


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
    assert "perplexity      inf" in succeed("evaluate", trained[0])[0]
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
