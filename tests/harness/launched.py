"""Processes that train one model together, as `torchrun` starts them."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from harness.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]


TRAIN = ("train", "--backend", "torch")
NEW = (sys.executable,)  # a process that imports everything itself


class Forked:
    """A command line in a process that is forked from one with PyTorch imported, which takes longer than a small
    training does. It has of `subprocess.Popen` what is used here.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["torch._dynamo", "torch.distributed", "cli", "harness.training.shards"]
        )
        self._folder = TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        self._process = context.Process(target=_run, args=(arguments, environment, self._outputs))
        # PyTorch reads it when it is imported, before which a rank sets it.
        with patch.dict(os.environ, {"TORCH_CPP_LOG_LEVEL": "ERROR"}):
            self._process.start()
        self.kill, self.pid = self._process.kill, self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("cli.py", timeout)
        with self._folder:
            return tuple(path.read_text(encoding="utf-8") for path in self._outputs)


def _run(arguments: list[str], environment: dict[str, str], outputs: list[Path]):
    """The life of a forked process."""
    import cli

    os.chdir(ROOT)
    os.environ |= environment
    for number, path in enumerate(outputs, start=1):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["cli.py", *arguments]
    sys.exit(cli.main())


def start_ranks(size: int, *arguments, command=TRAIN, python=None) -> list[Forked | subprocess.Popen]:
    """A command, by default `train`, in `size` processes of a thread each, with their output.

    python: what starts `cli.py`, such as `NEW`; None for what is quickest
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*command, "--threads", "1", *map(str, arguments)]
    whole = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [whole | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    if (
        python is None and sys.platform == "linux"
    ):  # elsewhere a process with threads had better not be forked
        return [Forked(arguments, environment) for environment in ranks]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    command = [*(python or NEW), "cli.py", *arguments]
    return [subprocess.Popen(command, env=os.environ | environment, **pipes) for environment in ranks]


def ended(processes: list[Forked | subprocess.Popen], seconds: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each, at the latest after so many seconds."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def train_ranks(size: int, *arguments, python=None) -> str:
    """Train to the end. returns: what the leader said; the others say nothing"""
    (code, _, said), *others = ended(start_ranks(size, *arguments, python=python))
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
