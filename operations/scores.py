"""Scores: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.attend import ScoresCache, scores_backward, scores_forward
from operations.groups import misread, repeated, summed, wrong_sums
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _product(query, key):
    return query @ repeated(key, query.shape[1]).swapaxes(-1, -2)


def _other_scales(query, key, scale):
    _, H, _, D = query.shape
    others = [(H * D) ** -0.5, 1 / D, D**0.5, H**-0.5, D**-0.5]
    return [_product(query, key) * other for other in others if not np.isclose(other, scale)]


def _masked(query, key, scale):
    right = _product(query, key) * scale
    T, S = right.shape[-2:]
    hidden = np.triu(np.ones((T, S), bool), k=1 + S - T)
    return [np.where(hidden, value, right) for value in (-1e4, -1e9, -1e10, 0.0)]


def _parts(dscores, cache):
    """Both gradients before the scale, key's still by query head."""
    return dscores @ repeated(cache.key, dscores.shape[1]), dscores.swapaxes(-1, -2) @ cache.query


def _gradients(dscores, cache, factor):
    """Both gradients, scaled by a factor."""
    dquery, dkey = _parts(dscores, cache)
    return {"query": dquery * factor, "key": summed(dkey, cache.key.shape[1]) * factor}


def _one_or_both(dscores, cache):
    """Either gradient, or both, where there are as many keys as queries."""
    if cache.query.shape != cache.key.shape:
        return None
    wrong = _gradients(dscores, cache, cache.scale)
    return [{"key": wrong["key"]}, {"query": wrong["query"]}, wrong]


def _group_not_summed(dscores, cache):
    _, dkey = _parts(dscores, cache)
    return [{"key": each * cache.scale} for each in wrong_sums(dkey, cache.key.shape[1])]


SCORES = Operation(
    "scores", scores_forward, scores_backward,
    "scores = query keyᵀ / √D, before the mask; query head h reads key head h // (H/K)",
    {
        "query": Gradient("dquery = dscores key / √D", ("key",)),
        "key": Gradient("dkey = dscoresᵀ query / √D", ("query",)),
    },
    (
        wrong_forward("scale_missing", lambda query, key, scale: _product(query, key),
            "the scores are not divided by √D"),
        wrong_forward("scale_other", _other_scales,
            "the scores are scaled by something other than the model's scale: by 1/√C, 1/D, √D, 1/√H or 1/√D"),
        wrong_forward("keys_misread",
            lambda query, key, scale: [query @ each.swapaxes(-1, -2) * scale for each in misread(key, query.shape[1])],
            "query heads read the wrong key heads: head h reads h // (H/K), so each key head is repeated, not tiled, "
            "and along the heads, not along the sequence"),
        wrong_forward("scores_swapped",
            lambda query, key, scale: _product(key, query) * scale if query.shape == key.shape else None,
            "queries and keys are swapped: scores[query, key], not scores[key, query]"),
        wrong_forward("scores_masked", _masked,
            "the mask is added before the scores are dumped; the pack has them before the mask"),
        wrong_backward("dscores_without_scale", lambda dscores, cache: _gradients(dscores, cache, 1),
            "the factor 1/√D is left out: scores = query keyᵀ · scale, so scale is a factor on the way back too"),
        wrong_backward("dscores_scaled_twice", lambda dscores, cache: _gradients(dscores, cache, cache.scale**2),
            "the factor 1/√D counts twice: scale dscores, or query and key's gradients, but not both"),
        wrong_backward("dkey_of_group", _group_not_summed,
            "the gradients of a group's query heads are not summed: a key head gets those of all that read it"),
        wrong_backward("dscores_transposed",
            lambda dscores, cache: _one_or_both(dscores.swapaxes(-1, -2), cache),
            "dkey needs dscoresᵀ, and dquery dscores as it is: key s collects from every query t that saw it"),
        wrong_backward("dscores_other_factor",
            lambda dscores, cache: _one_or_both(dscores, ScoresCache(cache.key, cache.query, cache.scale)),
            "multiplied by the queries for the queries' gradient, or by the keys for the keys'",
            "query's gradient is made of key, and key's of query; yours takes the tensor itself"),
    ),
)  # fmt: skip
