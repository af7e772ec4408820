"""Weighted sum: its equations and what people get wrong in it."""

from numpy_llm.attention import weighted_sum_backward, weighted_sum_forward
from operations.operation import Gradient, Operation

WEIGHTED_SUM = Operation(
    "weighted_sum",
    weighted_sum_forward,
    weighted_sum_backward,
    "heads = probabilities value",
    {
        "probabilities": Gradient("dprobabilities = dheads valueᵀ", ("value",)),
        "value": Gradient("dvalue = probabilitiesᵀ dheads", ("probabilities",)),
    },
    (),
)
