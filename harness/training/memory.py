"""Whether a training fits into memory, before it is begun."""

from collections.abc import Callable

import numpy as np

from contract.config import ModelConfig
from contract.errors import UserError
from harness.training.backend import backend_class
from harness.training.machine import available_cpus, available_memory
from harness.training.settings import TrainingSettings

MAX_ACCUMULATE = 1024  # more micro-batches than anybody would wait for


def check_memory(backend: str, config: ModelConfig, settings: TrainingSettings, threads: int | None):
    """Raise UserError if a training would take more memory than this process may use, with a way out.

    backend: its name; threads: None for one per CPU
    """
    C, F, memory = config.d_model, config.d_ff, available_memory()
    # The blocks' matrices alone, with gradients and moments: a weight table could be too large to estimate.
    needed = 4 * config.n_layer * C * (4 * C + 2 * F) * np.dtype(settings.dtype).itemsize

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
