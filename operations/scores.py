"""Scores: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.attend import scores_backward, scores_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _transposed(array):
    return array.swapaxes(-1, -2)


@wrong_forward("the scores are not divided by √D")
def scale_missing(query, key, scale):
    return query @ _transposed(key)


@wrong_forward("the scores are scaled by something other than 1/√D: by 1/√C, 1/D, or 1/√D twice")
def scale_other(query, key, scale):
    _, H, _, D = query.shape
    return [query @ _transposed(key) * other for other in ((H * D) ** -0.5, 1 / D, D**0.5, H**-0.5)]


@wrong_forward("queries and keys are swapped: scores[query, key], not scores[key, query]")
def scores_swapped(query, key, scale):
    return key @ _transposed(query) * scale if query.shape == key.shape else None


@wrong_forward("the mask is added before the scores are dumped; the pack has them before the mask")
def scores_masked(query, key, scale):
    right = query @ _transposed(key) * scale
    T, S = right.shape[-2:]
    hidden = np.triu(np.ones((T, S), bool), k=1 + S - T)
    return [np.where(hidden, value, right) for value in (-1e4, -1e9, -1e10, 0.0)]


# Backward


def _gradients(dscores, cache, factor):
    """Both gradients, scaled by a factor."""
    return {
        "query": dscores @ cache.key * factor,
        "key": _transposed(dscores) @ cache.query * factor,
    }


@wrong_backward(
    "1/√D is missing",
    "the factor 1/√D is left out: scores = query keyᵀ · scale, so scale is a factor on the way back too",
)
def dscores_without_scale(dscores, cache):
    return _gradients(dscores, cache, 1)


@wrong_backward(
    "multiplied by 1/√D twice",
    "the factor 1/√D counts twice: scale dscores, or query and key's gradients, but not both",
)
def dscores_scaled_twice(dscores, cache):
    return _gradients(dscores, cache, cache.scale**2)


@wrong_backward(
    "dscores is transposed where it should not be, or not where it should",
    "dkey needs dscoresᵀ, and dquery dscores as it is: key s collects from every query t that saw it",
)
def dscores_transposed(dscores, cache):
    if dscores.shape[-1] != dscores.shape[-2]:
        return None
    wrong = {
        "query": _transposed(dscores) @ cache.key * cache.scale,
        "key": dscores @ cache.query * cache.scale,
    }
    return [{"key": wrong["key"]}, {"query": wrong["query"]}, wrong]


@wrong_backward(
    "multiplied by the queries for the queries' gradient, or by the keys for the keys'",
    "scores = query keyᵀ, so query's gradient is made of key and key's of query; yours takes the tensor itself",
)
def dscores_other_factor(dscores, cache):
    if cache.query.shape != cache.key.shape:
        return None
    wrong = _gradients(dscores, cache._replace(query=cache.key, key=cache.query), cache.scale)
    return [{"query": wrong["query"]}, {"key": wrong["key"]}, wrong]


SCORES = Operation(
    "scores",
    scores_forward,
    scores_backward,
    "scores = query keyᵀ / √D, before the mask",
    {
        "query": Gradient("dquery = dscores key / √D", ("key",)),
        "key": Gradient("dkey = dscoresᵀ query / √D", ("query",)),
    },
    (
        scale_missing, scale_other, scores_swapped, scores_masked, dscores_without_scale, dscores_scaled_twice,
        dscores_transposed, dscores_other_factor,
    ),
)  # fmt: skip
