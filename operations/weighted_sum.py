"""Weighted sum: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.attention import weighted_sum_backward, weighted_sum_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _transposed(probabilities, value):
    T, S = probabilities.shape[-2:]
    return probabilities.swapaxes(-1, -2) @ value if T == S else None


def _other_heads(probabilities, value):
    others = value[:, ::-1], np.roll(value, 1, axis=1), np.roll(value, -1, axis=1)
    return [probabilities @ other for other in others]


def _dvalue_transposed(dheads, cache):
    T, S = cache.probabilities.shape[-2:]
    return {"value": cache.probabilities @ dheads} if T == S else None


WEIGHTED_SUM = Operation(
    "weighted_sum", weighted_sum_forward, weighted_sum_backward, "heads = probabilities value",
    {
        "probabilities": Gradient("dprobabilities = dheads valueᵀ", ("value",)),
        "value": Gradient("dvalue = probabilitiesᵀ dheads", ("probabilities",)),
    },
    (
        wrong_forward("heads_transposed", _transposed,
            "the probabilities are transposed before they weigh the values"),
        wrong_forward("values_order", _other_heads,
            "the values of another head are weighed: their heads are reversed or moved by one"),
        wrong_backward("dvalue_transposed", _dvalue_transposed,
            "dvalue needs probabilitiesᵀ: value s collects from every token t that looked at it"),
    ),
)  # fmt: skip
