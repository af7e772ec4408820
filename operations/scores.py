"""Scores: its equations and what people get wrong in it."""

from numpy_llm.attention import scores_backward, scores_forward
from operations.operation import Gradient, Operation

SCORES = Operation(
    "scores",
    scores_forward,
    scores_backward,
    "scores = query keyᵀ / √D, before the mask",
    {
        "query": Gradient("dquery = dscores key / √D", ("key",)),
        "key": Gradient("dkey = dscoresᵀ query / √D", ("query",)),
    },
    (),
)
