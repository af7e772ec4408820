"""The NumPy twin as a backend: its batch split over threads, its memory kept between steps."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice, pairwise

import numpy as np
from threadpoolctl import ThreadpoolController

from contract.checks import check_targets
from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.randomness import DropoutKey
from contract.targets import counted
from contract.trace import Trace
from contract.weights import Weights, check_weights, frozen_names, weight_table
from harness.training.backend import BackendSettings
from harness.training.machine import keep_freed_memory
from harness.training.ranks import ALONE
from harness.training.tree_sum import tree_sum
from numpy_llm.adam import AdamW, clip_gradients, gradient_norm
from numpy_llm.generate import generate, generate_samples
from numpy_llm.gradients import GradientSum
from numpy_llm.model import GPT
from numpy_llm.threads import Team, cut, each

# Parts of a batch have about so many tokens, as large as products want them and no larger than caches do; and at least
# so many numbers in their residual stream, below which the calls of NumPy take longer than its work.
PART_TOKENS, PART_NUMBERS = 1024, 48_000
# Seconds. A thread that comes back from a call of NumPy sleeps until the interpreter is free, this long at most. With
# Python's 5 ms two threads took 1.02 to 1.06 times as long for a step.
SWITCH_INTERVAL = 1e-5
ADDED_NUMBERS = 1 << 18  # of two micro-batches' gradients, by a thread at a time


class NumpyBackend:
    """See `harness.training.backend.Backend`.

    The batch is computed in parts, and BLAS uses one thread for each. No cut depends on the number of threads, so a
    run is bit-identical for one seed, whatever the threads.
    """

    name, device, compile, sharing = "numpy", "cpu", False, ALONE

    def __init__(self, config: ModelConfig, weights, settings: BackendSettings):
        keep_freed_memory()
        sys.setswitchinterval(SWITCH_INTERVAL)
        if settings.device != self.device:
            raise ConfigError(
                f"NumPy computes on the cpu alone, got --device {settings.device}; add --backend torch"
            )
        if settings.dtype == "bfloat16":
            raise ConfigError(
                "NumPy has no bfloat16, which --dtype asks for; choose --backend torch or --dtype float32"
            )
        if settings.compile:
            raise ConfigError(
                "--compile is of PyTorch, and NumPy computes here; choose --backend torch or omit it"
            )
        self.config, self.seed, self.threads = config, settings.seed, settings.threads
        usable = isinstance(weights, Weights) and weights.flat.dtype == settings.dtype
        if weights and not (settings.take_weights and usable):
            check_weights(weights, config)
            given, weights = weights, Weights.zeros(config, settings.dtype)
            for name, view in weights.items():
                view[...] = given[name]
        self.model = GPT(config, weights, seed=settings.seed, dtype=settings.dtype)
        self._gradients: Weights | None = None  # of the last batch
        self._unused: list[Weights] = []  # memory for gradients, kept between steps
        self._adam, self._frozen = settings.adam, frozen_names(self.model.weights, settings.freeze)
        blas = ThreadpoolController()
        try:
            self.model.team = Team(self.threads, alone=lambda: blas.limit(limits=1, user_api="blas"))
        except RuntimeError as error:
            raise UserError(
                f"the system does not start {self.threads} threads ({error}); choose fewer with --threads"
            ) from error

    @cached_property
    def optimizer(self) -> AdamW:
        """AdamW over the model's weights; its moments exist from the first use on."""
        return AdamW(self.model.weights, **self._adam, frozen=self._frozen)

    def loss_and_gradients(self, tokens, targets, *, step, accumulate) -> float:
        if self._gradients is not None:
            self._unused.append(self._gradients)
        micro_batches = _split(slice(0, len(tokens)), accumulate)
        with self._working():
            found = (self._differentiate(tokens, targets, rows, step) for rows in micro_batches)
            loss, self._gradients = tree_sum(found, self._add)
        return loss

    def _add(self, one: tuple[float, Weights], other: tuple[float, Weights]) -> tuple[float, Weights]:
        """The sum of two losses, and of two gradients in the place of the first."""
        (loss, total), (other_loss, gradients) = one, other
        each(lambda part: _add_into(total.flat, gradients.flat, part), cut(len(total.flat), ADDED_NUMBERS))
        self._unused.append(gradients)
        return loss + other_loss, total

    def _differentiate(self, tokens, targets, rows: slice, step: int) -> tuple[float, Weights]:
        """The share of these rows in the loss of the batch, and their gradients."""
        gradients = self._unused.pop() if self._unused else None
        if gradients is None:
            gradients = Weights.zeros(self.config, self.model.dtype, without=self._frozen)
        total, parts = GradientSum(gradients, empty=True), self._parts(rows, tokens)
        later = products_wait(
            rows.stop - rows.start, tokens.shape[1], self.config.d_model, bool(self._frozen)
        )
        losses = [0.0] * len(parts)

        def differentiate(place: int, part: slice):
            dropout = DropoutKey(self.seed, step, first_sequence=part.start)
            loss, cache = self.model.loss(tokens[part], targets[part], dropout=dropout)
            share = counted(targets[part]) / counted(targets)
            losses[place] = share * float(loss)
            yield from self.model.backward_layers(cache, share, later=later)

        def advance(part) -> list[dict]:
            """The gradients of the next layer if products wait for it, of all layers if none do."""
            return list(islice(part, 1 if later else None))

        advancing = [partial(advance, differentiate(place, part)) for place, part in enumerate(parts)]
        adding = []
        while True:  # the gradients of one layer are added up while the parts go through the next
            groups = each(_call, [*advancing, *adding])[: len(parts)]
            if not groups[0]:
                return sum(losses), gradients
            # One layer after another: a tied matrix has gradients in the first and in the last.
            *earlier, adding = [total.work(layers) for layers in zip(*groups, strict=True)]
            for work in earlier:
                each(_call, work)

    def trace(self, tokens, targets, *, step) -> Trace:
        trace = Trace()
        with np.errstate(all="ignore"):
            dropout = DropoutKey(self.seed, step)
            _, _, cache = self.model.forward(tokens, targets, dropout=dropout, trace=trace)
            self.model.backward(cache, trace=trace)
        return trace

    def clip(self, max_norm) -> float:
        with self._working():
            if max_norm is None:
                return gradient_norm(self._gradients)
            return clip_gradients(self._gradients, max_norm)

    def update(self, learning_rate):
        with self._working():
            self.optimizer.update(self._gradients, learning_rate)

    def evaluate(self, tokens, targets) -> float:
        check_targets(targets, tokens[:, -targets.shape[-1] :].shape, self.config)  # before they are split

        def evaluate(rows: slice) -> float:
            loss, _ = self.model.loss(tokens[rows], targets[rows], keep=False)
            return float(loss) * counted(targets[rows]) / counted(targets)

        with self._working():
            return sum(each(evaluate, self._parts(slice(0, len(tokens)), tokens)))

    def evaluate_each(self, batches):
        return ((batch, self.evaluate(*batch)) for batch in batches)

    def logits(self, tokens, last, rows) -> Iterator[np.ndarray]:
        with self._working():
            x, _ = self.model.stream_forward(tokens)
        for start in range(len(x[0]) - last, len(x[0]), rows):
            with self._working():
                logits, *_ = self.model.logits_forward(x[0, start : start + rows])
            yield logits

    def weights(self) -> Mapping[str, np.ndarray]:
        return self.model.weights

    def optimizer_state(self) -> Mapping[str, np.ndarray]:
        frozen, adam = set(self._frozen), self.optimizer
        table = {name: spec for name, spec in weight_table(self.config).items() if name not in frozen}
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

    @contextmanager
    def _working(self) -> Iterator[None]:
        # What is no longer finite is told by the trainer, once.
        with np.errstate(all="ignore"), self.model.team.working():
            yield

    def _parts(self, rows: slice, tokens) -> list[slice]:
        return _split(rows, part_count(rows.stop - rows.start, tokens.shape[1], self.config.d_model))


def part_count(sequences: int, T: int, d_model: int) -> int:
    """How many parts a batch is computed in, at best on a thread each.

    A power of two, so that two or four threads have equally much to do, and never by the number of threads. At least
    two, unless there is too little to do; more where parts would be large.
    """
    tokens = sequences * T
    if tokens * d_model < 2 * PART_NUMBERS:
        return 1
    wanted = max(2, -(-tokens // PART_TOKENS))
    return 1 << (min(sequences, wanted)).bit_length() - 1


def products_wait(sequences: int, T: int, d_model: int, frozen: bool) -> bool:
    """Whether the products of weights' gradients wait until all parts are through a layer.

    The product of a part with fewer tokens than channels takes less time than to write and add its result. Of frozen
    weights no product is taken when all are known.
    """
    return frozen or sequences * T < part_count(sequences, T, d_model) * d_model


def _call(work: Callable):
    return work()


def _add_into(total: np.ndarray, more: np.ndarray, part: slice):
    total[part] += more[part]


def _split(rows: slice, parts: int) -> list[slice]:
    """Cut rows into at most `parts` slices of nearly equal length, none of them empty."""
    count = rows.stop - rows.start
    parts = min(parts, count)
    edges = [rows.start + count * part // parts for part in range(parts + 1)]
    return [slice(*edge) for edge in pairwise(edges)]
