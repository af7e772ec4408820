"""Processes that train one model together, as `torchrun` starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from harness.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]


TRAIN = ("train", "--backend", "torch")


def start_ranks(size: int, *arguments, command=TRAIN, python=(sys.executable,)) -> list[subprocess.Popen]:
    """A command, by default `train`, in `size` processes of a thread each, with their output.

    python: what starts `cli.py`
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*python, "cli.py", *command, "--threads", "1", *map(str, arguments)]
    whole = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return [
        subprocess.Popen(
            command, env=os.environ | whole | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, **pipes
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen], seconds: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each, at the latest after so many seconds."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def train_ranks(size: int, *arguments) -> str:
    """Train to the end. returns: what the leader said; the others say nothing"""
    (code, _, said), *others = ended(start_ranks(size, *arguments))
    assert code == 0, said
    assert others == [(0, "", "")] * (size - 1), others
    return said


def train_alone(run_cli, *arguments):
    """Train to the end in this process, with as many threads as a rank has."""
    code, _, said = run_cli(*TRAIN, "--threads", "1", *arguments)
    assert code == 0, said


def bits(run):
    """All that a run ends with: weights, moments and metrics."""
    checkpoint = load_checkpoint(run / "latest", with_optimizer=True)
    tensors = dict(checkpoint.weights) | dict(checkpoint.optimizer)
    return {name: value.tobytes() for name, value in tensors.items()}, (run / "metrics.jsonl").read_text()
