"""What the trainer asks of a backend, and the one place that opens a backend by name."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.trace import Trace
from harness.training.machine import available_cpus

BACKENDS = ("numpy", "torch")
MAX_THREADS = 1024


class Backend(Protocol):
    """A model with its optimiser. `tokens` and `targets` are int64 (B, T); a loss is in nats per token.

    name: the name that opens it
    config: the model's configuration
    threads: how many threads it computes with
    """

    name: str
    config: ModelConfig
    threads: int

    def loss_and_gradients(
        self, tokens: np.ndarray, targets: np.ndarray, *, step: int, accumulate: int
    ) -> float:
        """The loss of a batch, its gradients kept for `clip` and `update`.

        step: counted from 0, the key of the dropout masks
        accumulate: how many micro-batches to cut the batch into; the result is the same for each
        """

    def trace(self, tokens: np.ndarray, targets: np.ndarray, *, step: int) -> Trace:
        """Every tensor of a pass over a batch and its gradient, with the dropout of that step."""

    def clip(self, max_norm: float | None) -> float:
        """Scale the gradients down to `max_norm` (None: leave them). returns: their norm before"""

    def update(self, learning_rate: float):
        """One step of AdamW."""

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """The loss of a batch without dropout; of the last P places alone where targets are (B, P)."""

    def weights(self) -> Mapping[str, np.ndarray]:
        """The weights by name."""

    def optimizer_state(self) -> Mapping[str, np.ndarray]:
        """Adam's moments, "m." and "v." before each weight's name."""

    def load_optimizer_state(self, state: Mapping[str, np.ndarray], step: int):
        """Go on from these moments after `step` updates."""

    @staticmethod
    def estimate_memory(
        config: ModelConfig, *, batch_size: int, accumulate: int, threads: int, dtype: str
    ) -> int:
        """Bytes that training will take at its peak, the interpreter and its libraries included."""

    def generate(self, tokens: list[int], max_new_tokens: int, **sampling) -> Iterator[int]:
        """Yield tokens that continue `tokens`; `sampling` as in `numpy_llm.generate.generate`."""


def open_backend(
    name: str,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    threads: int | None = None,
    device: str = "cpu",
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    take_weights: bool = False,
) -> Backend:
    """A backend ready to train or generate.

    name: "numpy" or "torch"; PyTorch is imported only for the latter
    weights: what to start from; None draws initial weights from `seed`
    dtype: "float32" or "float64"; threads: None takes one per CPU that this process may use
    device: "cpu" or, for PyTorch, "cuda" or "mps"
    take_weights: whether the backend may keep `weights` themselves and train them, where a copy is not needed

    Raises ConfigError for an unknown name or an impossible number of threads, UserError where PyTorch is
    asked for and not installed.
    """
    check_threads(threads)
    settings = {
        "seed": seed,
        "dtype": dtype,
        "threads": threads or available_cpus(),
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": weight_decay,
        "take_weights": take_weights,
    }
    if name == "torch":
        settings["device"] = device
    elif device != "cpu":
        raise ConfigError(f"NumPy computes on the cpu alone, got --device {device}; add --backend torch")
    return backend_class(name)(config, weights, **settings)


def backend_class(name: str) -> type:
    """The class behind a backend's name, imported when asked for."""
    if name == "numpy":
        from harness.training.numpy_backend import NumpyBackend

        return NumpyBackend
    if name == "torch":
        try:
            from harness.training.torch_backend import TorchBackend
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise UserError(
                "--backend torch needs PyTorch, which is not installed; run: pip install -c constraints.txt "
                '-e ".[torch]", or leave the option out to train in NumPy'
            ) from None
        return TorchBackend
    raise ConfigError(f"unknown backend {name!r}; choose {' or '.join(BACKENDS)}")


def check_threads(threads: int | None):
    """Raise ConfigError for an impossible number of threads; None is one per CPU."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ConfigError(
            f"threads must be from 1 to {MAX_THREADS}, got {threads}; omit it to use one thread per CPU"
        )
