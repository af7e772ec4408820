"""Adam, AdamW, clipping and gradient accumulation."""

import pytest

from parity.passes import Twins
from parity.proofs import CHECKS


@pytest.mark.parametrize("check", ["adam", "adamw", "accumulation"])
def test_optimizer(check):
    """By hand, as the twin does it and as plain `torch.optim` does it, the numbers are the same."""
    CHECKS[check](Twins())
