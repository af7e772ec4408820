"""Dumps of any content and in any state: a report or one line, never a traceback."""

import numpy as np
import pytest


@pytest.mark.parametrize("name", ["gpt2-tied", "relu-sinusoidal", "untied-no-bias"])
def test_nothing_but_zeros(name, tmp_path, run_cli, packs):
    """A norm of zero clips nothing, and divides nothing."""
    np.savez(tmp_path / "zeros.npz", **{each: 0 * tensor for each, tensor in packs[name].tensors.items()})
    code, stdout, stderr = run_cli("check", tmp_path / "zeros.npz", "--golden", name)
    assert (code, stderr) == (1, "")
    assert "first in dataflow order: tokens" in stdout
