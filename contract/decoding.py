"""The one generation loop, which both twins hand their model's step to."""

from collections.abc import Callable, Collection, Iterator

import numpy as np

from contract.checks import check_prompt, check_stop, check_whole
from contract.config import ModelConfig
from contract.sampling import Sampling, check_sampling, sample

# Windows that slide are computed in groups of at most so many tokens, or one by one: a pass over 1,024 tokens keeps
# every core busy, and more of them at once would only take more memory.
MAX_PASS_TOKENS = 1024


def decode(
    tokens,
    max_new_tokens: int,
    num_samples: int,
    *,
    config: ModelConfig,
    sampling: Sampling,
    stop: Collection[int],
    next_logits: Callable[..., np.ndarray],
    new_cache: Callable[[], object],
    use_cache: bool,
) -> Iterator[tuple[int, int]]:
    """Yield (sample, token) for each token that continues `tokens` in one of the samples, as soon as it is drawn.

    next_logits: (tokens (N, T), kv_cache) -> float (N, V), the logits after tokens, which it adds to the cache
    new_cache: makes an empty key/value cache; its `length` counts its tokens, `select(rows)` replaces its sequences
    The other arguments and the errors are those of `numpy_llm.generate.generate_samples`.
    """
    check_whole("max_new_tokens", max_new_tokens)
    check_whole("num_samples", num_samples, 1)
    check_sampling(*sampling)
    check_sampling(*sampling._replace(sequence=sampling.sequence + num_samples - 1))
    stop = check_stop(stop, config)
    tokens = check_prompt(tokens, config)  # a list of our own
    samples = {number: list(tokens) for number in range(num_samples)}
    return _decode(
        samples, max_new_tokens, config.context_length, sampling, stop, next_logits, new_cache, use_cache
    )


def _decode(samples, max_new_tokens, context_length, sampling, stop, next_logits, new_cache, use_cache):
    """samples: the tokens of each sample that goes on, by number; all are the prompt at first"""
    kv_cache = None
    for _ in range(max_new_tokens):
        windows = [tokens[-context_length:] for tokens in samples.values()]
        if kv_cache is None:  # the prompt's pass serves all
            kv_cache, rows = new_cache(), [0] * len(samples)  # each sample's row of the cache
            logits = next_logits(windows[:1], kv_cache)[rows]
        elif use_cache and kv_cache.length < context_length:
            kv_cache.select(rows)
            rows = range(len(samples))
            logits = next_logits([window[-1:] for window in windows], kv_cache)
        else:
            logits = []
            for group in _groups(windows, MAX_PASS_TOKENS // context_length):
                kv_cache = new_cache()
                logits.extend(next_logits(group, kv_cache))
        going_on = []
        for row, its_logits, (number, tokens) in zip(rows, logits, list(samples.items()), strict=True):
            place = {"sequence": sampling.sequence + number, "position": len(tokens), "seen": tokens}
            token = sample(its_logits, **sampling._asdict() | place)
            tokens.append(token)
            if token in stop:
                del samples[number]
            else:
                going_on.append(row)
            yield number, token
        if not samples:
            return
        rows = going_on


def _groups(items: list, size: int) -> Iterator[list]:
    size = max(1, size)
    for first in range(0, len(items), size):
        yield items[first : first + size]


def kv_cache_numbers(config: ModelConfig, tokens: int) -> int:
    """How many numbers the keys and values of so many tokens are; a layer with a window of W keeps W at most."""
    windows = [config.layer(place).window for place in range(config.n_layer)]
    kept = sum(tokens if window is None else min(tokens, window) for window in windows)
    return 2 * config.n_kv_head * config.head_size * kept
