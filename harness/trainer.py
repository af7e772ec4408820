"""The training loop, written once for both backends."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError, UserError
from data.batches import Windows
from harness.backend import Backend
from harness.checkpoint import Checkpoint, save_checkpoint
from harness.evaluation import Evaluation, evaluate
from harness.run_folder import MetricsLog, RunFolder, plot_metrics
from harness.schedule import learning_rate

# Windows looked at by the evaluations during training.
QUICK_EVALUATION_WINDOWS = 256
# The last evaluation sees the whole held-out split, of a large corpus so many tokens, evenly spread: a tenth of a
# gigabyte would take longer than the training.
LAST_EVALUATION_TOKENS = 1 << 21
# What the message of a run whose numbers went bad ends with.
KEPT = "the last checkpoint is kept; try a lower --learning-rate or more --warmup-steps"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What a training run is told beside its model and its text. Stored in every checkpoint.

    steps: optimiser steps; batch_size: sequences a step; accumulate: micro-batches that a batch is cut into
    learning_rate: the peak; min_learning_rate: where the cosine ends; warmup_steps: steps to reach the peak
    weight_decay, beta1, beta2: see `numpy_llm.adam`; clip: largest gradient norm, None for no clipping
    eval_interval: steps between evaluations, each of which also writes a checkpoint
    seed: of initial weights, order of windows and dropout; dtype: "float32" or "float64"

    Raises ConfigError naming the setting, what was found and what fits.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float | None = 1.0
    eval_interval: int = 250
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        def require(fits: bool, name: str, wanted: str):
            if not fits:
                raise ConfigError(f"{name.replace('_', '-')} must be {wanted}, got {getattr(self, name)}")

        for name in ("steps", "batch_size", "accumulate", "eval_interval"):
            require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("steps", "batch_size", "warmup_steps", "eval_interval"):
            require(getattr(self, name) < 2**63, name, "below 2^63")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch-size {self.batch_size} does not divide into --accumulate {self.accumulate} parts"
            )
        require(0 < self.learning_rate < float("inf"), "learning_rate", "a positive number")
        require(
            0 <= self.min_learning_rate <= self.learning_rate,
            "min_learning_rate",
            f"from 0 to the learning rate, {self.learning_rate}",
        )
        require(self.warmup_steps >= 0, "warmup_steps", "at least 0")
        require(0 <= self.weight_decay < float("inf"), "weight_decay", "at least 0")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
        require(self.clip is None or self.clip > 0, "clip", "above 0 (leave it out for the default)")
        require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1")
        require(self.dtype in ("float32", "float64"), "dtype", "float32 or float64")

    def to_dict(self) -> dict:
        """The settings by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainingSettings":
        """The inverse of `to_dict`; names that are not settings are left out."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


class Progress(NamedTuple):
    """What the trainer tells after each step.

    step: steps done; loss: of this step's batch, nats per token; seconds: that the step took
    validation_loss: where the step was followed by an evaluation, else None
    spike: whether the loss lies far above those of the steps before
    """

    step: int
    loss: float
    seconds: float
    validation_loss: float | None
    spike: bool


class Outcome(NamedTuple):
    """How training ended.

    step: steps done; finished: False where it was interrupted
    validation: over the held-out split, see `LAST_EVALUATION_TOKENS`; None where training was interrupted
    seconds: that this part of the training took, evaluations and checkpoints included
    """

    step: int
    finished: bool
    validation: Evaluation | None
    seconds: float


def evaluation_due(step: int, settings: TrainingSettings) -> bool:
    """Whether the model is evaluated after so many steps."""
    return step > 0 and (step == settings.steps or step % settings.eval_interval == 0)


class Spikes:
    """Tells a loss that lies far above those before it, which a short-lived instability leaves behind.

    Far is six times the usual step from one loss to the next, and at least 0.1 nats, above a running mean of
    some 10 steps, which follows a falling loss closely. The first losses, which fall fast, are not judged.

    first: how many
    """

    def __init__(self, first: int = 50):
        self._first = first
        self._mean, self._jump, self._last, self._seen = 0.0, 0.0, 0.0, 0

    def see(self, loss: float) -> bool:
        """Take the next loss. returns: whether it is a spike, which then does not count for the next ones"""
        if self._seen >= self._first and loss > self._mean + max(6 * self._jump, 0.1):
            return True
        if self._seen:
            self._jump += max(0.02, 1 / self._seen) * (abs(loss - self._last) - self._jump)
        self._seen += 1
        self._mean += max(0.1, 1 / self._seen) * (loss - self._mean)
        self._last = loss
        return False


class Trainer:
    """Trains a backend on a corpus, evaluating and writing checkpoints on the way.

    backend: the model with its optimiser
    run: the folder that receives checkpoints, metrics and plot
    corpus: object with `train` and `validation`, int (N,) each; tokenizer: what made them
    record: what else the checkpoints should remember of the run, as JSON values
    report: called after every step; interrupted: asked after every step whether to save and leave
    """

    def __init__(
        self,
        backend: Backend,
        settings: TrainingSettings,
        run: RunFolder,
        corpus,
        tokenizer,
        *,
        record: dict | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        interrupted: Callable[[], bool] = lambda: False,
    ):
        self.backend, self.settings, self.run, self.tokenizer = backend, settings, run, tokenizer
        self.windows = Windows(corpus.train, backend.config.context_length, settings.seed)
        self.validation = corpus.validation
        self.record, self.report, self.interrupted = record or {}, report, interrupted
        self.step = self.evaluated = 0  # the steps done, and how many they were at the last evaluation
        self.validation_loss: float | None = None
        self.best_loss: float | None = None
        self._spikes = Spikes(max(50, settings.warmup_steps))

    @property
    def epochs(self) -> float:
        """How often the whole training goes over the corpus."""
        return self.settings.steps * self.settings.batch_size / self.windows.per_epoch

    @property
    def estimated_memory(self) -> int:
        """Bytes that training will take at its peak."""
        return self.backend.estimate_memory(
            self.backend.config,
            batch_size=self.settings.batch_size,
            accumulate=self.settings.accumulate,
            threads=self.backend.threads,
            dtype=self.settings.dtype,
        )

    def resume(self, checkpoint: Checkpoint):
        """Go on after `checkpoint`, which was loaded with its optimizer state."""
        self.backend.load_optimizer_state(checkpoint.optimizer, checkpoint.step)
        self.step = checkpoint.step
        self.validation_loss = checkpoint.validation_loss
        self.best_loss = checkpoint.training["best_loss"]
        self.evaluated = checkpoint.training["evaluated"]

    def train(self) -> Outcome:
        """Train up to `settings.steps`, or until interrupted; a checkpoint is written in both cases.

        Raises UserError where a loss or a gradient stops being finite; the last checkpoint stays.
        """
        self.run.lock()  # again, where starting or resuming has locked it
        try:
            return self._train()
        finally:
            self.run.unlock()

    def _train(self) -> Outcome:
        settings, started = self.settings, perf_counter()
        with MetricsLog(self.run.metrics, after_step=self.step) as metrics:
            for row in metrics.kept:
                if "loss" in row:
                    self._spikes.see(row["loss"])
            evaluation, stop = None, False
            if self._evaluation_due():  # the run was told to stop before or in it
                evaluation, stop = self._look(metrics)
            while self.step < settings.steps and not stop:
                step_started = perf_counter()
                loss, spike = self._train_step(metrics)
                seconds = perf_counter() - step_started
                evaluation, stop = self._look(metrics)
                self.report(Progress(self.step, loss, seconds, evaluation and evaluation.loss, spike))
        plot_metrics(self.run.metrics, self.run.plot)
        finished = self.step == settings.steps and evaluation is not None
        return Outcome(self.step, finished, evaluation if finished else None, perf_counter() - started)

    def _evaluation_due(self) -> bool:
        return self.evaluated != self.step and evaluation_due(self.step, self.settings)

    def _look(self, metrics: MetricsLog) -> tuple[Evaluation | None, bool]:
        """Evaluate where that is due, and write a checkpoint then or when told to stop.

        returns: the evaluation, and whether to stop
        """
        evaluation, stop = None, self.interrupted()
        if not stop and self._evaluation_due():
            evaluation = self._evaluate(metrics)
            stop = evaluation is None
        if stop or evaluation:
            metrics.flush()
            self._save(self.run.latest)
        return evaluation, stop

    def _train_step(self, metrics: MetricsLog) -> tuple[float, bool]:
        settings = self.settings
        rate = learning_rate(
            self.step,
            steps=settings.steps,
            peak=settings.learning_rate,
            minimum=settings.min_learning_rate,
            warmup_steps=settings.warmup_steps,
        )
        tokens, targets = self.windows.batch(self.step, settings.batch_size)
        loss = self.backend.loss_and_gradients(
            tokens, targets, step=self.step, accumulate=settings.accumulate
        )
        with np.errstate(all="ignore"):  # the next lines say so when the norm is no longer finite
            norm = self.backend.clip(settings.clip)
        if not isfinite(loss) or not isfinite(norm):
            place = self._first_not_finite(tokens, targets)
            raise UserError(
                f"step {self.step + 1}: the loss is {loss:.4g} and the gradient norm {norm:.4g}, no longer "
                f"finite{place and f', first in {place}'}; {KEPT}"
            )
        with np.errstate(all="ignore"):  # and the next step, or an evaluation, when the weights are not
            self.backend.update(rate)
        self.step += 1
        spike = self._spikes.see(loss)
        marks = {"spike": True} if spike else {}
        metrics.write(step=self.step, loss=loss, learning_rate=rate, gradient_norm=norm, **marks)
        return loss, spike

    def _first_not_finite(self, tokens, targets) -> str:
        """The first tensor in dataflow order, forward and then backward, that is not finite, or ""."""
        try:
            trace = self.backend.trace(tokens, targets, step=self.step)
        except MemoryError:  # a trace keeps every tensor
            return ""
        named = [
            *trace.activations.items(),
            *((f"the gradient of {n}", g) for n, g in trace.gradients.items()),
        ]
        return next((name for name, value in named if not np.isfinite(value).all()), "")

    def _evaluate(self, metrics: MetricsLog) -> Evaluation | None:
        """Evaluate, quickly or at the end wholly, and keep the checkpoint if it is the best so far.

        returns: None where it was told to stop in the middle; the evaluation is then still due
        """
        whole = self.step == self.settings.steps
        windows = None if whole else QUICK_EVALUATION_WINDOWS
        if whole and len(self.validation) > LAST_EVALUATION_TOKENS:
            windows = max(1, LAST_EVALUATION_TOKENS // self.windows.context_length)
        evaluation = evaluate(
            self.backend,
            self.validation,
            self.settings.batch_size,
            max_windows=windows,
            interrupted=self.interrupted,
        )
        if evaluation is None:
            return None
        if not isfinite(evaluation.loss):
            raise UserError(
                f"step {self.step}: the validation loss is {evaluation.loss:.4g}, no longer finite; {KEPT}"
            )
        self.validation_loss, self.evaluated = evaluation.loss, self.step
        metrics.write(step=self.step, validation_loss=self.validation_loss)
        if self.best_loss is None or self.validation_loss < self.best_loss:
            self.best_loss = self.validation_loss
            metrics.flush()  # a checkpoint never knows of a step that the log does not
            self._save(self.run.best)
        return evaluation

    def _save(self, place: Path):
        if not self.run.is_there():  # a checkpoint alone, without the run's tokens, would be no use
            raise UserError(
                f"{self.run.path} has vanished while the run was training; its checkpoints went with it"
            )
        checkpoint = self._checkpoint()
        for name, value in checkpoint.weights.items():
            if not np.isfinite(value).all():  # a step more would have shown it, but it was told to stop
                raise UserError(f"step {self.step}: {name} is no longer finite; {KEPT}")
        save_checkpoint(place, checkpoint)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            config=self.backend.config,
            weights=self.backend.weights(),
            tokenizer=self.tokenizer,
            step=self.step,
            training=self.settings.to_dict()
            | self.record
            | {"best_loss": self.best_loss, "evaluated": self.evaluated},
            optimizer=self.backend.optimizer_state(),
            validation_loss=self.validation_loss,
        )
