"""From logits to the next token, the same in both twins because it exists once."""

import numpy as np

from contract.errors import ConfigError
from contract.randomness import uniform


def check_sampling(temperature: float, top_k: int | None, top_p: float | None):
    """Raise ConfigError unless the settings of `sample` make sense."""
    if not temperature >= 0 or temperature == np.inf:
        raise ConfigError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top-k must be at least 1, got {top_k}; leave it out to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(
            f"top-p must be above 0 and at most 1, got {top_p}; leave it out to keep every token"
        )


def sample(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    sequence: int = 0,
    position: int = 0,
) -> int:
    """Draw the next token: a pure function of the logits, the settings and (seed, sequence, position).

    logits: float (V,), unnormalised log-probabilities
    temperature: divides the logits; 0 takes the most likely token (the lowest id on a tie)
    top_k: keep only the k most likely tokens, None for all
    top_p: of those, keep the fewest whose probabilities reach p together, None for all
        (nucleus sampling, Holtzman et al. 2020, section 3.1)
    seed, sequence, position: which draw this is; `position` counts the tokens before the drawn one
    """
    logits = np.asarray(logits, np.float64)
    if temperature == 0:
        return int(logits.argmax())

    # Most likely first; a stable sort breaks ties towards the lower id, as argmax does.
    order = np.argsort(-logits, kind="stable")[:top_k]
    scaled = (logits[order] - logits[order[0]]) / temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if top_p is not None:
        # A token stays while those before it have not reached p yet, so at least one always stays.
        before = np.cumsum(probabilities) - probabilities
        probabilities = probabilities[before < top_p]

    # Inverse of the cumulative distribution. Its last value is not searched: rounding may leave it below 1.
    cumulative = np.cumsum(probabilities)
    draw = uniform(seed, "sampling", sequence, position) * cumulative[-1]
    return int(order[np.searchsorted(cumulative[:-1], draw, side="right")])
