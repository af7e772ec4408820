"""Cross-entropy: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.losses import cross_entropy_backward, cross_entropy_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _loss(logits, targets):
    return cross_entropy_forward(logits, targets)[0]


@wrong_forward("the loss is the sum over tokens; wanted: the mean")
def loss_sum(logits, targets):
    return _loss(logits, targets) * targets.size


@wrong_forward("the loss is averaged over the batch or over time alone; divide by B·T")
def loss_half_mean(logits, targets):
    return [_loss(logits, targets) * size for size in targets.shape]


@wrong_forward("the loss is in bits (or another base): take the natural logarithm")
def loss_in_bits(logits, targets):
    return [_loss(logits, targets) / np.log(base) for base in (2, 10)]


@wrong_forward("the target is the token itself, or two places ahead; wanted: the token after")
def loss_unshifted(logits, targets, *, tokens=None):
    others = [np.roll(targets, -1, axis=1), np.roll(targets, 1, axis=1)]
    return [_loss(logits, other) for other in ([] if tokens is None else [tokens]) + others]


@wrong_forward("the logits are shifted a second time: the first T-1 meet the targets from the second on")
def loss_shifted_twice(logits, targets):
    return _loss(logits[:, :-1], targets[:, 1:]) if targets.shape[1] > 1 else None


@wrong_forward("only the last token's loss counts; wanted: the mean over all")
def loss_of_last(logits, targets):
    return _loss(logits[:, -1:], targets[:, -1:])


def _parts(dloss, cache):
    """The probabilities, the one-hot targets, and the scale dloss / (B·T)."""
    onehot = np.eye(cache.probabilities.shape[-1], dtype=cache.probabilities.dtype)[cache.columns]
    return cache.probabilities, onehot.reshape(cache.probabilities.shape), dloss / cache.columns.size


@wrong_backward("not divided by B·T: this is the gradient of the sum, the loss is the mean")
def dloss_of_sum(dloss, cache):
    return {"logits": cross_entropy_backward(dloss, cache) * cache.columns.size}


@wrong_backward("divided by B or by T alone; divide by B·T")
def dloss_half_mean(dloss, cache):
    return [{"logits": cross_entropy_backward(dloss, cache) * size} for size in cache.probabilities.shape[:2]]


@wrong_backward("dloss is not multiplied in: a part of a batch has its share of the loss, not 1")
def dloss_ignored(dloss, cache):
    return None if dloss == 1 else {"logits": cross_entropy_backward(1.0, cache)}


@wrong_backward(
    "the 1 of the target is not subtracted: these are the probabilities alone, or with it added",
    "the target's 1 is not subtracted: the loss is log Σ exp(z) - z[target], and the second part gives -1",
)
def dloss_without_target(dloss, cache):
    probabilities, onehot, scale = _parts(dloss, cache)
    return [
        {"logits": each} for each in (probabilities * scale, probabilities, (probabilities + onehot) * scale)
    ]


@wrong_backward(
    "the mean is taken before the 1 of the target is subtracted: divide both by B·T",
    "1 is subtracted after dloss and the mean have been put in; they scale the whole of softmax minus one-hot",
)
def dloss_target_undivided(dloss, cache):
    probabilities, onehot, scale = _parts(dloss, cache)
    return {"logits": probabilities * scale - onehot}


@wrong_backward("the targets are shifted by one place")
def dloss_shifted(dloss, cache):
    probabilities, onehot, scale = _parts(dloss, cache)
    return [{"logits": (probabilities - np.roll(onehot, step, axis=1)) * scale} for step in (1, -1)]


@wrong_backward(
    "every row loses the targets of all rows; row n loses 1 at its own target alone",
    "1 is subtracted at every token's target in every row; row n loses 1 at its own target alone: "
    "[np.arange(N), targets]",
)
def dloss_targets_in_every_row(dloss, cache):
    probabilities, onehot, scale = _parts(dloss, cache)
    return {"logits": (probabilities - onehot.any(axis=(0, 1))) * scale}


CROSS_ENTROPY = Operation(
    "cross_entropy",
    cross_entropy_forward,
    cross_entropy_backward,
    "the mean over all B·T tokens of -log softmax(logits)[target], natural logarithm",
    {
        "logits": Gradient(
            "dlogits = (softmax(logits) - onehot(targets)) · dloss / (B·T)", ("logits", "targets")
        )
    },
    (
        loss_sum, loss_half_mean, loss_in_bits, loss_unshifted, loss_shifted_twice, loss_of_last,
        dloss_targets_in_every_row, dloss_target_undivided, dloss_of_sum, dloss_half_mean, dloss_ignored,
        dloss_without_target, dloss_shifted,
    ),
)  # fmt: skip
