"""Several processes train one model: the same bits on any number of them, and one that fails ends all."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data.grammar import corpus
from harness.training.checkpoint import load_checkpoint
from harness.training.metrics import read_metrics
from harness.training.runs import resume_run
from harness.training.tree_sum import tree_sum
from tests.harness.launched import NEW, ROOT, bits, ended, start_ranks, train_alone, train_ranks

pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

NANO = "--preset nano --n-layer 2 --d-model 32 --n-head 2 --context-length 32 --dropout 0.1 --clip 0.5"
MODERN = "--preset modern --n-layer 2 --d-model 32 --d-ff 48 --n-head 4 --context-length 32 --clip 0.5"
SETTINGS = "--batch-size 16 --accumulate 4 --steps 20 --eval-interval 7 --learning-rate 1e-2 --seed 3"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in corpus()[:300]), newline="")
    return path


def test_the_order_of_a_tree():
    """Neighbours first, then neighbouring pairs: what 2^k ranks have added up are its subtrees."""

    def add(one, other):
        return f"({one}{other})"

    sums = {count: tree_sum("abcdefgh"[:count], add) for count in range(1, 9)}
    assert sums[1] == "a"
    assert sums[3] == "((ab)c)"
    assert sums[7] == "(((ab)(cd))((ef)g))"
    assert sums[8] == "(((ab)(cd))((ef)(gh)))"
    for ranks in (1, 2, 4, 8):
        shares = [
            tree_sum("abcdefgh"[rank * 8 // ranks : (rank + 1) * 8 // ranks], add) for rank in range(ranks)
        ]
        assert tree_sum(shares, add) == sums[8]


def test_few_sums_exist_at_once():
    held, most = 0, 0

    def parts():
        nonlocal held, most
        for _ in range(64):
            held += 1
            most = max(most, held)
            yield 1

    def add(one, other):
        nonlocal held
        held -= 1
        return one + other

    assert tree_sum(parts(), add) == 64
    assert most == 7


def test_numpy_adds_up_micro_batches_in_the_tree(text, tmp_path):
    """Gradients of eight micro-batches are the tree's sum of the gradients of each, bit for bit."""
    from contract.presets import preset
    from harness.training.backend import open_backend

    config = preset("nano", vocab_size=11, n_layer=1, d_model=16, n_head=2, context_length=8)
    rows = np.random.default_rng(0).integers(11, size=(8, 9))
    tokens, targets = rows[:, :-1], rows[:, 1:]
    backend = open_backend("numpy", config, threads=1, seed=1)
    backend.loss_and_gradients(tokens, targets, step=0, accumulate=8)
    found = backend._gradients.flat.copy()
    alone = open_backend("numpy", config, threads=1, seed=1)

    def gradients():
        for row in range(8):
            alone.loss_and_gradients(tokens[row : row + 1], targets[row : row + 1], step=0, accumulate=1)
            yield alone._gradients.flat / np.float32(8)

    wanted = tree_sum(gradients(), np.add)
    np.testing.assert_array_equal(found, wanted)
    in_order = sum(list(gradients())[1:], next(gradients()))
    assert (found != in_order).any()


@pytest.mark.parametrize(("argument", "code", "said"), [("--help", 0, "Usage: "), ("info", 2, "error: ")])
def test_a_rank_ends_at_once(argument, code, said):
    """What happens to an interpreter that ends, here an abort, does not happen to it; all that it said is there."""
    script = "import atexit, os; atexit.register(os.abort); import cli; cli.run()"
    result = subprocess.run(
        [sys.executable, "-c", script, argument],
        cwd=ROOT, env=os.environ | {"WORLD_SIZE": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == code
    assert said in (result.stderr if code else result.stdout)


def until(done, seconds=60):
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def test_a_process_that_is_killed_costs_no_bit(run_cli, text, tmp_path):
    """The leader says so, what was saved stays, and on fewer processes the run ends as it would have on one."""
    common = ["--text", text, *NANO.split(), *SETTINGS.split(), "--steps", "40"]
    train_alone(run_cli, *common, "--out", tmp_path / "straight")
    run = tmp_path / "run"
    processes = start_ranks(4, *common, "--out", run)
    until((run / "latest" / "config.json").exists)
    processes[3].kill()
    found = ended(processes)
    assert [code for code, _, _ in found] == [1, 1, 1, -9]
    assert found[0][2].splitlines()[-1] == (
        "error: another of the processes has ended without a word: it was killed, or its machine is gone; "
        "go on from the last checkpoint with --resume"
    )
    assert [said for _, *said in found[1:]] == [["", ""]] * 3
    assert load_checkpoint(run / "latest").step < 40
    said = train_ranks(2, "--resume", "--out", run, python=NEW)
    assert (
        "processes   2; one, or any that torchrun starts, give the same bits with --accumulate 4 --threads 1"
        in said
    )
    assert bits(run) == bits(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size"),
    [pytest.param(NANO, 8, marks=pytest.mark.endurance), (MODERN, 4)],  # 2 and 4 of nano: the test above
    ids=["nano", "modern"],
)
def test_the_same_bits_on_any_number_of_processes(run_cli, text, tmp_path, model, size):
    """Weights, moments and metrics after 20 steps of eight micro-batches."""
    common = ["--text", text, *model.split(), *SETTINGS.split(), "--accumulate", "8"]
    train_alone(run_cli, *common, "--out", tmp_path / "alone")
    train_ranks(size, *common, "--out", tmp_path / "shared")
    assert bits(tmp_path / "shared") == bits(tmp_path / "alone")


def losses(run):
    return np.array(
        [row[name] for row in read_metrics(run / "metrics.jsonl") for name in row if "loss" in name]
    )


@pytest.mark.parametrize(
    ("way", "dtype", "model", "size"),
    [
        ("--shard", "float64", NANO, 2),
        pytest.param(
            "--shard", "float32", f"{MODERN} --dropout 0.1 --freeze blocks.0", 4, marks=pytest.mark.endurance
        ),
        pytest.param("--overlap", "float32", MODERN, 4, marks=pytest.mark.slow),
    ],
    ids=["shard", "shard modern float32, a block frozen", "overlap modern float32"],
)
def test_other_ways_to_share_are_the_same_to_rounding(run_cli, text, tmp_path, way, dtype, model, size):
    """After 10 steps: weights to rounding in float64, losses in float32; their checkpoints are as any others."""
    common = ["--text", text, *model.split(), *SETTINGS.split(), "--steps", "10", "--dtype", dtype]
    train_alone(run_cli, *common, "--out", tmp_path / "whole")
    train_ranks(size, *common, way, "--out", tmp_path / "parts")
    whole, parts = (
        load_checkpoint(tmp_path / run / "latest", with_optimizer=True) for run in ("whole", "parts")
    )
    if dtype == "float64":
        found = {**parts.weights, **parts.optimizer}
        for name, weight in (*whole.weights.items(), *whole.optimizer.items()):
            np.testing.assert_allclose(found[name], weight, rtol=0, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=0, atol=1e-6)
    trainer = resume_run(tmp_path / "parts", training={"steps": 11}, backend="numpy")
    assert trainer.train().step == 11


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.endurance),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_torchrun_that_is_interrupted_saves_once(text, tmp_path, way):
    """A terminal's Ctrl-C reaches every process, and torchrun passes it on; SIGTERM comes from torchrun alone."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "cli.py",
        "train",
        "--text",
        text,
    ]
    command += ["--backend", "torch", *NANO.split(), *SETTINGS.split(), "--steps", "5000", "--out", run]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until((run / "latest" / "config.json").exists)
        (os.killpg if way == signal.SIGINT else os.kill)(process.pid, way)
        _, said = process.communicate(timeout=60)
    assert said.count("stopping after this step to save a checkpoint") == 1
    [stopped] = re.findall(r"^stopped at step (\d+); continue with: ", said, re.MULTILINE)
    assert load_checkpoint(run / "latest", with_optimizer=True).step == int(stopped) < 5000


@pytest.mark.parametrize(
    ("size", "flags", "words"),
    [
        (
            2,
            ["--accumulate", "3", "--batch-size", "6"],
            ["2 processes cannot share the 3 micro-batches", "start 1 of"],
        ),
        (2, ["--backend", "numpy"], ["torchrun started 2 processes", "--backend torch", "add it"]),
        (2, ["--find-rate"], ["--find-rate is of one process", "leave torchrun out"]),
        (1, ["--shard"], ["--shard is of several processes", "torchrun"]),
    ],
    ids=["micro-batches", "numpy", "find-rate", "shard"],
)
def test_one_process_says_what_is_wrong(text, tmp_path, size, flags, words):
    (code, out, said), *others = ended(start_ranks(size, "--text", text, "--out", tmp_path / "run", *flags))
    assert (code, out) == (2, "")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert [each[1:] for each in others] == [("", "")] * (size - 1)
    assert not (tmp_path / "run").exists()
