"""Whether a training fits into memory, before it is begun."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np

from contract.config import ModelConfig
from contract.errors import UserError
from contract.randomness import DropoutKey
from contract.weights import Weights, parameter_count, weight_table
from harness.training.backend import backend_class
from harness.training.machine import available_cpus, available_memory
from harness.training.settings import TrainingSettings
from numpy_llm.model import GPT

MAX_ACCUMULATE = 1024  # more micro-batches than anybody would wait for


def check_memory(backend: str, config: ModelConfig, settings: TrainingSettings, threads: int | None):
    """Raise UserError if a training would take more memory than this process may use, with a way out.

    backend: its name; threads: None for one per CPU
    """
    memory = available_memory()
    # The blocks alone, with gradients and moments: the whole weight table could be too large to make.
    one, two = (parameter_count(replace(config, n_layer=layers)) for layers in (1, 2))
    needed = 4 * config.n_layer * (two - one) * np.dtype(settings.dtype).itemsize

    def estimate(accumulate: int) -> int:
        return backend_class(backend).estimate_memory(
            config,
            batch_size=settings.batch_size,
            accumulate=accumulate,
            threads=threads or available_cpus(),
            dtype=settings.dtype,
        )

    if needed > memory:
        raise UserError(
            f"the model alone takes {needed / 1e9:,.0f} GB of memory to train, and this process may use "
            f"{memory / 1e9:,.1f} GB; choose a smaller one"
        )
    needed = estimate(settings.accumulate)
    if needed > memory:
        raise UserError(
            f"training takes about {needed / 1e9:,.1f} GB of memory, and this process may use "
            f"{memory / 1e9:,.1f} GB; {_what_fits(estimate, settings, memory)}"
        )


def _what_fits(estimate: Callable[[int], int], settings: TrainingSettings, memory: int) -> str:
    """What to change, in words: the fewest micro-batches that bring the estimate below `memory`."""
    if estimate(settings.batch_size) > memory:
        return "choose a smaller model, a shorter --context-length or a smaller vocabulary"
    for parts in range(settings.accumulate + 1, min(settings.batch_size, MAX_ACCUMULATE) + 1):
        if settings.batch_size % parts == 0 and estimate(parts) <= memory:
            return f"with --accumulate {parts} it takes {estimate(parts) / 1e9:,.1f} GB and gives the same result"
    return "choose a smaller --batch-size"


@lru_cache(maxsize=2)
def cached_numbers(config: ModelConfig) -> tuple[float, float]:
    """How many numbers the caches of `numpy_llm` keep for the backward pass: per token, and per pair of tokens.

    Counted in passes over two and four tokens.
    """
    two, four = _cached(config, 2), _cached(config, 4)
    pairs = (four - 2 * two) / 8  # two = 2 · tokens + 4 · pairs, four = 4 · tokens + 16 · pairs
    return (two - 4 * pairs) / 2, pairs


def _cached(config: ModelConfig, T: int) -> int:
    """What the caches of a pass over T tokens keep beside the weights; one layer runs and is counted L times."""
    small = replace(config, n_layer=1, context_length=T)
    flat = np.broadcast_to(np.float32(0), parameter_count(small))  # a single zero, whatever the model's size
    model = GPT(small, Weights(weight_table(small), flat))
    tokens = np.zeros((1, T), np.int64)
    _, _, cache = model.forward(tokens, tokens, dropout=DropoutKey(0, 0))
    layer = _size(cache.stream.blocks)
    return config.n_layer * layer + _size(cache) - layer


def _size(cache) -> int:
    """The numbers of a cache's arrays, views of the same memory counted once, and those of one number not at all."""

    def owners(cache) -> Iterator[np.ndarray]:
        if isinstance(cache, np.ndarray):
            yield cache if cache.base is None else cache.base
        elif isinstance(cache, tuple | list):
            for each in cache:
                yield from owners(each)

    return sum(
        array.size for array in {id(array): array for array in owners(cache)}.values() if array.size > 1
    )
