"""Masked softmax: its equations and what people get wrong in it."""

from numpy_llm.attention import SoftmaxCache, masked_softmax_backward, masked_softmax_forward
from operations.operation import Gradient, Operation

MASKED_SOFTMAX = Operation(
    "masked_softmax",
    masked_softmax_forward,
    masked_softmax_backward,
    "softmax over the keys; a query at t sees keys 0 to t",
    {
        "scores": Gradient(
            "dscores = p · (dp - Σ dp · p over the keys), p = probabilities; 0 where masked", ("y",)
        )
    },
    (),
    SoftmaxCache,
)
