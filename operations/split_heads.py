"""Split heads: its equations and what people get wrong in it."""

from numpy_llm.attention import split_heads_backward, split_heads_forward
from operations.operation import Gradient, Operation

SPLIT_HEADS = Operation(
    "split_heads",
    split_heads_forward,
    split_heads_backward,
    "query, key, value = the thirds of qkv, head h in channels h·D to (h+1)·D of each",
    {"qkv": Gradient("dqkv = join(dquery, dkey, dvalue), as qkv was split")},
    (),
)
