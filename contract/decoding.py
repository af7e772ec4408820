"""The one generation loop, which both twins hand their model's step to."""

from collections.abc import Callable, Iterator

import numpy as np

from contract.checks import check_prompt, check_whole
from contract.config import ModelConfig
from contract.sampling import Sampling, check_sampling, sample


def decode(
    tokens,
    max_new_tokens: int,
    *,
    config: ModelConfig,
    sampling: Sampling,
    next_logits: Callable[..., np.ndarray],
    new_cache: Callable[[], object],
    use_cache: bool,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` tokens that continue `tokens`, each as soon as it is drawn.

    next_logits: (tokens, kv_cache) -> float (V,), the logits after tokens, which it adds to the cache
    new_cache: makes an empty key/value cache, whose `length` counts its tokens
    The other arguments and the errors are those of `numpy_llm.generate.generate`.
    """
    check_sampling(*sampling)
    check_whole("max_new_tokens", max_new_tokens)
    tokens = check_prompt(tokens, config)  # a list of our own
    return _decode(tokens, max_new_tokens, config.context_length, sampling, next_logits, new_cache, use_cache)


def _decode(tokens, max_new_tokens, context_length, sampling, next_logits, new_cache, use_cache):
    kv_cache = None
    for _ in range(max_new_tokens):
        if kv_cache is None or kv_cache.length == context_length or not use_cache:
            kv_cache = new_cache()
            unseen = tokens[-context_length:]
        logits = next_logits(unseen, kv_cache)
        token = sample(logits, **sampling._asdict(), position=len(tokens))
        tokens.append(token)
        unseen = [token]
        yield token


def kv_cache_numbers(config: ModelConfig, tokens: int) -> int:
    """How many numbers the keys and values of so many tokens are; a layer with a window of W keeps W at most."""
    windows = [config.layer(place).window for place in range(config.n_layer)]
    kept = sum(tokens if window is None else min(tokens, window) for window in windows)
    return 2 * config.n_kv_head * config.head_size * kept
