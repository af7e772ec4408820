"""The estimate of a training's memory against what processes take."""

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest

from contract.errors import UserError
from contract.presets import preset
from harness.training.memory import check_memory, estimate_memory
from harness.training.ranks import Sharing
from harness.training.settings import TrainingSettings
from tests.harness.launched import ROOT, ended, start_ranks

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

LARGE = "--preset nano --n-layer 6 --n-head 6 --d-model 384 --context-length 256"
# A process between this one and a command, which keeps this one's size out of its figure.
BETWEEN = (
    "import resource, subprocess, sys\n"
    "process = subprocess.run([sys.executable, *sys.argv[1:]], capture_output=True, text=True, check=True)\n"
    "print(process.stderr, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
)


def told(said: str) -> float:
    """The bytes that a training said that it would take."""
    (line,) = [line for line in said.splitlines() if "MB of memory at the peak" in line]
    return 1e6 * float(line.split("about ")[1].split(" MB")[0].replace(",", ""))


def measured(command) -> tuple[str, int]:
    """What a command wrote to stderr, and the bytes that it took at its peak."""
    between = [sys.executable, "-c", BETWEEN, *map(str, command)]
    result = subprocess.run(between, cwd=ROOT, capture_output=True, text=True, check=True)
    said, _, taken = result.stdout.rstrip().rpartition(" ")
    return said, int(taken)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux (the figure is its kernel's)")
@pytest.mark.parametrize(
    "flags",
    [
        "--backend numpy --preset nano --batch-size 12",
        "--backend torch --preset nano --batch-size 12",
        "--backend numpy",
        pytest.param("--backend torch", marks=pytest.mark.slow),
        "--backend numpy --preset nano --batch-size 12 --dropout 0.1 --dtype float64",
        pytest.param(
            "--backend torch --preset nano --dropout 0.1 --dtype float64", marks=pytest.mark.endurance
        ),
        pytest.param(
            "--backend torch --preset gemma-2-2b --n-layer 3 --d-model 64 --context-length 512 --batch-size 4",
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(f"--backend {backend} {shape} --batch-size 4", marks=mark)
            for backend, shape, mark in (
                ("numpy", LARGE, pytest.mark.slow),
                ("torch", LARGE, pytest.mark.endurance),
                ("numpy", "--preset gpt2 --context-length 64", pytest.mark.endurance),
            )
        ),
    ],
)
def test_memory_is_as_estimated(tmp_path, text, flags):
    """A training run takes what it said that it would, to a fifth; the second step's peak is every later one's."""
    short = tmp_path / "short.txt"  # the evaluations take the time, and no memory of their own
    short.write_text("".join(text.read_text().splitlines(keepends=True)[:250]))
    command = ["cli.py", "train", "--text", short, "--tokenizer", "data/tense.tiktoken", "--steps", "2"]
    command += ["--out", tmp_path / "run", *flags.split()]
    said, taken = measured(command)
    assert 0.8 < told(said) / taken < 1.2


@pytest.mark.parametrize("T", [64, 4096])
def test_memory_counts_what_grows_with_the_text(T):
    """A norm that makes 1 + weight keeps a copy of it, of the same size for any text: only that much more."""
    plain = preset("llama-3.2-1b", vocab_size=100, n_layer=3, d_model=64)
    settings = TrainingSettings(sequence_length=T, batch_size=2)
    plain, added = (
        estimate_memory("numpy", replace(plain, norm=norm), settings, threads=1)
        for norm in ("rms_norm", "rms_norm_plus_one")
    )
    assert 0 <= added - plain < 1e6


@pytest.mark.endurance
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux (the figure is its kernel's)")
def test_memory_of_each_process_is_as_estimated(tmp_path, text):
    """The leader's and the other's of two, of a model of 101 MB, and of sharded ones that go on with their run."""
    model = "--preset nano --n-layer 8 --d-model 512 --context-length 64 --batch-size 8 --accumulate 4"
    short, run = tmp_path / "short.txt", ["--out", tmp_path / "run"]
    short.write_text(
        "".join(text.read_text().splitlines(keepends=True)[:60])
    )  # the evaluations take the time
    for way, flags in (
        ("exact", ["--text", short, *model.split(), "--steps", "2"]),
        ("shard", ["--resume", "--shard", "--steps", "3"]),
    ):
        processes = start_ranks(2, *flags, *run, python=[sys.executable, "-c", BETWEEN])
        (said, leader), (_, other) = (out.rstrip().rsplit(" ", 1) for _, out, _ in ended(processes))
        assert 0.8 < told(said) / int(leader) < 1.2
        assert int(other) < 1.1 * int(leader)
        print(
            f"{way}: told {told(said) / 1e6:.0f} MB, leader {int(leader) / 1e6:.0f}, other {int(other) / 1e6:.0f}"
        )


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    """What two would take together is refused, and of a sharded model two take less than twice as much."""
    config = preset("gpt2", vocab_size=50257, context_length=64)
    settings = TrainingSettings(batch_size=2, accumulate=2)
    one, shard = Sharing("exact", 2, 2), Sharing("shard", 2, 2)

    def fits(memory: float, sharing: Sharing) -> bool:
        monkeypatch.setattr("harness.training.memory.available_memory", lambda: int(memory))
        with suppress(UserError):
            check_memory("torch", config, settings, 1, sharing)
            return True
        return False

    each = estimate_memory("torch", config, settings, 1, one)
    assert not fits(1.9 * each, one)
    assert fits(2.1 * each, one)
    leader, other = (
        estimate_memory("torch", config, settings, 1, shard._replace(leads=leads)) for leads in (True, False)
    )
    assert other <= leader < 0.75 * each
    assert fits(1.01 * (leader + other), shard)
    assert not fits(0.99 * (leader + other), shard)
    with pytest.raises(UserError, match="and its 2 processes here may use"):
        check_memory("torch", config, settings, 1, shard)
