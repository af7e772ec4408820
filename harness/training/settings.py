"""Settings of a training run, with the defaults that the command line and Python share."""

from dataclasses import asdict, dataclass, fields
from math import inf
from numbers import Integral, Real
from typing import NamedTuple

from contract.config import ModelConfig
from contract.errors import ConfigError
from harness.training.schedule import SCHEDULES, learning_rate

# Defaults of a run that starts from trained weights: small steps, on few of their often long windows.
FINE_TUNING = {"batch_size": 4, "learning_rate": 3e-5}

# What `dtype` may be, and the type of weights, gradients and moments for each: those of "bfloat16" are float32, and
# PyTorch's autocast computes steps in bfloat16.
DTYPES = {"float32": "float32", "float64": "float64", "bfloat16": "float32"}

# Settings that earlier releases did not record; their defaults mean what was done then.
ADDED_LATER = {
    "eval_tokens",
    "sequence_length",
    "schedule",
    "schedule_start",
    "patience",
    "sample_every",
    "freeze",
}


class Machine(NamedTuple):
    """What computes.

    backend: "numpy" or "torch"; device: "cpu" or, for PyTorch, "cuda" or "mps"; threads: None for one per CPU
    compile: whether PyTorch compiles the training step, with `torch.compile`
    """

    backend: str = "numpy"
    device: str = "cpu"
    threads: int | None = None
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of a training run beside its model and its text, stored in every checkpoint.

    steps: optimiser steps; batch_size: sequences per step; accumulate: micro-batches per batch
    sequence_length: tokens of a sequence, None for the model's context length
    learning_rate: the peak; schedule: of `schedule.SCHEDULES`
    min_learning_rate: where the schedule ends, None for a tenth of the peak; a constant one stays at the peak
    warmup_steps: steps to reach the peak, None for a tenth of the steps, at most 100
    schedule_start: the step that the schedule begins at, after 0 if a resume brought a new one
    freeze: patterns of weights that stay as they are, see `contract.weights.frozen_names`
    weight_decay, beta1, beta2: see `numpy_llm.adam`; clip: largest gradient norm, None or inf for no clipping
    eval_interval: steps between evaluations, each of which also writes a checkpoint
    eval_tokens: held-out tokens of the final evaluation, None for `Trainer`'s default
    patience: how many evaluations in a row may be no better than the best before training ends, None or 0 for any
    sample_every: steps between samples, None for none
    seed: of initial weights, order of windows and dropout
    dtype: that steps compute in, "float32", "float64" or, in PyTorch alone, "bfloat16"; see `DTYPES`
    Raises ConfigError naming the setting, what was found and what fits.
    """

    steps: int = 1500
    batch_size: int = 64
    accumulate: int = 1
    sequence_length: int | None = None
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    min_learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule_start: int = 0
    freeze: str = ""
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float | None = 1.0
    eval_interval: int = 250
    eval_tokens: int | None = None
    patience: int | None = None
    sample_every: int | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        for field in fields(self):
            self._set(field.name, _checked_type(field, getattr(self, field.name)))
        if self.clip == inf:
            self._set("clip", None)  # JSON has no infinity
        if self.patience == 0:
            self._set("patience", None)
        if self.min_learning_rate is None:
            tenth = float(f"{self.learning_rate / 10:.15g}")  # 3e-4, not 3.0000000000000003e-4
            self._set("min_learning_rate", self.learning_rate if self.schedule == "constant" else tenth)
        if self.warmup_steps is None:
            self._set("warmup_steps", max(0, min(100, self.steps // 10)))
        self._check_ranges()

    def _set(self, name: str, value):
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def _check_ranges(self):
        def require(fits: bool, name: str, wanted: str):
            if not fits:
                raise ConfigError(f"{_flag(name)} must be {wanted}, got {getattr(self, name)}")

        names = (
            "steps",
            "batch_size",
            "eval_interval",
            "eval_tokens",
            "sequence_length",
            "sample_every",
        )
        counts = dict.fromkeys(names, 1)
        for name, least in (counts | {"warmup_steps": 0, "schedule_start": 0, "patience": 0}).items():
            value = getattr(self, name)
            require(value is None or value >= least, name, f"at least {least}")
            require(value is None or value < 2**63, name, "below 2^63")
        require(self.accumulate >= 1, "accumulate", "at least 1")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch-size {self.batch_size} does not divide into --accumulate {self.accumulate} parts"
            )
        require(0 < self.learning_rate < inf, "learning_rate", "a positive number")
        fits = 0 <= self.min_learning_rate <= self.learning_rate
        require(fits, "min_learning_rate", f"from 0 to the learning rate, {self.learning_rate}")
        require(self.schedule in SCHEDULES, "schedule", " or ".join(SCHEDULES))
        if self.schedule == "constant" and self.min_learning_rate != self.learning_rate:
            raise ConfigError(
                "min-learning-rate does not go with --schedule constant, which stays at the peak; omit it"
            )
        require(0 <= self.weight_decay < inf, "weight_decay", "at least 0")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
        require(self.clip is None or self.clip > 0, "clip", "above 0 (inf turns it off)")
        require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1")
        require(self.dtype in DTYPES, "dtype", "float32, float64 or bfloat16")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        start = self.schedule_start
        return learning_rate(
            step - start,
            steps=self.steps - start,
            peak=self.learning_rate,
            minimum=self.min_learning_rate,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
        )

    def tokens_per_sequence(self, config: ModelConfig) -> int:
        """T of a batch. Raises ConfigError for more than the model can see."""
        return tokens_per_sequence(self.sequence_length, config)

    def to_dict(self) -> dict:
        """The settings by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainingSettings":
        """The inverse of `to_dict`; names that are not settings are ignored."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def tokens_per_sequence(wanted: int | None, config: ModelConfig) -> int:
    """The length of sequences of this model: its context length for None. Raises ConfigError for an impossible one."""
    if wanted is not None and not 1 <= wanted <= config.context_length:
        raise ConfigError(
            f"sequence-length must be from 1 to the model's context length, {config.context_length:,}, got {wanted:,}"
        )
    return wanted or config.context_length


def _flag(name: str) -> str:
    return name.replace("_", "-")


_KINDS = {int: (Integral, int, "an integer"), float: (Real, float, "a number"), str: (str, str, "text")}


def _checked_type(field, value):
    """`value` as a plain Python number or text of the field's type, or a ConfigError."""
    optional = field.type not in _KINDS
    if optional and value is None:
        return None
    accepted, plain, words = _KINDS[field.type.__args__[0] if optional else field.type]
    try:
        if isinstance(value, accepted) and not isinstance(value, bool):
            return plain(value)
    except OverflowError:  # an integer beyond the largest float
        pass
    raise ConfigError(f"{_flag(field.name)} must be {words}, got {value!r}")
