"""Embedding: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.layers import embedding_backward, embedding_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _overwritten(dy, cache):
    """Of each token's places the last one, or the first."""
    rows, places = dy.reshape(-1, dy.shape[-1]), cache.tokens.reshape(-1)
    last, first = np.zeros(cache.shape, dy.dtype), np.zeros(cache.shape, dy.dtype)
    last[places] = rows
    first[places[::-1]] = rows[::-1]
    return [{"weight": last}, {"weight": first}]


def _overwritten_within(dy, cache):
    dweight = np.zeros(cache.shape, dy.dtype)
    for tokens, part in zip(cache.tokens, dy, strict=True):
        dweight[tokens] += part
    return {"weight": dweight}


def _mean(dy, cache):
    counts = np.bincount(cache.tokens.reshape(-1), minlength=cache.shape[0])
    return {"weight": embedding_backward(dy, cache) / np.maximum(counts, 1)[:, None]}


EMBEDDING = Operation(
    "embedding", embedding_forward, embedding_backward, "y[b, t] = weight[tokens[b, t]]",
    {"weight": Gradient("dweight[v] = Σ dy[b, t] over all places whose token is v", ("tokens",))},
    (
        wrong_forward("embedding_scaled", lambda tokens, weight: weight[tokens] * weight.shape[1] ** 0.5,
            "the embedding is multiplied by √C, as in the first transformer; GPT-2 does not"),
        wrong_forward("embedding_from_one",
            lambda tokens, weight: [weight[(tokens + step) % len(weight)] for step in (1, -1)],
            "token ids are counted from 1: the row before or after is taken"),
        wrong_backward("dtable_overwritten", _overwritten,
            "repeated tokens overwrite each other: add up the gradients of all places of a token",
            "a token that occurs again overwrites what was there: sum over its places (np.add.at, or a loop)"),
        wrong_backward("dtable_overwritten_within", _overwritten_within,
            "a token that occurs again within its sequence counts once: add up all its places",
            "a token that occurs again within its sequence counts once: dweight[tokens] += dy adds to each row only "
            "once, in a loop over the sequences too; np.add.at counts all"),
        wrong_backward("dtable_mean", _mean,
            "a token's gradient is the mean over its places; wanted: the sum",
            "you take the mean over the places of a token; its row was used in each of them: take the sum"),
    ),
)  # fmt: skip
