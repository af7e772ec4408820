"""Cross-entropy: its equations and what people get wrong in it."""

from numpy_llm.losses import cross_entropy_backward, cross_entropy_forward
from operations.operation import Gradient, Operation

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
    (),
)
