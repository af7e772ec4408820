"""Merge heads: its equations and what people get wrong in it."""

from numpy_llm.attention import merge_heads_backward, merge_heads_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _split_interleaved(dmerged, cache):
    B, H, T, D = cache.shape
    return {"heads": dmerged.reshape(B, T, D, H).transpose(0, 3, 1, 2)}


MERGE_HEADS = Operation(
    "merge_heads", merge_heads_forward, merge_heads_backward,
    "merged = the heads side by side, head h in channels h·D to (h+1)·D",
    {"heads": Gradient("dheads = split_heads(dmerged)")},
    (
        wrong_forward("merge_without_swap", lambda heads: heads.reshape(len(heads), heads.shape[2], -1),
            "heads are merged by a reshape alone; swap T and H first, then reshape to (B, T, C)"),
        wrong_forward("merge_interleaved",
            lambda heads: heads.transpose(0, 2, 3, 1).reshape(len(heads), heads.shape[2], -1),
            "heads are merged interleaved: head h belongs in channels h·D to (h+1)·D"),
        wrong_backward("dmerge_without_swap", lambda dmerged, cache: {"heads": dmerged.reshape(cache.shape)},
            "the gradient is split by a reshape to (B, H, T, D) alone; reshape to (B, T, H, D), then swap T and H",
            "dmerged is reshaped straight to (B, H, T, D), which cuts the tokens apart; split its channels, then swap"),
        wrong_backward("dmerge_interleaved", _split_interleaved,
            "the gradient is split interleaved: head h has channels h·D to (h+1)·D, not every H-th",
            "a token's channels are read as (D, H); they are (H, D): a head's channels lie side by side"),
    ),
)  # fmt: skip
