"""Steps towards attention: splitting and merging heads, scores under a mask, the whole layer."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np

from exercises.exercise import Exercise, Mistake, Trial
from numpy_llm.attention import (
    attention_backward,
    attention_forward,
    causal_mask,
    softmax_backward,
    softmax_forward,
)

# Split heads


def _split_heads_forward(qkv, n_head):
    B, T, columns = qkv.shape
    return qkv.reshape(B, T, 3, n_head, columns // (3 * n_head)).transpose(2, 0, 3, 1, 4), qkv.shape


def _split_heads_backward(dy, cache):
    return {"dqkv": dy.transpose(1, 3, 0, 2, 4).reshape(cache)}


def _columns_in_order(*order: int):
    """The right numbers, but with the columns of a token laid out along other axes of (3, B, H, T, D)."""

    def wrong(trial: Trial):
        B, T, columns = trial.inputs["qkv"].shape
        return {"dqkv": trial.dy.transpose(order).reshape(B, T, columns)}

    return wrong


SPLIT_HEADS = Exercise(
    "split-heads",
    "splitting into heads: a reshape and a transpose, undone in reverse",
    lambda random, sizes: {
        "qkv": random.normal(size=(sizes["B"], sizes["T"], 3 * sizes["C"])),
        "n_head": sizes["H"],
    },
    _split_heads_forward,
    _split_heads_backward,
    hints=(
        "No number changes, they only move: the gradient is dy, moved back to where each number came from.",
        "The forward pass reshapes and then transposes; go back with the inverse transpose, then the reshape.",
        "transpose(2, 0, 3, 1, 4) put axis 2 first. Which order puts (3, B, H, T, D) back to (B, T, 3, H, D)?",
    ),
    mistakes=(
        Mistake(
            lambda trial: {"dqkv": trial.dy.reshape(trial.inputs["qkv"].shape)},
            "you reshape without transposing back first: the numbers keep the order (3, B, H, T, D)",
        ),
        Mistake(
            _columns_in_order(1, 3, 2, 0, 4),
            "a token's columns come as (H, 3, D); the forward pass read them as (3, H, D): query, key and value "
            "are the outer axis",
        ),
        Mistake(
            lambda trial: {
                "dqkv": trial.dy.transpose(2, 0, 3, 1, 4).reshape(trial.inputs["qkv"].shape),
            },
            "you transpose by the forward pass's own order again; the way back needs its inverse",
        ),
    ),
)


# Merge heads


def _merge_heads_forward(heads):
    B, H, T, D = heads.shape
    return heads.swapaxes(1, 2).reshape(B, T, H * D), heads.shape


def _merge_heads_backward(dy, cache):
    B, H, T, D = cache
    return {"dheads": dy.reshape(B, T, H, D).swapaxes(1, 2)}


MERGE_HEADS = Exercise(
    "merge-heads",
    "merging heads: the same, the other way",
    lambda random, sizes: {"heads": random.normal(size=tuple(sizes[letter] for letter in "BHTD"))},
    _merge_heads_forward,
    _merge_heads_backward,
    hints=(
        "A token's C channels are its H heads side by side, D channels each.",
        "Reshape (B, T, C) to (B, T, H, D) first; only then are there axes to swap.",
    ),
    mistakes=(
        Mistake(
            lambda trial: {"dheads": trial.dy.reshape(trial.inputs["heads"].shape)},
            "you reshape straight to (B, H, T, D), which cuts the tokens apart; reshape to (B, T, H, D), then swap "
            "T and H",
        ),
        Mistake(
            lambda trial: {
                "dheads": trial.dy.reshape(*(trial.sizes[letter] for letter in "BTDH")).transpose(0, 3, 1, 2)
            },
            "you read a token's channels as (D, H); they are (H, D): a head's channels lie side by side",
        ),
    ),
)


# Scores with a mask

UNCROSSED = "scores = query keyᵀ, so query's gradient is made of key and key's of query; yours takes the tensor itself"


def _scores_forward(query, key):
    T, D = query.shape[-2:]
    probabilities, _ = softmax_forward(query @ key.swapaxes(-1, -2) * D**-0.5 + causal_mask(T, T))
    return probabilities, (query, key, probabilities)


def _scores_backward(dy, cache):
    query, key, probabilities = cache
    return _from_scores(softmax_backward(dy, probabilities), query, key)


def _from_scores(dscores, query, key):
    dscores = dscores * query.shape[-1] ** -0.5
    return {"dquery": dscores @ key, "dkey": dscores.swapaxes(-1, -2) @ query}


def _draw_scores(random, sizes):
    shape = tuple(sizes[letter] for letter in "BHTD")
    return {"query": random.normal(size=shape), "key": random.normal(size=shape)}


def _scores_with(dscores):
    """The wrong outputs that come of another gradient of the scores: (dy, probabilities) -> dscores."""

    def wrong(trial: Trial):
        probabilities, (query, key, _) = _scores_forward(**trial.inputs)
        return _from_scores(dscores(trial.dy, probabilities), query, key)

    return wrong


def _scores_times(factor):
    """The outputs times a function of D."""

    def wrong(trial: Trial):
        return {
            name: value * factor(trial.sizes["D"])
            for name, value in SCORES.solve(trial).items()
            if name != "y"
        }

    return wrong


def _scores_uncrossed(trial: Trial):
    probabilities, (query, key, _) = _scores_forward(**trial.inputs)
    return _from_scores(softmax_backward(trial.dy, probabilities), key, query)


def _key_untransposed(trial: Trial):
    probabilities, (query, _, _) = _scores_forward(**trial.inputs)
    dscores = softmax_backward(trial.dy, probabilities) * query.shape[-1] ** -0.5
    return {"dkey": dscores @ query}


SCORES = Exercise(
    "scores",
    "attention's scores: a scaled product, a mask, a softmax",
    _draw_scores,
    _scores_forward,
    _scores_backward,
    hints=(
        "Go back through the lines: softmax, mask, scale, product. softmax_backward is yours already.",
        "The mask adds a constant: no gradient of its own. Softmax has made the masked places 0, and they stay 0.",
        "scores = query keyᵀ · scale, so dquery = dscores key · scale and dkey = dscoresᵀ query · scale.",
    ),
    mistakes=(
        Mistake(
            _scores_times(lambda D: D**0.5),
            "the factor 1/√D is left out: scores = query keyᵀ · scale, and scale is there on the way back too",
        ),
        Mistake(
            _scores_times(lambda D: D**-0.5),
            "the factor 1/√D counts twice: once for query, once for key, but each path passes it only once",
        ),
        Mistake(
            _scores_with(lambda dy, probabilities: dy),
            "the softmax is skipped: dy belongs to the probabilities; bring it to the scores with softmax_backward",
        ),
        Mistake(
            _scores_with(lambda dy, probabilities: dy * (probabilities > 0)),
            "the softmax is skipped: dy belongs to the probabilities; bring it to the scores with softmax_backward",
        ),
        Mistake(
            _scores_with(lambda dy, probabilities: dy * probabilities * (1 - probabilities)),
            "softmax is taken as if each score moved its own probability alone; use softmax_backward",
        ),
        Mistake(_scores_uncrossed, UNCROSSED),
        Mistake(_key_untransposed, "dkey needs dscoresᵀ: key s collects from every query t that saw it"),
    ),
)


# Attention


def _config(n_head, C):
    return SimpleNamespace(n_head=n_head, head_size=C // n_head, dropout=0.0)


def _attention_forward(x, weights, n_head):
    weights = {f"attention.{name}": value for name, value in weights.items()}
    return attention_forward(x, weights, "attention", _config(n_head, x.shape[-1]))


def _attention_backward(dy, cache):
    dx, gradients = attention_backward(dy, cache)
    return {"dx": dx} | {
        "d" + name.removeprefix("attention."): gradient for name, gradient in gradients.items()
    }


def _draw_attention(random, sizes):
    B, T, C = (sizes[letter] for letter in "BTC")
    return {
        "x": random.normal(size=(B, T, C)),
        "weights": {
            "query_key_value.weight": random.normal(size=(3 * C, C)) * 0.4,
            "query_key_value.bias": random.normal(size=3 * C) * 0.4,
            "output.weight": random.normal(size=(C, C)) * 0.4,
            "output.bias": random.normal(size=C) * 0.4,
        },
        "n_head": sizes["H"],
    }


def _transposed(array):
    return array.swapaxes(-1, -2)


def _split(array, n_head):
    """(B, T, C) -> (B, H, T, D), as the forward pass splits."""
    return array.reshape(*array.shape[:2], n_head, -1).swapaxes(1, 2)


def _cut(array, n_head):
    """A reshape alone, which is not the same."""
    B, T, _ = array.shape
    return array.reshape(B, n_head, T, -1)


def _attention_parts(
    trial: Trial,
    *,
    scalings=1,
    split=_split,
    through_softmax=softmax_backward,
    for_key=_transposed,
    for_value=_transposed,
    uncrossed=(),
):
    """dquery, dkey and dvalue, each (B, H, T, D), with the steps that a mistake has.

    scalings: how often 1/√D is a factor
    uncrossed: which of "query" and "key" get their gradient from themselves instead of from one another
    """
    x, weights, n_head = trial.inputs.values()
    qkv = x @ weights["query_key_value.weight"].T + weights["query_key_value.bias"]
    (query, key, value), _ = _split_heads_forward(qkv, n_head)
    probabilities, _ = _scores_forward(query, key)
    dheads = split(trial.dy @ weights["output.weight"], n_head)
    dscores = through_softmax(dheads @ value.swapaxes(-1, -2), probabilities)
    dscores = dscores * query.shape[-1] ** (-0.5 * scalings)
    dquery = dscores @ (query if "query" in uncrossed else key)
    dkey = for_key(dscores) @ (key if "key" in uncrossed else query)
    return dquery, dkey, for_value(probabilities) @ dheads


def _attention_from_parts(trial: Trial, *parts, axes=(1, 3, 0, 2, 4)):
    """The outputs before the softmax, of dquery, dkey and dvalue whose (3, B, H, T, D) is laid out along `axes`."""
    x, weights, _ = trial.inputs.values()
    dqkv = np.stack(parts).transpose(axes).reshape(*x.shape[:2], -1)
    rows = dqkv.reshape(-1, dqkv.shape[-1])
    return {
        "dx": dqkv @ weights["query_key_value.weight"],
        "dquery_key_value.weight": rows.T @ x.reshape(-1, x.shape[-1]),
        "dquery_key_value.bias": rows.sum(axis=0),
    }


def _attention_terms(trial: Trial):
    """Every gradient before the softmax is a sum over the ways through query, key and value."""
    parts = _attention_parts(trial)
    terms = {}
    for place, name in enumerate(("query", "key", "value")):
        alone = [part if place == at else np.zeros_like(part) for at, part in enumerate(parts)]
        for output, value in _attention_from_parts(trial, *alone).items():
            terms.setdefault(output, {})[f"the path through {name}"] = value
    return terms


def _attention_with(**changes):
    return lambda trial: _attention_from_parts(trial, *_attention_parts(trial, **changes))


def _parts_cut(trial: Trial):
    """Each of dquery, dkey and dvalue reshaped to (B, T, C) without a swap before."""
    parts = _attention_parts(trial)
    rows = (part.reshape(trial.inputs["x"].shape) for part in parts)
    return _attention_from_parts(trial, *(_split(each, trial.inputs["n_head"]) for each in rows))


def _attention_in_order(order):
    """Query, key and value put together in another order."""

    def wrong(trial: Trial):
        parts = _attention_parts(trial)
        return _attention_from_parts(trial, *(parts[place] for place in order))

    return wrong


ATTENTION = Exercise(
    "attention",
    "causal attention with several heads, every gradient of it",
    _draw_attention,
    _attention_forward,
    _attention_backward,
    hints=(
        "Read the forward pass from its last line to its first and write the gradient of each line.",
        "heads = probabilities value gives two gradients: dprobabilities = dheads valueᵀ, dvalue = probabilitiesᵀ "
        "dheads.",
        "x reaches query, key and value. Put their gradients back into one dqkv, as split-heads taught, and let one "
        "linear_backward add the three ways.",
    ),
    terms=_attention_terms,
    mistakes=(
        Mistake(
            _attention_with(scalings=0),
            "the factor 1/√D is left out on the way back from the scores to query and key",
        ),
        Mistake(
            _attention_with(scalings=2),
            "the factor 1/√D counts twice: scale dscores, or query and key's gradients, but not both",
        ),
        Mistake(
            _attention_with(through_softmax=lambda dy, probabilities: dy * (probabilities > 0)),
            "the softmax is skipped on the way back: bring dprobabilities to dscores with softmax_backward",
        ),
        Mistake(
            _attention_with(through_softmax=lambda dy, probabilities: dy),
            "the softmax is skipped on the way back: bring dprobabilities to dscores with softmax_backward",
        ),
        Mistake(
            _attention_with(
                through_softmax=lambda dy, probabilities: dy * probabilities * (1 - probabilities)
            ),
            "softmax is taken as if each score moved its own probability alone; use softmax_backward",
        ),
        *(
            Mistake(_attention_with(uncrossed=names), UNCROSSED)
            for names in (("query",), ("key",), ("query", "key"))
        ),
        Mistake(
            _attention_with(split=_cut),
            "dmerged is reshaped straight to (B, H, T, D), which cuts the tokens apart; reshape to (B, T, H, D), then "
            "swap T and H",
        ),
        Mistake(
            lambda trial: _attention_from_parts(trial, *_attention_parts(trial), axes=range(5)),
            "dqkv is reshaped without transposing back first: the numbers keep the order (3, B, H, T, D)",
        ),
        Mistake(
            _parts_cut,
            "each of dquery, dkey and dvalue is reshaped straight to (B, T, C), which mixes the tokens; swap H and T "
            "first",
        ),
        Mistake(
            _attention_with(for_key=lambda dscores: dscores),
            "dkey needs dscoresᵀ: key s collects from every query t that saw it",
        ),
        Mistake(
            _attention_with(for_value=lambda probabilities: probabilities),
            "dvalue needs probabilitiesᵀ: value s collects from every token t that looked at it",
        ),
        *(
            Mistake(
                _attention_in_order(order),
                "query, key and value stand in another order in dqkv than the forward pass read them",
            )
            for order in permutations(range(3))
            if order != (0, 1, 2)
        ),
        Mistake(
            lambda trial: _attention_from_parts(trial, *_attention_parts(trial), axes=(1, 3, 2, 0, 4)),
            "the columns of dqkv come as (H, 3, D); the forward pass read them as (3, H, D)",
        ),
    ),
    withheld=("attention_backward",),
    chained=True,
)
