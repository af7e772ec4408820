"""The learning-rate range test: how the rate grows, where it ends, what is proposed and drawn."""

import numpy as np
import pytest

from contract.errors import UserError
from harness.training import find_rate as module
from harness.training.find_rate import Trial, best_trial, find_rate, plot_rates, proposed_rate
from harness.training.metrics import is_plot


def test_the_rate_grows_until_the_loss_rises(start):
    """Each step's rate is the same multiple of the one before; the batches are the training's; nothing is kept."""
    trainer, told, rates = start(batch_size=32), [], []
    update = trainer.backend.update
    trainer.backend.update = lambda rate: (rates.append(rate), update(rate))
    files = sorted(path.name for path in trainer.run.path.iterdir())
    trials = find_rate(trainer, lambda *told_now: told.append(told_now))
    assert told == list(enumerate(trials, 1))
    assert rates == [trial.rate for trial in trials[:-1]]
    assert rates[0] == module.LOWEST
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(1e6) / 99, rtol=1e-6)
    assert trials[-1].mean > 1.1 * best_trial(trials).mean
    assert all(trial.mean <= 1.1 * best_trial(trials[: n + 1]).mean for n, trial in enumerate(trials[:-1]))
    assert 1e-3 < proposed_rate(trials) < 0.1
    assert sorted(path.name for path in trainer.run.path.iterdir()) == files


def test_the_mean_of_the_losses(start, monkeypatch):
    """It weighs a loss a fifth, and is unbiased from the first step on; a loss that is not finite ends the test."""
    losses = iter([4.0, 3.0, 2.0, float("nan")])
    trainer = start()
    monkeypatch.setattr(trainer.backend, "loss_and_gradients", lambda *_, **__: next(losses))
    monkeypatch.setattr(trainer.backend, "clip", lambda norm: 1.0)
    monkeypatch.setattr(trainer.backend, "update", lambda rate: None)
    trials = find_rate(trainer)
    assert [trial.loss for trial in trials] == [4.0, 3.0, 2.0]
    means = [4.0, (0.16 * 4 + 0.2 * 3) / 0.36, (0.128 * 4 + 0.16 * 3 + 0.2 * 2) / 0.488]
    assert [trial.mean for trial in trials] == pytest.approx(means)


def test_a_loss_that_never_rises(start, monkeypatch):
    """The test ends at the highest rate."""
    trainer = start()
    monkeypatch.setattr(trainer.backend, "loss_and_gradients", lambda *_, step, **__: 9 - step / 100)
    monkeypatch.setattr(trainer.backend, "clip", lambda norm: 1.0)
    monkeypatch.setattr(trainer.backend, "update", lambda rate: None)
    assert [trial.rate for trial in find_rate(trainer)][-1] == pytest.approx(module.HIGHEST)


def test_weights_that_are_not_finite(start, monkeypatch):
    """They are told in one line."""
    trainer = start()
    monkeypatch.setattr(trainer.backend, "clip", lambda norm: float("nan"))
    with pytest.raises(UserError, match="the loss is not finite before the first step"):
        find_rate(trainer)


def test_the_proposal(tmp_path):
    """A third of the rate with the lowest mean, to two digits; it is in the plot, which replaces an earlier one."""
    trials = [Trial(1e-4, 3.0, 3.0), Trial(1e-3, 1.0, 2.5), Trial(1e-2, 2.0, 2.0), Trial(1e-1, 1.5, 9.0)]
    assert proposed_rate(trials) == 3.3e-3
    for _ in range(2):
        plot_rates(trials, tmp_path / "rates.png")
    assert is_plot(tmp_path / "rates.png")
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="no run drew it; move it away"):
        plot_rates(trials, tmp_path / "mine.png")
