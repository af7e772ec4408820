"""A tensor that is used more than once: the gradients of its uses add up. What people get wrong in that."""

import numpy as np

from operations.operation import wrong_backward


def _without_one(parts):
    return [sum(parts[:at] + parts[at + 1 :]) for at in range(len(parts))]


def _other_for_one(parts, near):
    return [
        part + other for part in _without_one(parts) for other in near if np.shape(other) == np.shape(part)
    ]


WRONG_SUMS = (
    wrong_backward("use_missing", lambda parts, near: _without_one(parts),
        "the gradient of one of its uses is lost: the tensor is used more than once, add up all of them"),
    wrong_backward("uses_averaged", lambda parts, near: sum(parts) / len(parts),
        "the gradients of its uses are averaged; wanted: their sum"),
    wrong_backward("use_of_other", _other_for_one,
        "one of its uses has another tensor's gradient: add that of what this use made"),
)  # fmt: skip
