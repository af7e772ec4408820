"""The loss: what training makes smaller.

The dimension letters are explained in `contract/config.py`.
"""

import torch.nn.functional as F


def cross_entropy(logits, targets):
    """The mean over all tokens of -log softmax(logits)[target], in nats per token.

    logits: float (B, T, V); targets: int (B, T)
    returns: loss float ()
    Twin: numpy_llm.losses.cross_entropy_forward and cross_entropy_backward
    """
    V = logits.shape[-1]
    return F.cross_entropy(logits.reshape(-1, V), targets.reshape(-1))
