"""The exercises that are one step without a backward pass: clipping, accumulation, the key/value cache.

Beside the right function of each stands what people get wrong in it, as functions of the same arguments.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np

from operations.clipping import CLIPPING, NORM

# Clipping


def gradient_clipping(first, second, max_norm):
    """Scale the gradients of two tensors down together where their joint norm exceeds max_norm.

        norm = √(Σ first² + Σ second²)
        gradient = gradient · max_norm / norm  if norm > max_norm, else as it is

    Return the two gradients and the norm before clipping; leave the arguments as they are.
    """
    norm = np.sqrt((first**2).sum() + (second**2).sum())
    factor = max_norm / norm if norm > max_norm else 1.0
    return {"first": first * factor, "second": second * factor, "norm": norm}


def _clipped_wrongly(compute: Callable):
    """One of `CLIPPING` in the exercise."""

    def wrong(first, second, max_norm):
        right = gradient_clipping(first, second, max_norm)
        first, second = (compute(each, right["norm"], {"max_norm": max_norm}) for each in (first, second))
        return right | {"first": first, "second": second}

    return wrong


def _of_other_norm(compute: Callable):
    """One of `NORM` in the exercise: all is scaled by that norm."""

    def wrong(first, second, max_norm):
        both = {"first": first, "second": second}
        flat = np.concatenate([first.ravel(), second.ravel()])
        norm = compute(SimpleNamespace(flat=flat, values=both.values), max_norm)
        factor = max_norm / norm if norm > max_norm else 1.0
        return {name: each * factor for name, each in both.items()} | {"norm": norm}

    return wrong


# Accumulation


def accumulation(gradients, tokens):
    """Join the gradients of the micro-batches of one step, each of the mean loss over its own tokens.

        gradient = Σ_n tokens[n] gradients[n] / Σ_n tokens[n]

    which is the gradient of the mean loss over all tokens, however they are split. Return new arrays.
    """
    share = tokens / tokens.sum()
    return {"gradient": np.einsum("n,nfc->fc", share, gradients)}


def _joined(weights: Callable):
    """The sum with other weights: tokens -> one for each micro-batch."""
    return lambda gradients, tokens: {"gradient": np.einsum("n,nfc->fc", weights(tokens), gradients)}


def _at(place: int, share: Callable):
    return _joined(lambda tokens: (np.arange(len(tokens)) == place % len(tokens)) * share(tokens))


def _share(tokens):
    return tokens / tokens.sum()


# The key/value cache


def _rotated(x, theta, start, way=1.0):
    T, D = x.shape[-2:]
    angle = way * (start + np.arange(T))[:, None] * theta ** (-np.arange(0, D, 2) / D)
    first, second = np.split(x, 2, axis=-1)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def key_value_cache(query, key, value, past_key, past_value, theta):
    """Attend to T new tokens behind P earlier ones, whose keys, turned already, and values were kept.

        query, key = both turned by place: token t of the new ones has place P + t, and pair i, i + D/2 is turned by
                     (P + t) · theta^(-2i/D)
        keys, values = the past ones and behind them the new
        heads = softmax(query keysᵀ / √D + mask) values,   mask[t, s] = -inf where s > P + t, else 0

    Return heads, keys and values, the cache of the next step; leave the arguments as they are.
    """
    return _cached(query, key, value, past_key, past_value, theta)


def _cached(query, key, value, past_key, past_value, theta, *, start=0, shift=0, past_first=True, scale=True):
    """The step with parts exchanged: start, shift: added to the places of the rotation and of the mask."""
    P, (T, D) = past_key.shape[2], query.shape[-2:]
    query, key = (_rotated(x, theta, P + start) for x in (query, key))
    keys, values = (
        np.concatenate(pair if past_first else pair[::-1], axis=2)
        for pair in ((past_key, key), (past_value, value))
    )
    scores = query @ keys.swapaxes(-1, -2) / (np.sqrt(D) if scale else 1)
    seen = np.arange(P + T) <= (P + shift + np.arange(T))[:, None]
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return {"heads": weights / weights.sum(axis=-1, keepdims=True) @ values, "keys": keys, "values": values}


def _from_zero(query, key, value, past_key, past_value, theta):
    P = past_key.shape[2]
    return _cached(query, key, value, past_key, past_value, theta, start=-P)


def _masked_from_zero(query, key, value, past_key, past_value, theta):
    P = past_key.shape[2]
    return _cached(query, key, value, past_key, past_value, theta, shift=-P)


def _not_kept(query, key, value, past_key, past_value, theta):
    """The right heads, and of the cache the new ones alone."""
    right, T = key_value_cache(query, key, value, past_key, past_value, theta), query.shape[2]
    return right | {name: right[name][:, :, -T:] for name in ("keys", "values")}


def _kept_unturned(query, key, value, past_key, past_value, theta):
    right = key_value_cache(query, key, value, past_key, past_value, theta)
    return right | {"keys": np.concatenate([past_key, key], axis=2)}


STEPS = {
    "gradient-clipping": gradient_clipping,
    "accumulation": accumulation,
    "key-value-cache": key_value_cache,
}

# Exercise -> (name, hint, forms of the wrong function), the likeliest first.
WRONG = {
    "gradient-clipping": (
        *((each.name, each.text, (_clipped_wrongly(each.compute),)) for each in CLIPPING),
        *((each.name, each.text, (_of_other_norm(each.compute),)) for each in NORM),
    ),
    "accumulation": (
        ("mean_of_means",
            "every micro-batch counts alike: weigh each by its tokens, or the loss depends on how the batch is split",
            (_joined(lambda tokens: np.full(len(tokens), 1 / len(tokens))),)),
        ("accumulated_sum", "not divided by the count of all tokens", (_joined(lambda tokens: tokens),)),
        ("accumulated_unweighted", "added up as they are: weigh each by its share of the tokens",
            (_joined(np.ones_like),)),
        ("accumulated_per_batch", "divided by the number of micro-batches: by the count of all tokens",
            (_joined(lambda tokens: tokens / len(tokens)),)),
        ("accumulated_last", "only one micro-batch is left: in a loop, += and not =",
            tuple(_at(place, share) for place in (-1, 0) for share in (_share, np.ones_like))),
    ),
    "key-value-cache": (
        ("cache_place", "the new tokens are turned as if they began the text: token t has place P + t", (_from_zero,)),
        ("cache_place_off", "the places of the new tokens are off by one: the first has place P",
            tuple(partial(_cached, start=off) for off in (1, -1))),
        ("cache_mask", "the mask counts from the first new token: query t sees the keys up to P + t",
            (_masked_from_zero,)),
        ("cache_unmasked", "no mask: a new token sees those after it", (partial(_cached, shift=10**6),)),
        ("cache_itself_unseen", "the mask hides each token from itself: s > P + t is hidden, s = P + t is not",
            (partial(_cached, shift=-1),)),
        ("cache_before_past", "the new keys and values stand before the past ones: they come behind",
            (partial(_cached, past_first=False),)),
        ("cache_without_past", "the cache that is returned holds the new tokens alone: the next step needs all",
            (_not_kept,)),
        ("cache_unturned", "the key is kept as it was before the rotation: the past ones are turned already",
            (_kept_unturned,)),
        ("cache_unscaled", "the scores are not divided by √D", (partial(_cached, scale=False),)),
    ),
}  # fmt: skip


@contextmanager
def made_in_place(exercise: str, forms: tuple[Callable, ...], form: int = 0) -> Iterator[list]:
    """Put a wrong function in the place of a step; undone at the end. yields: nothing past the last form"""
    right = STEPS[exercise]
    try:
        STEPS[exercise] = forms[form] if form < len(forms) else right
        yield [form] if form < len(forms) else []
    finally:
        STEPS[exercise] = right


CODE = {
    name: {"forward": lambda name=name, **inputs: STEPS[name](**inputs), "backward": None, "given": right}
    for name, right in STEPS.items()
}
