"""The interface of a backend, and how to open one by name."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from contract.config import ModelConfig
from contract.errors import ConfigError, needs
from contract.trace import Trace
from harness.training.machine import available_cpus
from harness.training.ranks import Ranks, Sharing
from harness.training.settings import DTYPES, TrainingSettings

BACKENDS = ("numpy", "torch")
MAX_THREADS = 1024
Batch = tuple[np.ndarray, np.ndarray]


class Backend(Protocol):
    """A model with its optimiser. `tokens` and `targets` are int64 (B, T); a loss is in nats per token."""

    name: str  # that opens it
    config: ModelConfig
    device: str  # "cpu", "cuda" or "mps"
    threads: int  # how many it computes with
    compile: bool  # whether training steps are compiled
    sharing: Sharing  # of its work with other processes

    def loss_and_gradients(
        self, tokens: np.ndarray, targets: np.ndarray, *, step: int, accumulate: int
    ) -> float:
        """The loss of a batch, its gradients kept for `clip` and `update`.

        step: counted from 0, the key of the dropout masks; accumulate: micro-batches, which do not change the result
        """

    def trace(self, tokens: np.ndarray, targets: np.ndarray, *, step: int) -> Trace:
        """Every tensor of a pass over a batch, and its gradient, with the dropout of that step."""

    def clip(self, max_norm: float | None) -> float:
        """Scale the gradients down to `max_norm` (None: leave them). returns: their norm before"""

    def update(self, learning_rate: float):
        """One step of AdamW."""

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """The loss of a batch without dropout; only of the last P positions if targets are (B, P)."""

    def evaluate_each(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
        """Yield each batch of tokens and targets with its loss, as `evaluate` gives it, in their order."""

    def logits(self, tokens: np.ndarray, last: int, rows: int) -> Iterator[np.ndarray]:
        """Yield the logits after each of the last positions of one sequence, at most `rows` at a time, without dropout.

        tokens: int64 (1, T); last: how many positions; yields: float (n, V)
        """

    def weights(self) -> Mapping[str, np.ndarray]:
        """The weights by name."""

    def optimizer_state(self) -> Mapping[str, np.ndarray]:
        """Adam's moments, "m." and "v." before the name of each weight that is not frozen."""

    def load_optimizer_state(self, state: Mapping[str, np.ndarray], step: int):
        """Continue from these moments after `step` updates."""

    def generate(self, tokens: list[int], max_new_tokens: int, **sampling) -> Iterator[int]:
        """Yield tokens that continue `tokens`; `sampling` as in `numpy_llm.generate.generate`."""

    def generate_samples(
        self, tokens: list[int], max_new_tokens: int, num_samples: int, **sampling
    ) -> Iterator[tuple[int, int]]:
        """Yield (sample, token) of several at once; `sampling` as in `numpy_llm.generate.generate_samples`."""


@dataclass(frozen=True, kw_only=True)
class BackendSettings:
    """How a backend computes.

    seed: of initial weights and dropout; dtype: see `TrainingSettings`
    threads, device, compile: see `Machine`; beta1, beta2, weight_decay: of AdamW
    freeze: patterns of weights that stay as they are, see `contract.weights.frozen_names`
    take_weights: whether the backend may train the given weights in place if it needs no copy
    Raises ConfigError for an impossible number of threads.
    """

    seed: int = TrainingSettings.seed
    dtype: str = TrainingSettings.dtype
    threads: int | None = None
    device: str = "cpu"
    compile: bool = False
    beta1: float = TrainingSettings.beta1
    beta2: float = TrainingSettings.beta2
    weight_decay: float = TrainingSettings.weight_decay
    freeze: str = TrainingSettings.freeze
    take_weights: bool = False

    def __post_init__(self):
        object.__setattr__(self, "threads", thread_count(self.threads))  # the dataclass is frozen

    @property
    def weights_dtype(self) -> str:
        """The type of weights, gradients and moments."""
        return DTYPES.get(self.dtype, self.dtype)

    @property
    def adam(self) -> dict[str, float]:
        """The settings of AdamW."""
        return {"beta1": self.beta1, "beta2": self.beta2, "weight_decay": self.weight_decay}


def open_backend(
    backend: str,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    ranks: Ranks | None = None,
    **settings,
) -> Backend:
    """A backend ready to train or generate.

    backend: "numpy" or "torch"; PyTorch is imported only for the latter
    weights: what to start from; None draws initial weights from the seed
    ranks: the processes to train with, for "torch"
    settings: fields of BackendSettings
    Raises ConfigError for an unknown name or impossible settings, UserError if PyTorch is not installed.
    """
    check_backend(backend)
    if ranks:
        from harness.training.following import open_leader

        return open_leader(ranks, config, weights, BackendSettings(**settings))
    if backend == "numpy":
        from harness.training.numpy_backend import NumpyBackend as Opened
    else:
        from harness.training.torch_backend import TorchBackend as Opened
    return Opened(config, weights, BackendSettings(**settings))


def check_backend(name: str):
    """Raise ConfigError for an unknown backend, UserError if PyTorch is needed and not installed."""
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; choose {' or '.join(BACKENDS)}")
    if name == "torch":
        with needs("--backend torch", "torch", ["torch"], ", or omit the option to train in NumPy"):
            import torch  # noqa: F401


def thread_count(threads: int | None) -> int:
    """The number itself, or one thread per CPU for None. Raises ConfigError for an impossible one."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ConfigError(
            f"threads must be from 1 to {MAX_THREADS}, got {threads}; omit it to use one thread per CPU"
        )
    return threads or available_cpus()
