"""Which predictions count: all of a text as a rule, in a conversation those of the replies."""

import numpy as np

NO_TARGET = -100  # in the place of a target whose prediction does not count; the number that PyTorch ignores


def counted(targets: np.ndarray) -> int:
    """How many targets count, 1 if none does: what the sum of their losses is divided by."""
    return max(1, int(np.count_nonzero(targets != NO_TARGET)))
