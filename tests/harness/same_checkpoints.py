"""Comparing checkpoints."""

import numpy as np

from data.tokenizers import identity
from harness.training.checkpoint import (
    Checkpoint,
)

FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.tiktoken")


def assert_same(found: Checkpoint, wanted: Checkpoint):
    assert found.config == wanted.config
    assert (found.step, found.training, found.validation_loss) == (
        wanted.step,
        wanted.training,
        wanted.validation_loss,
    )
    assert identity(found.tokenizer) == identity(wanted.tokenizer)
    assert list(found.weights) == list(wanted.weights)
    for name, value in wanted.weights.items():
        assert found.weights[name].dtype == value.dtype
        np.testing.assert_array_equal(found.weights[name], value)
