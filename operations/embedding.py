"""Embedding: its equations and what people get wrong in it."""

from numpy_llm.layers import embedding_backward, embedding_forward
from operations.operation import Gradient, Operation

EMBEDDING = Operation(
    "embedding",
    embedding_forward,
    embedding_backward,
    "y[b, t] = weight[tokens[b, t]]",
    {"weight": Gradient("dweight[v] = Σ dy[b, t] over all places whose token is v", ("tokens",))},
    (),
)
