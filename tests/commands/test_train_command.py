"""`train` as a person uses it: every flag, what it says, how it stops and goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from contract.errors import UserError
from tests.commands.small_runs import SMALL, config, losses, metrics

ROOT = Path(__file__).parents[2]


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
        ("--schedule constant", "schedule", "constant"),
        ("--warmup-steps 7", "warmup_steps", 7),
        ("--freeze blocks.0", "freeze", "blocks.0"),
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
    assert f"step      2  training loss {losses(folder)[1]:.4f}  validation loss " in err
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
    assert "\nplot " not in err
    assert f"\ncheckpoints {folder / 'latest'} (step 2, validation loss " in err
    assert out


def test_clipping_holds_the_norm(train):
    """A tiny limit changes the losses from the second step on, a huge one nothing; the norm before is logged."""
    usual = metrics(train("--steps 3 --clip 1e9 --weight-decay 0")[0])
    assert metrics(train("--steps 3 --clip inf --weight-decay 0", "none")[0]) == usual
    tiny = metrics(train("--steps 3 --clip 1e-9 --weight-decay 0", "tiny")[0])
    assert tiny[:2] == usual[:2]  # the first evaluation and the first step
    assert tiny[1]["gradient_norm"] > 0.1
    assert all(a["loss"] != b["loss"] for a, b in zip(tiny[2:4], usual[2:4], strict=True))


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
    flags = f"{SMALL} --steps 600 --dropout 0.1 --eval-interval 50".split()
    base = [sys.executable, "cli.py", "train", "--text", text, *flags]
    subprocess.run([*base, "--out", folder], cwd=ROOT, capture_output=True, check=True)
    return base, folder


@pytest.mark.skipif(
    os.name == "nt", reason="needs Linux or macOS (Windows sends no signal to one process alone)"
)
@pytest.mark.parametrize(
    "name",
    [
        "SIGINT",
        pytest.param("SIGTERM", marks=pytest.mark.slow),
        pytest.param("SIGHUP", marks=pytest.mark.endurance),
    ],
)
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
            if line.startswith("step     50"):
                break
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    stopped = config(tmp_path / "run")["step"]
    assert 50 <= stopped < 600
    assert f"stopped at step {stopped:,}; continue with: python cli.py train --resume --out" in err
    resume = [sys.executable, "cli.py", "train", "--resume", "--out", tmp_path / "run"]
    subprocess.run(resume, cwd=ROOT, capture_output=True, check=True)
    assert metrics(tmp_path / "run") == metrics(straight_run)
    for file in ("model.safetensors", "optimizer.safetensors"):
        wanted, found = (load_file(run / "latest" / file) for run in (straight_run, tmp_path / "run"))
        assert wanted.keys() == found.keys()
        for each, value in wanted.items():
            np.testing.assert_array_equal(found[each], value, each)
