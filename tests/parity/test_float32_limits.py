"""Limits of float32: what honest programs that add up otherwise than NumPy stray."""

import numpy as np
import pytest

from contract.numbers import magnitude, relative_error
from contract.weights import Weights
from numpy_llm import losses
from parity.golden.rounding import ROOM, strays


@pytest.mark.parametrize("seed", range(3))
def test_a_large_vocabulary(seed, tiny_config):
    """PyTorch adds up 50,000 exponentials less exactly than NumPy, and stays within the limit all the same."""
    torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    V, config = 50_000, tiny_config()
    logits = np.random.default_rng(seed).normal(size=(1, 3, V))
    logits[..., 0] = np.log(V) + 1  # one token is likely: its probability is wrong by as much as the sum
    logits, targets = logits.astype(np.float32), np.full((1, 3), 5)

    def gradient(dtype):
        _, cache = losses.cross_entropy_forward(logits.astype(dtype), targets)
        return losses.cross_entropy_backward(np.ones((), dtype), cache)

    exact = gradient("float64")
    ours = relative_error(gradient("float32"), exact, magnitude(exact))
    theirs = torch.tensor(logits, requires_grad=True)
    torch.nn.functional.cross_entropy(theirs.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    theirs = relative_error(theirs.grad.numpy(), exact, magnitude(exact))
    given, name = Weights.zeros(config, "float64"), "gradient.logits"
    stray = strays(config, given, {name: exact}, lambda weights: {name: gradient("float32")})[name]
    assert 5 * ours < theirs < ROOM * stray
