"""Losses that lie far above those before them, and losses that only vary."""

import numpy as np

from harness.training.spikes import SpikeDetector


def falling(steps: int, noise: float = 0.05) -> list[float]:
    """Losses of a training that goes well: from 3 down to 2 nats, with noise."""
    random = np.random.default_rng(0)
    return [2 + np.exp(-step / 80) + noise * random.standard_normal() for step in range(steps)]


def test_a_spike_is_detected():
    """A loss many deviations above the mean is a spike, so is the next one, and what follows is not."""
    spikes = SpikeDetector()
    assert not any(map(spikes.update, falling(200)))
    assert spikes.update(50.0)
    assert spikes.update(3.5)
    assert not any(map(spikes.update, falling(400)[200:]))
    assert spikes.update(3.5)


def test_the_first_losses_are_not_judged():
    """They have nothing to be held against."""
    assert not SpikeDetector().update(50.0)
    spikes = SpikeDetector(first=10)
    assert not any(map(spikes.update, [*falling(9), 50.0]))


def test_a_rarer_kind_of_text():
    """Where some batches hold text that is harder by far, their losses are a part of the spread."""
    random, spikes = np.random.default_rng(1), SpikeDetector()
    losses = [loss + 0.4 * random.binomial(8, 0.05) for loss in falling(2000, 0.01)]
    assert sum(map(spikes.update, losses)) <= 2


def test_harder_text_from_now_on():
    """A loss that stays up becomes the usual one."""
    spikes = SpikeDetector()
    assert not any(map(spikes.update, falling(200)))
    found = [spikes.update(loss + 1) for loss in falling(400)[200:]]
    assert found[0]
    assert not any(found[30:])


def test_losses_that_stand_still():
    """Without any spread a tenth of a nat is still no spike."""
    spikes = SpikeDetector()
    assert not any(spikes.update(2.0) for _ in range(100))
    assert not spikes.update(2.09)
    assert spikes.update(2.2)
