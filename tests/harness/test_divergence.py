"""Runs that diverge: what is no longer finite is named, and no ruined weights are saved."""

from itertools import count

import numpy as np
import pytest

from contract.errors import UserError
from harness.training import trainer as trainer_module
from harness.training.checkpoint import checkpoint_exists, load_checkpoint
from harness.training.runs import (
    resume_run,
)
from harness.training.spikes import SpikeDetector
from tests.harness.small_runs import BACKENDS, rows


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run(start, value):
    """The step is named, the last checkpoint stays, the bad step is not logged or taken."""
    trainer = start()
    real = trainer.backend.loss_and_gradients
    trainer.backend.loss_and_gradients = lambda *a, step, **k: (
        value if step == 11 else real(*a, step=step, **k)
    )
    with pytest.raises(UserError, match=r"step 12: the loss is (nan|inf).*last checkpoint is kept"):
        trainer.train()
    assert load_checkpoint(trainer.run.latest).step == 10
    assert resume_run(trainer.run.path).train().finished


def test_no_checkpoint_is_promised_that_is_not_there(start):
    """Before the first checkpoint the message of a bad loss does not say that one is kept."""
    trainer = start()
    real = trainer.backend.loss_and_gradients
    trainer.backend.loss_and_gradients = lambda *a, **k: real(*a, **k) * np.nan
    with pytest.raises(UserError, match=r"no longer finite.*; try a lower --learning-rate") as error:
        trainer.train()
    assert not checkpoint_exists(trainer.run.resumable)
    assert "kept" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_stops_the_run(start, value):
    """A finite loss with such a gradient updates no weight."""
    trainer = start()
    clip, update = trainer.backend.clip, trainer.backend.update
    updates = []
    trainer.backend.clip = lambda limit: value if trainer.step == 11 else clip(limit)
    trainer.backend.update = lambda rate: (updates.append(rate), update(rate))
    with pytest.raises(UserError, match=r"step 12: the loss is \d.* the gradient norm (nan|inf), no longer"):
        trainer.train()
    assert len(updates) == 11
    assert load_checkpoint(trainer.run.latest).step == 10


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("bad", [10, 20])
def test_a_validation_loss_that_is_not_finite_stops_the_run(start, monkeypatch, value, bad):
    """Weights that went bad in the last update replace no checkpoint, at the end neither."""
    real = trainer_module.evaluate

    def evaluate(*arguments, **options):
        found = real(*arguments, **options)
        return found._replace(loss=value) if trainer.step == bad else found

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    trainer = start()
    with pytest.raises(
        UserError, match=rf"step {bad}: the validation loss is (nan|inf), .*checkpoint is kept"
    ):
        trainer.train()
    for place in (trainer.run.latest, trainer.run.best):
        checkpoint = load_checkpoint(place)
        assert checkpoint.step < bad
        assert np.isfinite(checkpoint.validation_loss)


def test_a_spike_is_marked(start, monkeypatch):
    """The log has a mark on the step whose loss is a spike and on no other, and whoever follows is told."""
    seen, told = count(1), []
    monkeypatch.setattr(SpikeDetector, "update", lambda self, loss: next(seen) == 3)
    trainer = start(steps=5)
    trainer.report = told.append
    trainer.train()
    assert [row["step"] for row in rows(trainer.run) if row.get("spike")] == [3]
    assert [progress.step for progress in told if progress.spike] == [3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tensor_that_is_not_finite_is_named(start, backend):
    """Where a weight has become infinite the message names the first tensor that shows it, in dataflow order."""
    trainer = start(backend=backend)
    dict(trainer.backend.weights())["blocks.0.feed_forward.up.weight"][0, 0] = np.inf
    with pytest.raises(UserError, match=r"no longer finite, first in blocks\.0\.feed_forward\.up; try"):
        trainer.train()
    assert rows(trainer.run) == []  # the evaluation before the first step has no loss to log


def test_ruined_weights_are_not_saved(start):
    """Told to stop right after a step that ruined the weights, a run keeps the checkpoint before."""
    trainer = start()

    def stop_later():
        if trainer.step == 7:
            dict(trainer.backend.weights())["final_norm.bias"][0] = np.nan
        return trainer.step == 7

    trainer.interrupted = stop_later
    with pytest.raises(UserError, match=r"step 7: final_norm\.bias is no longer finite; the last checkpoint"):
        trainer.train()
    assert load_checkpoint(trainer.run.latest).step == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_not_finite_is_named(start, backend, monkeypatch):
    """Where the loss is finite and a gradient is not, the gradient is named."""
    trainer = start(backend=backend)
    real = trainer.backend.trace

    def trace(*arguments, **options):
        found = real(*arguments, **options)
        found.gradients["blocks.0.residual_1"][0, 0, 0] = np.nan
        return found

    monkeypatch.setattr(trainer.backend, "trace", trace)
    monkeypatch.setattr(trainer.backend, "clip", lambda max_norm: float("nan"))
    with pytest.raises(UserError, match=r"first in the gradient of blocks\.0\.residual_1"):
        trainer.train()
