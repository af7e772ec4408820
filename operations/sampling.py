"""Sampling a token from the logits with a number drawn in [0, 1): the rule and what people get wrong in it.

settings: temperature, top_k and top_p, which may be None; draws: of all new tokens of the text; place: of this one
"""

from collections.abc import Mapping

import numpy as np

from operations.operation import Mistake, wrong_forward


def chosen(
    logits: np.ndarray,
    draws: np.ndarray,
    place: int,
    settings: Mapping,
    *,
    kept=None,
    mass=None,
    temperature=None,
    falling=True,
    draw=None,
) -> int:
    """The id of the token that is drawn at `place`, counted from 0.

    What mistakes exchange: kept: top_k; mass: top_p; temperature; falling: whether the tokens are in falling order of
    their logits, or in that of their ids; draw: in place of `draws[place]`
    """
    order = np.argsort(-logits, kind="stable")[: settings["top_k"] if kept is None else kept]
    probabilities = np.exp((logits[order] - logits.max()) / (temperature or settings["temperature"]))
    probabilities /= probabilities.sum()
    most = settings.get("top_p") if mass is None else mass
    if most is not None:
        order = order[: np.count_nonzero(np.cumsum(probabilities) - probabilities < most)]
    if not falling:
        order = np.sort(order)
    sums = np.cumsum(np.exp((logits[order] - logits.max()) / (temperature or settings["temperature"])))
    wanted = (draws[place] if draw is None else draw) * sums[-1]
    return int(order[np.searchsorted(sums[:-1], wanted, side="right")])


def _with(**changes):
    return lambda logits, draws, place, settings: chosen(logits, draws, place, settings, **changes)


def _other_k(logits, draws, place, settings):
    others = (settings["top_k"] + 1, settings["top_k"] - 1)
    return [chosen(logits, draws, place, settings, kept=other) for other in others if other]


def _multiplied(logits, draws, place, settings):
    return chosen(logits, draws, place, settings, temperature=1 / settings["temperature"])


def _other_draws(logits, draws, place, settings):
    """Those of the token before and after; the first has none before it, and the last none after it."""
    places = (max(place - 1, 0), min(place + 1, len(draws) - 1))
    return [chosen(logits, draws, place, settings, draw=draws[other]) for other in places]


def _upside_down(logits, draws, place, settings):
    return chosen(logits, draws, place, settings, draw=1 - draws[place])


def _if_limited(mistake):
    return lambda logits, draws, place, settings: (
        mistake(logits, draws, place, settings) if settings.get("top_p") else None
    )


MISTAKES: tuple[Mistake, ...] = (
    wrong_forward("most_likely_taken", lambda logits, draws, place, settings: int(logits.argmax()),
        "the most likely token is taken; wanted: one drawn by its probability"),
    wrong_forward("top_k_missing", lambda logits, draws, place, settings: chosen(
            logits, draws, place, settings, kept=len(logits)), "top-k is not applied: all tokens can be drawn"),
    wrong_forward("top_k_off_by_one", _other_k, "top-k keeps one token too many, or one too few"),
    wrong_forward("top_p_missing", _if_limited(_with(mass=2.0)), "top-p is not applied"),
    wrong_forward("temperature_missing", _with(temperature=1.0), "the logits are not divided by the temperature"),
    wrong_forward("temperature_multiplied", _multiplied,
        "the logits are multiplied by the temperature; wanted: divided"),
    wrong_forward("draw_shifted", _other_draws,
        "the number drawn is another token's: each new token has its own, the first one the first"),
    wrong_forward("draw_upside_down", _upside_down,
        "the running sum is compared with 1 - draw, or runs from the least likely token"),
    wrong_forward("order_of_ids", _with(falling=False),
        "the running sum goes by token id; wanted: by falling logit"),
)  # fmt: skip
