"""The PyTorch that NumPy is compared with is as fast as anybody's: the twin against a plain GPT-2."""

from time import perf_counter

import numpy as np
import pytest

from contract.weights import initial_weights
from harness.training.backend import open_backend
from harness.training.recipes import RECIPES

pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

MOST = 1.05  # the twin's time over the rival's
TURNS = {"nano": 50, "medium": 6, "gpt2": 3}


def steps(recipe):
    """The twin's training step and the rival's, from the same weights on the same batch; each returns its loss."""
    from harness.training.plain_gpt import plain_step

    config, random = recipe.config, np.random.default_rng(0)
    tokens = random.integers(config.vocab_size, size=(recipe.batch_size, config.context_length + 1))
    weights = initial_weights(config, 0, "float32")
    twin = open_backend("torch", config, weights, threads=1, beta2=0.99, weight_decay=0.1)

    def step():
        loss = twin.loss_and_gradients(tokens[:, :-1], tokens[:, 1:], step=0, accumulate=1)
        twin.clip(1.0)
        twin.update(1e-4)
        return loss

    return step, plain_step(config, weights.values(), tokens)


def test_the_rival_computes_the_same():
    """Three steps have the same losses: forward and backward pass, clipping and update are the twin's."""
    twin, rival = steps(RECIPES["nano"])
    losses = [(twin(), rival()) for _ in range(3)]
    ours, theirs = zip(*losses, strict=True)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[2] < ours[0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("nano", marks=pytest.mark.endurance),
        pytest.param("medium", marks=pytest.mark.endurance),
        pytest.param("gpt2", marks=pytest.mark.endurance),
    ],
)
def test_the_twin_is_as_fast(name):
    """The least time of a step, in turn; up to three times more, since a busy machine gives either one the worse."""
    twin, rival = steps(RECIPES[name])

    def ratio():
        times = [(seconds(twin), seconds(rival)) for _ in range(TURNS[name])]
        ours, theirs = map(min, zip(*times, strict=True))
        return ours / theirs

    assert any(ratio() <= MOST for _ in range(4))


def seconds(step) -> float:
    started = perf_counter()
    step()
    return perf_counter() - started
