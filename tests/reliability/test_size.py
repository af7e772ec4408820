"""Size and time: a gigabyte of text, a batch that cannot fit, twenty thousand steps."""

import re
import subprocess
import sys
import time
from statistics import median

import pytest
from processes import ROOT, SMALL, assert_one_line, command, run

from data.grammar import corpus
from harness.training.machine import peak_memory
from harness.training.runs import prepare

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs Linux (the figures are its kernel's)"
)


def taken_by(*arguments) -> tuple[int, float, str]:
    """returns: the largest memory of a command in bytes, its seconds, and what it said"""
    # The process between keeps the size of this one out of the figure.
    program = (
        "import resource, subprocess, sys\n"
        "result = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "print(result.stderr, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(result.returncode)\n"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", program, *command(*arguments)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1]) << 10, time.monotonic() - started, result.stderr


def write_text(path, megabytes: float):
    block = "".join(f"{sentence}\n" for sentence in corpus()).encode()[: 10**6]
    with path.open("wb") as file:
        for _ in range(round(megabytes)):
            file.write(block)


@linux
@pytest.mark.parametrize(
    ("megabytes", "tokenizer"),
    [
        pytest.param(16, "bytes", marks=pytest.mark.endurance),
        pytest.param(1000, "bytes", marks=pytest.mark.endurance),
        pytest.param(1000, ROOT / "data" / "tense.tiktoken", marks=pytest.mark.endurance),
    ],
    ids=str,
)
def test_a_large_text_in_little_memory(tmp_path, megabytes, tokenizer, figure):
    """A text is prepared and trained on for 50 steps within 500 MB above what the model takes."""
    write_text(tmp_path / "text.txt", megabytes)
    memory, seconds, _ = taken_by(
        "prepare", tmp_path / "text.txt", "--tokenizer", tokenizer, "--out", tmp_path / "tokens.bin"
    )
    assert memory < 500e6
    name = getattr(tokenizer, "name", tokenizer)
    figure(
        f"{megabytes} MB prepared, {name}: {seconds:.1f} s, {1e3 * seconds / megabytes:.0f} ms a MB, "
        f"{memory / 1e6:.0f} MB"
    )
    (tmp_path / "text.txt").unlink()
    flags = (*SMALL, "--steps", 50, "--eval-interval", 25)
    memory, seconds, said = taken_by(
        "train", "--text", tmp_path / "tokens.bin", "--out", tmp_path / "run", *flags
    )
    model = 1e6 * float(re.search(r"about ([\d,]+) MB", said)[1].replace(",", ""))
    assert memory < model + 500e6
    figure(
        f"{megabytes} MB trained on for 50 steps, {name}: {memory / 1e6:.0f} MB, {model / 1e6:.0f} of them the model's"
    )


@pytest.mark.endurance
def test_time_for_a_megabyte_is_flat(tmp_path, figure):
    """Preparing takes as long a megabyte for a small text as for a large one, but for 10 ms to write the files."""
    cost = {}
    for megabytes in (1, 10, 100, 1000):
        write_text(tmp_path / "text.txt", megabytes)
        seconds = []
        for _ in range(3 if megabytes == 1000 else 5):
            started = time.perf_counter()
            prepare(tmp_path / "text.txt", "bytes", tmp_path / "tokens.bin", overwrite=True)
            seconds.append(time.perf_counter() - started)
        cost[megabytes] = 1e3 * median(seconds) / megabytes
        figure(f"{megabytes} MB prepared: {cost[megabytes]:.1f} ms a MB")
    for megabytes in (1, 100, 1000):
        assert cost[megabytes] < 1.5 * cost[10] + 10 / megabytes


def test_a_batch_that_cannot_fit(tmp_path, text):
    """GPT-2's vocabulary with a huge batch is refused before the first step, with what would fit."""
    ranks = tmp_path / "none"
    flags = ("--preset", "gpt2", "--batch-size", 4096, "--out", ranks)
    result = run("train", "--text", text, "--tokenizer", ROOT / "data" / "tense.tiktoken", *flags)
    assert_one_line(result, "training takes about", "and this process may use", "with --accumulate")
    assert not ranks.exists()
    parts = re.search(r"with --accumulate (\d+)", result.stderr)[1]
    assert 4096 % int(parts) == 0


SOAK = """
import os, sys, threading, time
import numpy as np
from pathlib import Path
from statistics import median
from harness.training.runs import start_run

out, text, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
trainer = start_run(
    out, text=text, preset_name="nano",
    overrides={"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 8, "dropout": 0.1},
    training={"steps": steps, "batch_size": 4, "accumulate": 2, "eval_interval": steps // 40}, threads=2,
)
cost, states = np.empty(steps), []  # no list, which would grow itself
since = time.process_time()
square = np.ones((64, 64), np.float32)

def fixed_work():
    for _ in range(40):
        np.tanh(square @ square)

def state():
    lines = Path("/proc/self/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return memory, len(os.listdir("/proc/self/fd")), threading.active_count()

def report(progress):
    global since
    # Of the CPU, in units of a fixed piece of work just after: other programs on the machine make both slower.
    now = time.process_time()
    fixed_work()
    after = time.process_time()
    cost[progress.step - 1], since = (now - since) / (after - now), after
    if progress.step % (steps // 20) == 0:
        states.append(state())

trainer.report = report
trainer.train()
tenth = steps // 10
print(*(value for each in (states[4], states[-1]) for value in each))
print(median(cost[tenth : 2 * tenth]), median(cost[-tenth:]))
"""


@linux
@pytest.mark.parametrize(
    "steps", [pytest.param(1200, marks=pytest.mark.slow), pytest.param(20_000, marks=pytest.mark.endurance)]
)
def test_soak(tmp_path, text, steps, figure):
    """Many steps later a run takes the same memory, files, threads and time a step, checkpoints on the way."""
    result = subprocess.run(
        [sys.executable, "-c", SOAK, tmp_path / "run", text, str(steps)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = (line.split() for line in result.stdout.splitlines()[-2:])
    memory, files, threads, later_memory, later_files, later_threads = map(int, first)
    early, late = map(float, second)
    figure(
        f"{steps} steps: memory {memory / 1e3:.1f} to {later_memory / 1e3:.1f} MB, {files} files and {threads} threads "
        f"to {later_files} and {later_threads}, {early:.2f} to {late:.2f} units of CPU a step"
    )
    assert (later_files, later_threads) == (files, threads)
    assert later_memory < 1.01 * memory
    assert late < (1.05 if steps >= 20_000 else 1.5) * early


@linux
def test_this_process_is_measured_at_all():
    """The figures above are not zeros."""
    assert peak_memory() > 1e7
