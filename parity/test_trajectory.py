"""Whole training runs: both backends, through the one trainer, from one seed."""

import json

import numpy as np
import pytest

from data.grammar import corpus
from harness.training.runs import start_run
from parity.compare import Comparison, compare

STEPS = 200


@pytest.fixture
def losses(tmp_path):
    """A function that trains with a backend and gives the loss of every step."""
    text = tmp_path / "sentences.txt"
    text.write_text("".join(f"{sentence}\n" for sentence in corpus()[:1000]), newline="")

    def train(backend: str, preset: str, dtype: str) -> dict[str, np.ndarray]:
        trainer = start_run(
            tmp_path / f"{backend}-{dtype}",
            text=text,
            preset_name=preset,
            overrides={"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16, "dropout": 0.1},
            training={"steps": STEPS, "batch_size": 8, "accumulate": 2, "warmup_steps": 30,
                      "learning_rate": 3e-3, "min_learning_rate": 1e-4, "eval_interval": STEPS, "dtype": dtype},
            backend=backend,
            threads=1,
        )  # fmt: skip
        trainer.train()
        rows = map(json.loads, trainer.run.metrics.read_text().splitlines())
        return {f"step {row['step']}": np.array([row["loss"]], dtype) for row in rows if "loss" in row}

    return train


@pytest.mark.parametrize(
    ("preset", "dtype"),
    [
        pytest.param("nano", "float64", marks=pytest.mark.endurance),
        pytest.param("nano", "float32", marks=pytest.mark.endurance),
        ("modern", "float64"),
        ("modern", "float32"),
    ],
)
def test_losses_of_every_step(losses, preset, dtype):
    """200 steps with dropout, micro-batches, clipping, decay and a schedule have the same losses.

    In float64 rounding stays far below what training changes. In float32 it grows from step to step; how far
    the two backends drift apart is measured and bounded.
    """
    reference, twin = (losses(backend, preset, dtype) for backend in ("numpy", "torch"))
    assert len(reference) == STEPS
    assert reference[f"step {STEPS}"] < 0.6 * reference["step 1"]
    Comparison(f"losses of {preset}", dtype, 0, compare("trajectory", reference, twin, dtype)).require()
