"""A learning-rate range test: the rate grows until the loss rises."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import UserError
from harness.training.metrics import save_plot
from harness.training.trainer import Trainer

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.8  # the weight of the losses before in the running mean
RISE = 1.1  # how far above its lowest the mean loss rises until the test ends
SAFETY = 3  # a training keeps its rate for longer than this test does


class Trial(NamedTuple):
    """A step of the test; loss: of its batch; mean: the running mean of the losses so far."""

    rate: float
    loss: float
    mean: float


@np.errstate(all="ignore")  # where it diverges
def find_rate(
    trainer: Trainer, report: Callable[[int, Trial], None] = lambda step, trial: None
) -> list[Trial]:
    """Train with a rate that grows exponentially from step to step, until the loss rises; the weights are used up.

    report: is called after every step with its number, from 1
    Raises UserError if the loss is not finite at the lowest rate.
    Source: Smith 2017, section 3.3, with the exponential growth of fastai.
    """
    settings, mean, trials = trainer.settings, 0.0, []
    for step in range(STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        tokens, targets = trainer.windows.batch(step, settings.batch_size)
        loss = trainer.backend.loss_and_gradients(tokens, targets, step=step, accumulate=settings.accumulate)
        if not isfinite(loss) or not isfinite(trainer.backend.clip(settings.clip)):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        trials.append(Trial(rate, loss, mean / (1 - SMOOTHING ** (step + 1))))
        report(step + 1, trials[-1])
        if trials[-1].mean > RISE * best_trial(trials).mean:
            break
        trainer.backend.update(rate)
    if not trials:
        raise UserError("the loss is not finite before the first step; start from other weights")
    return trials


def best_trial(trials: list[Trial]) -> Trial:
    """The one with the lowest mean loss."""
    return min(trials, key=lambda trial: trial.mean)


def proposed_rate(trials: list[Trial]) -> float:
    """A third of the rate at which the mean loss was lowest, to two digits."""
    return float(f"{best_trial(trials).rate / SAFETY:.1e}")


def plot_rates(trials: list[Trial], image: Path):
    """Draw the losses over the rates, with the proposal."""
    from matplotlib.figure import Figure  # takes half a second to import

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xscale="log")
    rates, losses, means = zip(*trials, strict=True)
    axes.plot(rates, losses, color="#9ab8d6", linewidth=0.8, label="training batch")
    axes.plot(rates, means, color="#c0392b", label="running mean")
    rate = proposed_rate(trials)
    axes.axvline(rate, color="#555555", linestyle="--", label=f"proposal: {rate:g}")
    axes.set(xlabel="learning rate", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_plot(figure, image)
