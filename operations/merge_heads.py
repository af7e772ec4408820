"""Merge heads: its equations and what people get wrong in it."""

from numpy_llm.attention import merge_heads_backward, merge_heads_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


@wrong_forward("heads are merged by a reshape alone; swap T and H first, then reshape to (B, T, C)")
def merge_without_swap(heads):
    B, H, T, D = heads.shape
    return heads.reshape(B, T, H * D)


@wrong_forward("heads are merged interleaved: head h belongs in channels h·D to (h+1)·D")
def merge_interleaved(heads):
    B, H, T, D = heads.shape
    return heads.transpose(0, 2, 3, 1).reshape(B, T, H * D)


@wrong_backward(
    "the gradient is split by a reshape to (B, H, T, D) alone; reshape to (B, T, H, D), then swap T and H",
    "the merged gradient is reshaped straight to (B, H, T, D), which cuts the tokens apart; reshape to (B, T, H, D), "
    "then swap T and H",
)
def dmerge_without_swap(dmerged, cache):
    return {"heads": dmerged.reshape(cache.shape)}


@wrong_backward(
    "the gradient is split interleaved: head h has channels h·D to (h+1)·D, not every H-th",
    "a token's channels are read as (D, H); they are (H, D): a head's channels lie side by side",
)
def dmerge_interleaved(dmerged, cache):
    B, H, T, D = cache.shape
    return {"heads": dmerged.reshape(B, T, D, H).transpose(0, 3, 1, 2)}


MERGE_HEADS = Operation(
    "merge_heads",
    merge_heads_forward,
    merge_heads_backward,
    "merged = the heads side by side, head h in channels h·D to (h+1)·D",
    {"heads": Gradient("dheads = split_heads(dmerged)")},
    (merge_without_swap, merge_interleaved, dmerge_without_swap, dmerge_interleaved),
)
