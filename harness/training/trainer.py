"""The training loop, written once for both backends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from time import monotonic, perf_counter
from typing import NamedTuple

import numpy as np

from contract.errors import UserError
from data.batches import Windows
from harness.training.backend import Backend
from harness.training.checkpoint import Checkpoint, checkpoint_exists, save_checkpoint
from harness.training.evaluation import Evaluation, evaluate
from harness.training.run_folder import MetricsLog, RunFolder, plot_metrics
from harness.training.settings import TrainingSettings
from harness.training.spikes import SpikeDetector

# Windows of an evaluation during training, evenly spread over the held-out split.
QUICK_EVALUATION_WINDOWS = 256
# Tokens of the final evaluation, unless --eval-tokens says more; a tenth of a gigabyte would take longer than
# the training.
MAX_FINAL_TOKENS = 1 << 21
CHECKPOINT_SECONDS = 300  # the most that a crash may cost, besides the step that is running


class Progress(NamedTuple):
    """What the trainer tells after each step.

    step: steps done; loss: of this step's batch, nats per token; seconds: that the step took
    validation: the quick evaluation where one followed the step, else None
    spike: whether the loss lies far above those of the steps before
    """

    step: int
    loss: float
    seconds: float
    validation: Evaluation | None
    spike: bool


class Outcome(NamedTuple):
    """How training ended.

    step: steps done; finished: False where it was interrupted
    validation: the final evaluation, or the last quick one where that is all; None where training was interrupted
    seconds: that this part of the training took, evaluations and checkpoints included
    plot_problem: why the plot was not drawn, or ""
    """

    step: int
    finished: bool
    validation: Evaluation | None
    seconds: float
    plot_problem: str


class Trainer:
    """Trains a backend on a corpus, evaluating and writing checkpoints on the way.

    Every evaluation during training, the last included, sees the same windows of the held-out split, so that
    "best" compares like with like. Where they are only a part of it, a final evaluation of more follows: of
    `settings.eval_tokens` or else of all held-out tokens, but at most `MAX_FINAL_TOKENS` and half of the tokens that
    the training goes through.

    backend: the model with its optimiser
    run: the folder that receives checkpoints, metrics and plot
    corpus: object with `train` and `validation`, int (N,) each; its `verify()`, where it has one, raises UserError
        where they are no longer what they were. tokenizer: what made them
    record: what else the checkpoints should remember of the run, as JSON values

    Attributes to set before `train`:

    report: called after every step; interrupted: called after every step, whether to save and stop
    report_evaluation: called in the final evaluation with the tokens predicted so far, at first 0, and their total
    clock: gives seconds, for `CHECKPOINT_SECONDS`
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
    ):
        self.backend, self.settings, self.run, self.tokenizer = backend, settings, run, tokenizer
        self.windows = Windows(corpus.train, backend.config.context_length, settings.seed)
        self.validation = corpus.validation
        self.record = record or {}
        self.report: Callable[[Progress], None] = lambda progress: None
        self.report_evaluation: Callable[[int, int], None] = lambda tokens, total: None
        self.interrupted: Callable[[], bool] = lambda: False
        self.clock: Callable[[], float] = monotonic
        self.step = 0  # steps done
        # What the checkpoints remember of the evaluations: the last, at step `evaluated`; the final one, where it
        # was made after the step that is now the last; the best.
        self.evaluated, self.validation_loss, self.validation_tokens = 0, None, None
        self.final_loss, self.final_tokens = None, None
        self.best_loss, self.best_step = None, None
        self.rate_change: tuple[float, float] | None = None
        self._verify = getattr(corpus, "verify", lambda: None)
        self._saved = 0.0  # when, by the clock
        self._spikes = SpikeDetector(max(50, settings.warmup_steps))

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

    @property
    def done(self) -> bool:
        """Whether all steps, and the evaluations after the last one, were made."""
        last = self.step == self.settings.steps
        return self.step > self.settings.steps or (
            last and not (self._evaluation_due() or self._final_evaluation_due())
        )

    def resume(self, checkpoint: Checkpoint):
        """Go on after `checkpoint`, which was loaded with its optimizer state.

        `rate_change` is then the learning rate of the last step done and of the next, where the settings are
        other than the checkpoint's and change it, else None.
        """
        self.backend.load_optimizer_state(checkpoint.optimizer, checkpoint.step)
        training, earlier = checkpoint.training, TrainingSettings.from_dict(checkpoint.training)
        self.step = checkpoint.step
        self.evaluated, self.validation_loss = training["evaluated"], checkpoint.validation_loss
        self.best_loss, self.best_step = training.get("best_loss"), training.get("best_step")
        if "validation_tokens" in training:
            self.validation_tokens = training["validation_tokens"]
            self.final_loss = training.get("final_validation_loss")
            self.final_tokens = training.get("final_validation_tokens")
        elif self.evaluated == earlier.steps:  # written when the last evaluation was the final one
            self.final_loss = self.validation_loss
        if earlier.rate(self.step) != self.settings.rate(self.step):
            self.rate_change = earlier.rate(max(0, self.step - 1)), self.settings.rate(self.step)

    def train(self) -> Outcome:
        """Train up to `settings.steps`, or until interrupted; a checkpoint is written in both cases.

        Raises UserError where a loss or a gradient stops being finite, and the last checkpoint stays; or where
        the tokens cannot be read or have changed, and the steps done are saved.
        """
        self.run.lock()  # starting or resuming has locked it; a second call of `train` has not
        try:
            return self._train()
        finally:
            self.run.unlock()

    def _train(self) -> Outcome:
        settings, started, self._saved = self.settings, perf_counter(), self.clock()
        with MetricsLog(self.run.metrics, after_step=self.step) as metrics:
            for row in metrics.kept:
                if "loss" in row:
                    self._spikes.update(row["loss"])
            evaluation, stop = None, False
            if self._evaluation_due():  # the run was told to stop before or in it
                evaluation, stop = self._evaluate_and_save(metrics)
            while self.step < settings.steps and not stop:
                step_started = perf_counter()
                loss, spike = self._train_step(metrics)
                seconds = perf_counter() - step_started
                evaluation, stop = self._evaluate_and_save(metrics)
                self.report(Progress(self.step, loss, seconds, evaluation, spike))
            if not stop and self._final_evaluation_due():
                evaluation = self._evaluate_finally(metrics)
        finished = self.step == settings.steps and evaluation is not None
        if finished:
            self._verify_tokens()
        problem = self._plot()
        return Outcome(
            self.step, finished, evaluation if finished else None, perf_counter() - started, problem
        )

    def _verify_tokens(self):
        try:
            self._verify()
        except UserError as error:
            raise UserError(
                f"{error}. All steps are done, but some may have seen other tokens: train again"
            ) from None

    def _plot(self) -> str:
        """Draw the plot. returns: why that was not possible, or ""; a training is not lost for want of a plot"""
        try:
            plot_metrics(self.run.metrics, self.run.plot)
        except Exception as error:
            return str(error) or type(error).__name__
        return ""

    def _evaluation_due(self) -> bool:
        last = self.step == self.settings.steps
        return self.evaluated != self.step and (last or self.step % self.settings.eval_interval == 0)

    def _final_evaluation_due(self) -> bool:
        last = self.step == self.settings.steps and self.final_loss is None
        return last and self._final_windows() != self._held_out_windows(0)

    def _final_windows(self) -> int | None:
        passed = self.settings.steps * self.settings.batch_size * self.windows.context_length
        return self._held_out_windows(self.settings.eval_tokens or min(MAX_FINAL_TOKENS, passed // 2))

    def _held_out_windows(self, tokens: int) -> int | None:
        """So many windows as predict `tokens` tokens, but no fewer than the quick evaluation's; None for all."""
        windows = max(QUICK_EVALUATION_WINDOWS, tokens // self.windows.context_length)
        return windows if windows < (len(self.validation) - 1) // self.windows.context_length else None

    def _evaluate_and_save(self, metrics: MetricsLog) -> tuple[Evaluation | None, bool]:
        """Evaluate where that is due; write a checkpoint then, when told to stop, and when the last one is old.

        returns: the evaluation, and whether to stop
        """
        evaluation, stop = None, self.interrupted()
        if not stop and self._evaluation_due():
            evaluation = self._evaluate_quickly(metrics)
            stop = evaluation is None
        if stop or evaluation or self.clock() - self._saved >= CHECKPOINT_SECONDS:
            self._save(self.run.latest, metrics)
        return evaluation, stop

    def _train_step(self, metrics: MetricsLog) -> tuple[float, bool]:
        settings = self.settings
        rate = settings.rate(self.step)
        with self._saved_if_unreadable(metrics):
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
                f"finite{place and f', first in {place}'}; {self._advice()}"
            )
        with np.errstate(all="ignore"):  # and the next step, or an evaluation, when the weights are not
            self.backend.update(rate)
        self.step += 1
        self.final_loss = self.final_tokens = None
        spike = self._spikes.update(loss)
        marks = {"spike": True} if spike else {}
        metrics.write(step=self.step, loss=loss, learning_rate=rate, gradient_norm=norm, **marks)
        return loss, spike

    def _first_not_finite(self, tokens, targets) -> str:
        """The first tensor in dataflow order, forward and then backward, that is not finite, or ""."""
        try:
            trace = self.backend.trace(tokens, targets, step=self.step)
        except (MemoryError, RuntimeError):  # a trace keeps every tensor; RuntimeError is PyTorch's
            return ""
        named = [
            *trace.activations.items(),
            *((f"the gradient of {n}", g) for n, g in trace.gradients.items()),
        ]
        return next((name for name, value in named if not np.isfinite(value).all()), "")

    def _advice(self) -> str:
        """What the message of a run whose numbers went bad ends with."""
        kept = "the last checkpoint is kept, and --from starts a new run from it; "
        kept = kept if checkpoint_exists(self.run.resumable) else ""
        return f"{kept}try a lower --learning-rate or more --warmup-steps"

    @contextmanager
    def _saved_if_unreadable(self, metrics: MetricsLog) -> Iterator[None]:
        """Save the steps done where the block cannot read the tokens, which is no fault of theirs."""
        try:
            yield
        except UserError:
            if self.step:
                self._save(self.run.latest, metrics)
            raise

    def _evaluate(self, metrics: MetricsLog, windows: int | None, **options) -> Evaluation | None:
        """returns: None where it was told to stop in the middle; the evaluation is then still due"""
        with self._saved_if_unreadable(metrics):
            evaluation = evaluate(
                self.backend,
                self.validation,
                self.settings.batch_size,
                max_windows=windows,
                interrupted=self.interrupted,
                **options,
            )
        if evaluation and not isfinite(evaluation.loss):
            raise UserError(
                f"step {self.step}: the validation loss is {evaluation.loss:.4g}, no longer finite; {self._advice()}"
            )
        return evaluation

    def _evaluate_quickly(self, metrics: MetricsLog) -> Evaluation | None:
        """The evaluation during training; it keeps the checkpoint if it is the best so far."""
        evaluation = self._evaluate(metrics, self._held_out_windows(0))
        if evaluation is None:
            return None
        self.evaluated, (self.validation_loss, self.validation_tokens) = self.step, evaluation
        metrics.write(step=self.step, validation_loss=evaluation.loss, validation_tokens=evaluation.tokens)
        if self.best_loss is None or evaluation.loss < self.best_loss:
            self.best_loss, self.best_step = evaluation.loss, self.step
            self._save(self.run.best, metrics)
        return evaluation

    def _evaluate_finally(self, metrics: MetricsLog) -> Evaluation | None:
        """The final evaluation, of more than the quick one; it decides nothing, and the checkpoints remember it."""
        windows = self._final_windows()
        total = windows * self.windows.context_length if windows else len(self.validation) - 1
        self.report_evaluation(0, total)
        evaluation = self._evaluate(
            metrics, windows, progress=lambda tokens: self.report_evaluation(tokens, total)
        )
        if evaluation is None:
            return None
        self.final_loss, self.final_tokens = evaluation
        metrics.write(
            step=self.step, final_validation_loss=evaluation.loss, final_validation_tokens=evaluation.tokens
        )
        if self.best_step == self.step:
            self._save(self.run.best, metrics)
        self._save(self.run.latest, metrics)
        return evaluation

    def _save(self, place: Path, metrics: MetricsLog):
        metrics.flush()  # a checkpoint never knows of a step that the log does not
        if not self.run.is_there():  # a checkpoint alone, without the run's tokens, would be no use
            raise UserError(
                f"{self.run.path} was moved or removed while the run was training; start a new run"
            )
        checkpoint = self._checkpoint()
        for name, value in (*checkpoint.weights.items(), *checkpoint.optimizer.items()):
            if not np.isfinite(value).all():  # a step more would have shown it, but it was told to stop
                raise UserError(f"step {self.step}: {name} is no longer finite; {self._advice()}")
        save_checkpoint(place, checkpoint)
        self._saved = self.clock()

    def _checkpoint(self) -> Checkpoint:
        evaluations = {
            "evaluated": self.evaluated,
            "validation_tokens": self.validation_tokens,
            "final_validation_loss": self.final_loss,
            "final_validation_tokens": self.final_tokens,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
        }
        return Checkpoint(
            config=self.backend.config,
            weights=self.backend.weights(),
            tokenizer=self.tokenizer,
            step=self.step,
            training=self.settings.to_dict() | self.record | evaluations,
            optimizer=self.backend.optimizer_state(),
            validation_loss=self.validation_loss,
        )
