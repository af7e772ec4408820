"""The evaluation before the first step: it gives the others a measure and changes nothing."""

import numpy as np
import pytest

from harness.training.checkpoint import load_checkpoint
from harness.training.runs import resume_run
from tests.harness.small_runs import rows


def test_the_evaluation_before_the_first_step(start):
    """It has a row, a report and a place in the checkpoints, and changes no bit of the training."""
    trainer, other = start(overrides={"dropout": 0.2}), start("other", overrides={"dropout": 0.2})
    trainer.train()
    (first, *_) = log = rows(trainer.run)
    assert first["step"] == 0
    assert first["validation_loss"] == pytest.approx(np.log(trainer.backend.config.vocab_size), rel=0.02)
    assert load_checkpoint(trainer.run.latest).training["initial_loss"] == first["validation_loss"]
    other.evaluations.record.initial_loss = 1.0  # as if it was made already
    other.train()
    assert rows(other.run) == log[1:]


def test_a_run_stopped_before_its_first_step(start):
    """Told to stop in the first evaluation, a run has a checkpoint, and goes on as if nothing had been."""
    straight, trainer = start("straight"), start()
    straight.train()
    trainer.interrupted = lambda: True
    outcome = trainer.train()
    assert (outcome.finished, outcome.step) == (False, 0)
    resumed = resume_run(trainer.run.path)
    resumed.train()
    assert rows(resumed.run) == rows(straight.run)
    assert not (trainer.run.path / "samples.txt").exists()


def test_an_old_log_is_replaced_before_its_first_step(start):
    """A log of the first evaluation alone is a run's, which --overwrite replaces."""
    trainer = start()
    trainer.report = lambda progress: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert [row["step"] for row in rows(trainer.run)] == [0]
    del trainer  # Windows removes no file that is still open
    assert start(overwrite=True).train().finished
