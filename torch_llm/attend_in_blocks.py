"""Attention in blocks: the numbers of `attend`, and nothing of size T · S is stored.

The dimension letters are explained in `contract/config.py`; S is the number of tokens attended to, and the T queries
are the last of them.
"""

import torch.nn.functional as F

from torch_llm.attend import causal_mask


def attend_in_blocks(query, key, value, scale, window=None):
    """heads = softmax(query keyᵀ · scale + mask) value, by PyTorch's kernel, which has no soft cap.

    query: float (B, H, T, D); key, value: float (B, K, S, D); scale: of the scores
    window: how many tokens a query sees, None for all before it
    returns: heads (B, H, T, D)
    Source: Dao et al. 2022, algorithm 1; Dao 2023, section 3.1.
    Twin: numpy_llm.attend_in_blocks.attend_in_blocks_forward and attend_in_blocks_backward
    """
    T, S = query.shape[-2], key.shape[-2]
    # A single query is the last token and sees every key. Otherwise the kernel's own causal mask fits if T = S.
    causal = T > 1 and T == S <= (window or S)
    mask = None
    if not causal and (T > 1 or (window or S) < S):
        mask = causal_mask(T, S, window, query.device).to(query.dtype)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
