"""A tensor that is used more than once: the gradients of its uses add up. What people get wrong in that."""

import numpy as np

from operations.operation import wrong_backward


@wrong_backward(
    "the gradient of one of its uses is lost: the tensor is used more than once, add up all of them"
)
def use_missing(parts, near):
    return [sum(parts[:at] + parts[at + 1 :]) for at in range(len(parts))]


@wrong_backward("the gradients of its uses are averaged; wanted: their sum")
def uses_averaged(parts, near):
    return sum(parts) / len(parts)


@wrong_backward("one of its uses has another tensor's gradient: add that of what this use made")
def use_of_other(parts, near):
    rest = [sum(parts[:at] + parts[at + 1 :]) for at in range(len(parts))]
    return [each + other for each in rest for other in near if np.shape(other) == np.shape(each)]


WRONG_SUMS = (use_missing, uses_averaged, use_of_other)
