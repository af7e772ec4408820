"""Numbers of a traced tensor that no loss depends on: a right program may have anything there, or compute none.

A query attends to the tokens that its mask lets through. The scores of the others, before the mask, go nowhere, and the
gradients of their probabilities meet a probability of 0. A kernel computes neither: what stands there is 0, -inf, a
large negative number, or whatever the memory held. The probabilities themselves, which are 0 there, are determined.
"""

import re

import numpy as np

from contract.config import ModelConfig
from operations.dataflow import GRADIENT

_MASKED = re.compile(
    rf"blocks\.(\d+)\.attention\.(?:capped_)?scores"
    rf"|{re.escape(GRADIENT)}blocks\.(\d+)\.attention\.probabilities(?:_dropout)?"
)


def undetermined(config: ModelConfig, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Which numbers of a tensor the loss does not determine: bool (T, S), to broadcast; None where it does all."""
    if not (found := _MASKED.fullmatch(name)):
        return None
    T, S = shape[-2:]
    behind = np.arange(S - T, S)[:, None] - np.arange(S)  # how far a token lies before the query's own
    window = config.layer(int(found[1] or found[2])).window
    return (behind < 0) | (behind >= (window or S))
