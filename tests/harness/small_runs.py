"""Small runs that the tests of training share."""

import importlib.util
import json

import pytest

from harness.training.run_folder import RunFolder

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch (pip install -e '.[dev]')"
)
BACKENDS = ["numpy", pytest.param("torch", marks=needs_torch)]
# PyTorch splits nothing this small over threads, and two that wait for each other on a busy machine take minutes.
THREADS = {"numpy": 2, "torch": 1}
SMALL = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 8}
TRAINING = {"steps": 20, "batch_size": 4, "warmup_steps": 5, "learning_rate": 1e-2, "eval_interval": 5}


def rows(run: RunFolder) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]
