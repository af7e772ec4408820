"""The loss: what training makes smaller.

The dimension letters are explained in `contract/config.py`.
"""

import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from contract.targets import NO_TARGET
from torch_llm.layers import linear, soft_cap
from torch_llm.precision import full_precision


def cross_entropy(logits, targets):
    """The mean over the tokens that count of -log softmax(logits)[target], in nats per token.

    A token with `NO_TARGET` in the place of its target does not count. If none counts, the loss is 0.

    logits: float (B, T, V); targets: int (B, T)
    returns: loss float ()
    Twin: numpy_llm.losses.cross_entropy_forward and cross_entropy_backward
    """
    rows, columns = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    return _total(rows, columns) / _counted(columns)


def linear_cross_entropy(x, weight, targets, cap=None):
    """The output layer, its soft cap and the cross-entropy, without holding all logits at once.

    In blocks of rows, whose logits the backward pass computes again.

    x: float (B, T, C); weight: float (V, C); targets: int (B, T); cap: of `soft_cap`, None for none
    returns: loss float ()
    Twin: numpy_llm.losses.linear_cross_entropy_forward and linear_cross_entropy_backward
    """
    rows, columns = x.flatten(0, -2), targets.flatten()

    def total(rows, columns):
        logits = linear(rows, weight, None)
        logits = logits if cap is None else soft_cap(logits, cap)
        return _total(logits, columns)

    height = max(1, MAX_LOGITS // len(weight))
    blocks = zip(rows.split(height), columns.split(height), strict=True)
    return sum(
        checkpoint(total, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks
    ) / _counted(columns)


MAX_LOGITS = 1 << 26  # numbers held at once


def _total(logits, columns):
    """The sum of the losses of tokens that count."""
    return F.cross_entropy(full_precision(logits), columns, ignore_index=NO_TARGET, reduction="sum")


def _counted(columns):
    """How many targets count, 1 if none does: an int tensor (), so that no device is waited for."""
    return (columns != NO_TARGET).sum().clamp(min=1)
