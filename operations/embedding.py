"""Embedding: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.layers import embedding_backward, embedding_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


@wrong_forward("the embedding is multiplied by √C, as in the first transformer; GPT-2 does not")
def embedding_scaled(tokens, weight):
    return weight[tokens] * weight.shape[1] ** 0.5


@wrong_forward("token ids are counted from 1: the row before or after is taken")
def embedding_from_one(tokens, weight):
    return [weight[(tokens + step) % len(weight)] for step in (1, -1)]


@wrong_backward(
    "repeated tokens overwrite each other: add up the gradients of all places of a token",
    "right for tokens that occur once; a token that occurs again overwrites what was there: its places must be summed "
    "(np.add.at, or a loop)",
)
def dtable_overwritten(dy, cache):
    rows, places = dy.reshape(-1, dy.shape[-1]), cache.tokens.reshape(-1)
    last, first = np.zeros(cache.shape, dy.dtype), np.zeros(cache.shape, dy.dtype)
    last[places] = rows
    first[places[::-1]] = rows[::-1]
    return [{"weight": last}, {"weight": first}]


@wrong_backward(
    "a token that occurs again within its sequence counts once: add up all its places",
    "a token that occurs again within its sequence counts once: dweight[tokens] += dy adds to each row only once, in a "
    "loop over the sequences too; np.add.at counts all",
)
def dtable_overwritten_within(dy, cache):
    dweight = np.zeros(cache.shape, dy.dtype)
    for tokens, part in zip(cache.tokens, dy, strict=True):
        dweight[tokens] += part
    return {"weight": dweight}


@wrong_backward(
    "a token's gradient is the mean over its places; wanted: the sum",
    "you take the mean over the places of a token; its row was used in each of them: take the sum",
)
def dtable_mean(dy, cache):
    counts = np.bincount(cache.tokens.reshape(-1), minlength=cache.shape[0])
    return {"weight": embedding_backward(dy, cache) / np.maximum(counts, 1)[:, None]}


EMBEDDING = Operation(
    "embedding",
    embedding_forward,
    embedding_backward,
    "y[b, t] = weight[tokens[b, t]]",
    {"weight": Gradient("dweight[v] = Σ dy[b, t] over all places whose token is v", ("tokens",))},
    (embedding_scaled, embedding_from_one, dtable_overwritten, dtable_overwritten_within, dtable_mean),
)
