"""Weighted sum: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.attend import weighted_sum_backward, weighted_sum_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _square(probabilities):
    return probabilities.shape[-1] == probabilities.shape[-2]


@wrong_forward("the probabilities are transposed before they weigh the values")
def heads_transposed(probabilities, value):
    return probabilities.swapaxes(-1, -2) @ value if _square(probabilities) else None


@wrong_forward("the values of another head are weighed: their heads are reversed or moved by one")
def values_order(probabilities, value):
    return [
        probabilities @ each for each in (value[:, ::-1], *(np.roll(value, by, axis=1) for by in (1, -1)))
    ]


@wrong_backward(
    "the probabilities are not transposed: dvalue = probabilitiesᵀ dheads",
    "dvalue needs probabilitiesᵀ: value s collects from every token t that looked at it",
)
def dvalue_transposed(dheads, cache):
    return {"value": cache.probabilities @ dheads} if _square(cache.probabilities) else None


WEIGHTED_SUM = Operation(
    "weighted_sum",
    weighted_sum_forward,
    weighted_sum_backward,
    "heads = probabilities value",
    {
        "probabilities": Gradient("dprobabilities = dheads valueᵀ", ("value",)),
        "value": Gradient("dvalue = probabilitiesᵀ dheads", ("probabilities",)),
    },
    (heads_transposed, values_order, dvalue_transposed),
)
