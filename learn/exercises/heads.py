"""Steps towards attention: splitting and merging heads, scores under a mask, the whole layer."""

import numpy as np

from contract.config import ModelConfig
from learn.exercises.exercise import Exercise, Trial, pair
from numpy_llm import attend, attention  # not its functions, which a mistake replaces
from operations.catalogue import OPERATIONS
from operations.operation import made

# Split heads


def _split_heads_forward(qkv, n_head):
    *parts, cache = attention.split_heads_forward(qkv, n_head)
    return np.stack(parts), cache


def _split_heads_backward(dy, cache):
    return {"dqkv": attention.split_heads_backward(*dy, cache)}


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
    operations=(OPERATIONS["split_heads"],),
    withheld=("split_heads_backward",),
)


# Merge heads


MERGE_HEADS = Exercise(
    "merge-heads",
    "merging heads: the same, the other way",
    lambda random, sizes: {"heads": random.normal(size=tuple(sizes[letter] for letter in "BHTD"))},
    *pair(attention, "merge_heads", "dheads"),
    hints=(
        "A token's C channels are its H heads side by side, D channels each.",
        "Reshape (B, T, C) to (B, T, H, D) first; only then are there axes to swap.",
    ),
    operations=(OPERATIONS["merge_heads"],),
    withheld=("merge_heads_backward",),
)


# Scores with a mask


def _scores_forward(query, key):
    scores, scores_cache = attend.scores_forward(query, key, query.shape[-1] ** -0.5)
    y, softmax_cache = attend.masked_softmax_forward(scores)
    return y, (scores_cache, softmax_cache)


def _scores_backward(dy, cache):
    scores_cache, softmax_cache = cache
    dscores = attend.masked_softmax_backward(dy, softmax_cache)
    dquery, dkey = attend.scores_backward(dscores, scores_cache)
    return {"dquery": dquery, "dkey": dkey}


def _draw_scores(random, sizes):
    shape = tuple(sizes[letter] for letter in "BHTD")
    return {"query": random.normal(size=shape), "key": random.normal(size=shape)}


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
    operations=(OPERATIONS["scores"], OPERATIONS["masked_softmax"]),
    withheld=("scores_backward",),
)


# Attention


def config_for(x, n_head) -> ModelConfig:
    """The configuration of a model whose layers read x."""
    _, T, C = x.shape
    return ModelConfig(
        vocab_size=1, context_length=T, n_layer=1, n_head=n_head, d_model=C, d_ff=4 * C, activation="gelu_tanh",
        position="learned",
    )  # fmt: skip


def _attention_forward(x, weights, n_head):
    weights = {f"attention.{name}": value for name, value in weights.items()}
    return attention.attention_forward(x, weights, "attention", config_for(x, n_head))


def _attention_backward(dy, cache):
    dx, gradients = attention.attention_backward(dy, cache)
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


def _attention_terms(trial: Trial):
    """Every gradient before the softmax is a sum over the ways through query, key and value."""
    split_heads, terms = OPERATIONS["split_heads"], {}
    for place, name in enumerate(("query", "key", "value")):
        with made(split_heads, split_heads.find("djoin_part"), place):  # which lets one of the three pass
            alone = ATTENTION.solve(trial)
        for output in ("dx", "dquery_key_value.weight", "dquery_key_value.bias"):
            terms.setdefault(output, {})[f"the path through {name}"] = alone[output]
    return terms


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
    operations=tuple(
        OPERATIONS[name]
        for name in ("split_heads", "scores", "masked_softmax", "weighted_sum", "merge_heads")
    ),
    withheld=("attention_backward", "attend_backward"),
    chained=True,
)
