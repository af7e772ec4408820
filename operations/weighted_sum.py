"""Weighted sum: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.attend import weighted_sum_backward, weighted_sum_forward
from operations.groups import misread, repeated, wrong_sums
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _weighed(probabilities, value):
    return probabilities @ repeated(value, probabilities.shape[1])


def _transposed(probabilities, value):
    T, S = probabilities.shape[-2:]
    return _weighed(probabilities.swapaxes(-1, -2), value) if T == S else None


def _other_heads(probabilities, value):
    others = value[:, ::-1], np.roll(value, 1, axis=1), np.roll(value, -1, axis=1)
    return [_weighed(probabilities, other) for other in others]


def _dvalue_transposed(dheads, cache):
    T, S = cache.probabilities.shape[-2:]
    same = T == S and cache.value.shape[1] == dheads.shape[1]
    return {"value": cache.probabilities @ dheads} if same else None


def _group_not_summed(dheads, cache):
    dvalue = cache.probabilities.swapaxes(-1, -2) @ dheads
    return [{"value": each} for each in wrong_sums(dvalue, cache.value.shape[1])]


WEIGHTED_SUM = Operation(
    "weighted_sum", weighted_sum_forward, weighted_sum_backward,
    "heads = probabilities value; query head h reads value head h // (H/K)",
    {
        "probabilities": Gradient("dprobabilities = dheads valueᵀ", ("value",)),
        "value": Gradient("dvalue = probabilitiesᵀ dheads", ("probabilities",)),
    },
    (
        wrong_forward("heads_transposed", _transposed,
            "the probabilities are transposed before they weigh the values"),
        wrong_forward("values_order", _other_heads,
            "the values of another head are weighed: their heads are reversed or moved by one"),
        wrong_forward("values_misread",
            lambda probabilities, value: [probabilities @ each for each in misread(value, probabilities.shape[1])],
            "query heads read the wrong value heads: head h reads h // (H/K), so each is repeated, not tiled, and "
            "along the heads, not along the sequence"),
        wrong_backward("dvalue_of_group", _group_not_summed,
            "the gradients of a group's query heads are not summed: a value head gets those of all that read it"),
        wrong_backward("dvalue_transposed", _dvalue_transposed,
            "dvalue needs probabilitiesᵀ: value s collects from every token t that looked at it"),
    ),
)  # fmt: skip
