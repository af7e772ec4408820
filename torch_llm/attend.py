"""What attention computes from queries, keys and values.

Source: Vaswani et al. 2017, section 3.2.1. The dimension letters are explained in `contract/config.py`; S is the
number of tokens attended to: T, or more when a key/value cache holds earlier ones.
"""

import torch
import torch.nn.functional as F

from contract.trace import NO_TRACE
from torch_llm.layers import dropout as drop
from torch_llm.layers import soft_cap
from torch_llm.precision import full_precision


def _repeated(x, H):
    """(B, K, S, D) -> (B, H, S, D): key/value head k serves the query heads k·H/K to (k+1)·H/K - 1."""
    return x.repeat_interleave(H // x.shape[1], dim=1)


def scores(query, key, scale):
    """How well each query fits each key: scores = query keyᵀ · scale; query head h reads key head h // (H/K).

    query: float (B, H, T, D); key: float (B, K, S, D); scale: 1/√D as a rule
    returns: scores (B, H, T, S), before the mask
    Source: Vaswani et al. 2017, section 3.2.1; Ainslie et al. 2023, section 2.2.
    Twin: numpy_llm.attend.scores_forward and scores_backward
    """
    key = _repeated(key, query.shape[1])
    fits = query @ key.transpose(-1, -2)  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
    return full_precision(fits) * scale


def softmax(x):
    """Turn the last axis into probabilities: y = exp(x) / Σ exp(x).

    x: float (..., S); -inf becomes exactly 0; every row holds at least one finite value
    returns: y (..., S)
    Twin: numpy_llm.attend.softmax_forward and softmax_backward
    """
    return F.softmax(full_precision(x), dim=-1)


def causal_mask(T, S, window=None, device=None):
    """What to add to the scores: 0 where query t may see key s, -inf where s lies in its future or before its window.

    The T queries are the last of the S tokens, so query t stands at place S - T + t; with a window of W it sees the
    last W tokens up to itself.
    returns: float32 (T, S)
    Twin: numpy_llm.attend.causal_mask
    """
    hidden = torch.full((T, S), -torch.inf, device=device)
    mask = hidden.triu(1 + S - T)
    return mask if window is None else mask + hidden.tril(S - T - window)


def masked_softmax(scores, window=None):
    """The share of each key that a query may see: softmax(scores + mask).

    scores: float (B, H, T, S); window: how many tokens a query sees, None for all before it
    returns: probabilities (B, H, T, S)
    Source: Vaswani et al. 2017, section 3.2.3; Beltagy et al. 2020, section 3.1 (window).
    Twin: numpy_llm.attend.masked_softmax_forward and masked_softmax_backward
    """
    T, S = scores.shape[-2:]
    if T == 1 and (window or S) >= S:  # the last token sees all
        return softmax(scores)
    return softmax(scores + causal_mask(T, S, window, scores.device))


def weighted_sum(probabilities, value):
    """What each query gathers: heads = probabilities value; query head h reads value head h // (H/K).

    probabilities: float (B, H, T, S); value: float (B, K, S, D)
    returns: heads (B, H, T, D)
    Source: Vaswani et al. 2017, equation 1.
    Twin: numpy_llm.attend.weighted_sum_forward and weighted_sum_backward
    """
    value = _repeated(value, probabilities.shape[1])
    return probabilities @ value  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)


def attend(query, key, value, name, config, window=None, dropout=None, trace=NO_TRACE):
    """Weigh the values by how well each query fits their keys: heads = softmax(query keyᵀ / √D + mask) value.

    Written out step by step: what a trace records, and where masks of our own drop probabilities.

    query: float (B, H, T, D); key, value: float (B, K, S, D); window: how many tokens a query sees, None for all
    the rest as in `Attention.forward`
    returns: heads (B, H, T, D)
    Source: Vaswani et al. 2017, equation 1.
    Twin: numpy_llm.attend.attend_forward and attend_backward
    """
    fits = scores(query, key, config.score_scale)
    trace.record(f"{name}.scores", fits)
    if config.score_cap is not None:
        fits = soft_cap(fits, config.score_cap)
        trace.record(f"{name}.capped_scores", fits)
    probabilities = masked_softmax(fits, window)
    trace.record(f"{name}.probabilities", probabilities)
    kept = drop(probabilities, config.dropout, dropout, f"{name}.probabilities")
    trace.record(f"{name}.probabilities_dropout", kept)
    heads = weighted_sum(kept, value)
    trace.record(f"{name}.heads", heads)
    return heads
