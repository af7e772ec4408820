"""Merge heads: its equations and what people get wrong in it."""

from numpy_llm.attention import merge_heads_backward, merge_heads_forward
from operations.operation import Gradient, Operation

MERGE_HEADS = Operation(
    "merge_heads",
    merge_heads_forward,
    merge_heads_backward,
    "merge_heads: head h in channels h·D to (h+1)·D",
    {"heads": Gradient("dheads = split_heads(dmerged)")},
    (),
)
