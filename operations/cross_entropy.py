"""Cross-entropy: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.losses import cross_entropy_backward, cross_entropy_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _loss(logits, targets):
    return cross_entropy_forward(logits, targets)[0]


def _other_targets(logits, targets, *, tokens=None):
    others = [np.roll(targets, -1, axis=1), np.roll(targets, 1, axis=1)]
    return [_loss(logits, other) for other in ([] if tokens is None else [tokens]) + others]


def _scaled(*factors):
    """The gradient times a factor of B and T, or times one of several."""
    return lambda dloss, cache: [
        {"logits": cross_entropy_backward(dloss, cache) * factor(*cache.targets.shape)} for factor in factors
    ]


def _from_parts(combine):
    """The gradient made otherwise: combine(probabilities, one-hot targets, dloss / (B·T)) -> a form or several."""

    def compute(dloss, cache):
        onehot = np.eye(cache.probabilities.shape[-1], dtype=cache.probabilities.dtype)[cache.targets]
        found = combine(cache.probabilities, onehot, dloss / cache.targets.size)
        return [{"logits": each} for each in (found if isinstance(found, list) else [found])]

    return compute


CROSS_ENTROPY = Operation(
    "cross_entropy", cross_entropy_forward, cross_entropy_backward,
    "the mean over all tokens that count, B·T as a rule, of -log softmax(logits)[target], natural logarithm",
    {"logits": Gradient("dlogits = (softmax(logits) - onehot(targets)) · dloss / (B·T)", ("logits", "targets"))},
    (
        wrong_forward("loss_sum", lambda logits, targets: _loss(logits, targets) * targets.size,
            "the loss is the sum over tokens; wanted: the mean"),
        wrong_forward("loss_half_mean",
            lambda logits, targets: [_loss(logits, targets) * size for size in targets.shape],
            "the loss is averaged over the batch or over time alone; divide by B·T"),
        wrong_forward("loss_in_bits",
            lambda logits, targets: [_loss(logits, targets) / np.log(base) for base in (2, 10)],
            "the loss is in bits (or another base): take the natural logarithm"),
        wrong_forward("loss_unshifted", _other_targets,
            "the target is the token itself, or two places ahead; wanted: the token after"),
        wrong_forward("loss_shifted_twice",
            lambda logits, targets: _loss(logits[:, :-1], targets[:, 1:]) if targets.shape[1] > 1 else None,
            "the logits are shifted a second time: the first T-1 meet the targets from the second on"),
        wrong_forward("loss_of_last", lambda logits, targets: _loss(logits[:, -1:], targets[:, -1:]),
            "only the last token's loss counts; wanted: the mean over all"),
        wrong_backward("dloss_targets_in_every_row",
            _from_parts(lambda p, onehot, scale: (p - onehot.any(axis=(0, 1))) * scale),
            "every row loses the targets of all rows; row n loses 1 at its own target alone",
            "1 is subtracted at all targets in every row; row n loses 1 at its own target alone: [arange(N), targets]"),
        wrong_backward("dloss_target_undivided", _from_parts(lambda p, onehot, scale: p * scale - onehot),
            "1 is subtracted after dloss and the mean have been put in; they scale the whole of softmax minus one-hot"),
        wrong_backward("dloss_of_sum", _scaled(lambda B, T: B * T),
            "not divided by B·T: this is the gradient of the sum, the loss is the mean"),
        wrong_backward("dloss_half_mean", _scaled(lambda B, T: B, lambda B, T: T),
            "divided by B or by T alone; divide by B·T"),
        wrong_backward("dloss_ignored",
            lambda dloss, cache: None if dloss == 1 else {"logits": cross_entropy_backward(1.0, cache)},
            "dloss is not multiplied in: a part of a batch has its share of the loss, not 1"),
        wrong_backward("dloss_without_target",
            _from_parts(lambda p, onehot, scale: [p * scale, p, (p + onehot) * scale]),
            "the target's 1 is not subtracted: the loss is log Σ exp(z) - z[target], and the second part gives -1"),
        wrong_backward("dloss_shifted",
            _from_parts(lambda p, onehot, scale: [(p - np.roll(onehot, step, axis=1)) * scale for step in (1, -1)]),
            "the targets are shifted by one place"),
    ),
)  # fmt: skip
