"""The NumPy twin as a backend: its batch split over threads, its memory kept between steps."""

import ctypes
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import pairwise
from threading import BrokenBarrierError

import numpy as np
from threadpoolctl import ThreadpoolController

from contract.checks import check_targets
from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.randomness import DropoutKey
from contract.trace import Trace
from contract.weights import Weights, check_weights, weight_table
from harness.training.backend import BackendSettings
from harness.training.turnstile import Turnstile
from numpy_llm.adam import AdamW, clip_gradients, gradient_norm
from numpy_llm.generate import generate, generate_samples
from numpy_llm.model import GPT


class NumpyBackend:
    """See `harness.training.backend.Backend`.

    Each thread takes a part of the batch with one BLAS thread. They add their gradients to one buffer in a fixed
    order, so a run is bit-identical for one seed and thread count.
    """

    name, device = "numpy", "cpu"

    def __init__(self, config: ModelConfig, weights, settings: BackendSettings):
        keep_freed_memory()
        if settings.device != self.device:
            raise ConfigError(
                f"NumPy computes on the cpu alone, got --device {settings.device}; add --backend torch"
            )
        self.config, self.seed, self.threads = config, settings.seed, settings.threads
        usable = isinstance(weights, Weights) and weights.flat.dtype == settings.dtype
        if weights and not (settings.take_weights and usable):
            check_weights(weights, config)
            given, weights = weights, Weights.zeros(config, settings.dtype)
            for name, view in weights.items():
                view[...] = given[name]
        self.model = GPT(config, weights, seed=settings.seed, dtype=settings.dtype)
        self._adam = settings.adam
        self._pool = ThreadPoolExecutor(self.threads)
        self._blas = ThreadpoolController()

    @cached_property
    def optimizer(self) -> AdamW:
        """AdamW over the model's weights; its moments exist from the first use on."""
        return AdamW(self.model.weights, **self._adam)

    @cached_property
    def _gradients(self) -> Weights:
        return Weights.zeros(self.config, self.model.dtype)

    def loss_and_gradients(self, tokens, targets, *, step, accumulate) -> float:
        self._gradients.flat.fill(0)
        loss = 0.0
        for micro_batch in _split(slice(0, len(tokens)), accumulate):
            parts = _split(micro_batch, self.threads)
            turnstile = Turnstile(len(parts))

            def differentiate(part: slice, place: int, turnstile=turnstile) -> float:
                with turnstile.aborted_by_failure():
                    share = (part.stop - part.start) / len(tokens)
                    dropout = DropoutKey(self.seed, step, first_sequence=part.start)
                    loss, cache = self.model.loss(tokens[part], targets[part], dropout=dropout)
                    turn = partial(turnstile.turn, place)
                    self.model.backward(cache, dloss=share, gradients=self._gradients, turn=turn)
                    return share * float(loss)

            with turnstile.aborted_by_failure():  # also of a thread that cannot start
                loss += sum(self._over_threads(differentiate, parts))
        return loss

    def trace(self, tokens, targets, *, step) -> Trace:
        trace = Trace()
        with np.errstate(all="ignore"):
            dropout = DropoutKey(self.seed, step)
            _, _, cache = self.model.forward(tokens, targets, dropout=dropout, trace=trace)
            self.model.backward(cache, trace=trace)
        return trace

    def clip(self, max_norm) -> float:
        if max_norm is None:
            return gradient_norm(self._gradients)
        return clip_gradients(self._gradients, max_norm)

    def update(self, learning_rate):
        self.optimizer.update(self._gradients, learning_rate)

    def evaluate(self, tokens, targets) -> float:
        check_targets(targets, tokens[:, -targets.shape[-1] :].shape, self.config)  # before they are split

        def evaluate(rows: slice, place: int) -> float:
            loss, _ = self.model.loss(tokens[rows], targets[rows])
            return float(loss) * (rows.stop - rows.start) / len(tokens)

        return sum(self._over_threads(evaluate, _split(slice(0, len(tokens)), self.threads)))

    def weights(self) -> Mapping[str, np.ndarray]:
        return self.model.weights

    def optimizer_state(self) -> Mapping[str, np.ndarray]:
        table, adam = weight_table(self.config), self.optimizer
        moments = (("m", Weights(table, adam.m)), ("v", Weights(table, adam.v)))
        return {f"{moment}.{name}": value for moment, values in moments for name, value in values.items()}

    def load_optimizer_state(self, state, step):
        for name, value in self.optimizer_state().items():
            value[...] = state[name]
        self.optimizer.step = step

    def generate(self, tokens, max_new_tokens, **sampling) -> Iterator[int]:
        return generate(self.model, tokens, max_new_tokens, **sampling)

    def generate_samples(self, tokens, max_new_tokens, num_samples, **sampling) -> Iterator[tuple[int, int]]:
        return generate_samples(self.model, tokens, max_new_tokens, num_samples, **sampling)

    def _over_threads(self, function, parts: list[slice]) -> list[float]:
        """Call `function(part, place)` for the parts of a batch, one per thread. returns: results in order"""

        def quietly(part: slice, place: int) -> float:
            with np.errstate(all="ignore"):  # the trainer says so, once, when the loss is no longer finite
                return function(part, place)

        if len(parts) == 1:  # a single part has all threads to itself, inside BLAS
            with self._blas.limit(limits=self.threads, user_api="blas"):
                return [quietly(parts[0], 0)]
        with self._blas.limit(limits=1, user_api="blas"):
            try:
                calls = [self._pool.submit(quietly, part, place) for place, part in enumerate(parts)]
            except RuntimeError as error:
                raise UserError(
                    f"the system does not start {len(parts)} threads ({error}); choose fewer with --threads"
                ) from error
            # The cause of the failure comes before the threads that only waited for it.
            failures = [failure for call in calls if (failure := call.exception())]
            for failure in sorted(failures, key=lambda failure: isinstance(failure, BrokenBarrierError)):
                raise failure
            return [call.result() for call in calls]


def _split(rows: slice, parts: int) -> list[slice]:
    """Cut rows into at most `parts` slices of nearly equal length, none of them empty."""
    count = rows.stop - rows.start
    parts = min(parts, count)
    edges = [rows.start + count * part // parts for part in range(parts + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def keep_freed_memory():
    """Let glibc keep the memory of a step's activations for the next step.

    To take fresh, zeroed pages from the kernel was a seventh of a `nano` step on two threads, a quarter on one.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
