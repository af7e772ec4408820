"""The training loop, written once for both backends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
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
from harness.training.evaluation_plan import EvaluationPlan
from harness.training.memory import estimate_memory
from harness.training.metrics import MetricsLog, plot_metrics
from harness.training.run_folder import RunFolder
from harness.training.run_samples import SampleLog, sample
from harness.training.settings import TrainingSettings
from harness.training.spikes import SpikeDetector

CHECKPOINT_SECONDS = 300  # the most work that a crash may cost, besides the step that is running


class Progress(NamedTuple):
    """What the trainer reports after each step, and once before the first.

    loss: of the step's batch, None if no step was made; validation: the evaluation that followed
    sample: the text that the model wrote, if it was asked for one
    """

    step: int
    loss: float | None
    seconds: float
    validation: Evaluation | None
    spike: bool
    sample: str | None = None


class Outcome(NamedTuple):
    """How training ended.

    validation: the final evaluation, or the last quick one if there is no other; None if interrupted
    seconds: of this session, evaluations and checkpoints included
    plot_problem: why the plot was not drawn, or ""
    """

    step: int
    finished: bool
    validation: Evaluation | None
    seconds: float
    plot_problem: str


class Trainer:
    """Trains a backend on a corpus, evaluates it and writes checkpoints.

    Every evaluation during training sees the same windows of the held-out split, so "best" compares like with like.
    If they are only a part of it, a final evaluation of more follows: of `settings.eval_tokens`, by default of all
    held-out tokens, but at most `evaluation_plan.MAX_FINAL_TOKENS` and half of the tokens trained on.

    run: the folder that receives checkpoints, metrics and plot
    corpus: a `data.prepare.TokenFile`; tokenizer: what made it
    record: what else the checkpoints keep about the run, as JSON values

    Attributes to set before `train`: report and interrupted, called after every step, the latter to ask whether to
    save and stop; report_evaluation, called in the evaluation before the first step and in the final one with the
    tokens predicted so far, from 0, and their total; observe, called with every row of the metrics; clock, which gives
    seconds.
    """

    def __init__(
        self, backend: Backend, settings: TrainingSettings, run: RunFolder, corpus, tokenizer, record: dict
    ):
        self.backend, self.settings, self.run, self.tokenizer = backend, settings, run, tokenizer
        self.windows = Windows(corpus.train, settings.tokens_per_sequence(backend.config), settings.seed)
        self.validation, self.record = corpus.validation, record
        self.report: Callable[[Progress], None] = lambda progress: None
        self.report_evaluation: Callable[[int, int], None] = lambda tokens, total: None
        self.interrupted: Callable[[], bool] = lambda: False
        self.observe: Callable[[dict], None] = lambda row: None
        self.clock: Callable[[], float] = monotonic
        self.step = 0  # steps done
        self.evaluations = EvaluationPlan(settings, len(self.validation), self.windows.sequence_length)
        self.rate_change: tuple[float, float] | None = (
            None  # the last rate and the next, if a resume changes it
        )
        self._verify = corpus.verify
        self._saved = 0.0  # when, by the clock
        self._spikes = SpikeDetector(max(50, settings.warmup_steps))

    @property
    def epochs(self) -> float:
        """How often the whole training goes over the corpus."""
        return self.settings.steps * self.settings.batch_size / self.windows.per_epoch

    @property
    def estimated_memory(self) -> int:
        """Bytes that training will take at its peak, in this process."""
        backend = self.backend
        return estimate_memory(backend.name, backend.config, self.settings, backend.threads, backend.sharing)

    @property
    def done(self) -> bool:
        """Whether all steps, and the evaluations after the last one, were made."""
        due = self.evaluations.quick_due(self.step) or self.evaluations.final_due(self.step)
        return self.step > self.settings.steps or (self.evaluations.ended(self.step) and not due)

    def resume(self, checkpoint: Checkpoint):
        """Continue after `checkpoint`, which was loaded with its optimizer state."""
        self.backend.load_optimizer_state(checkpoint.optimizer, checkpoint.step)
        self.step, earlier = checkpoint.step, TrainingSettings.from_dict(checkpoint.training)
        self.evaluations.resume(checkpoint)
        if earlier.rate(self.step) != self.settings.rate(self.step):
            self.rate_change = earlier.rate(max(0, self.step - 1)), self.settings.rate(self.step)

    def train(self) -> Outcome:
        """Train up to `settings.steps`, or until interrupted; write a checkpoint in both cases.

        Raises UserError if a loss or a gradient is no longer finite: the last checkpoint stays. Also if the tokens
        cannot be read or have changed: the steps done are saved.
        """
        self.run.lock()  # starting or resuming has locked it; a second call of `train` has not
        try:
            return self._train()
        finally:
            self.run.unlock()

    def _train(self) -> Outcome:
        started, self._saved = perf_counter(), self.clock()
        with MetricsLog(self.run.metrics, after_step=self.step, observe=self.observe) as metrics:
            for row in metrics.kept:
                if "loss" in row:
                    self._spikes.update(row["loss"])
            samples = SampleLog(self.run.samples, self.step) if self.settings.sample_every else None
            evaluation, stop = self._begin(metrics, samples)
            while not self.evaluations.ended(self.step) and not stop:
                step_started = perf_counter()
                loss, spike = self._train_step(metrics)
                seconds = perf_counter() - step_started
                evaluation, stop = self._evaluate_and_save(metrics)
                text = None if stop else self._write_sample(samples)
                self.report(Progress(self.step, loss, seconds, evaluation, spike, text))
            if not stop and self.evaluations.final_due(self.step):
                evaluation = self._evaluate_finally(metrics)
        finished = self.evaluations.ended(self.step) and evaluation is not None
        try:
            if finished:
                self._verify()
        except UserError as error:
            raise UserError(
                f"{error}. All steps are done, but some may have seen other tokens: train again"
            ) from None
        problem, seconds = self._plot(), perf_counter() - started
        return Outcome(self.step, finished, evaluation if finished else None, seconds, problem)

    def _plot(self) -> str:
        """Draw the plot. returns: why that failed, or "", since training must not fail because of a plot"""
        try:
            plot_metrics(self.run.metrics, self.run.plot)
        except Exception as error:
            return str(error) or type(error).__name__
        return ""

    def _begin(self, metrics: MetricsLog, samples: SampleLog | None) -> tuple[Evaluation | None, bool]:
        """Make up for what a run was told to stop before, or evaluate before the first step.

        returns: as `_evaluate_and_save`
        """
        evaluation, stop = None, False
        if self.evaluations.initial_due(self.step):
            stop = not self._evaluate_initially(metrics)
        elif self.evaluations.quick_due(self.step):
            evaluation, stop = self._evaluate_and_save(metrics)
        if not stop and (text := self._write_sample(samples)):
            self.report(Progress(self.step, None, 0.0, None, False, text))
        return evaluation, stop

    def _write_sample(self, samples: SampleLog | None) -> str | None:
        """The sample of this step, if there is one that was not written yet."""
        if not samples or self.step % self.settings.sample_every or samples.last_step == self.step:
            return None
        text = "".join(sample(self.backend, self.tokenizer, self.validation, self.settings.seed))
        samples.write(self.step, text)
        return text

    def _evaluate_and_save(self, metrics: MetricsLog) -> tuple[Evaluation | None, bool]:
        """Evaluate if due. Write a checkpoint after that, when told to stop, and when the last one is old.

        returns: the evaluation, and whether to stop
        """
        evaluation, stop = None, self.interrupted()
        if not stop and self.evaluations.quick_due(self.step):
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
        self.evaluations.set_final(None)
        spike = self._spikes.update(loss)
        mark = {"spike": True} if spike else {}
        metrics.write(step=self.step, loss=loss, learning_rate=rate, gradient_norm=norm, **mark)
        return loss, spike

    def _first_not_finite(self, tokens, targets) -> str:
        """The first tensor in dataflow order, forward and then backward, that is not finite, or ""."""
        try:
            trace = self.backend.trace(tokens, targets, step=self.step)
        except (MemoryError, RuntimeError):  # a trace keeps every tensor; RuntimeError is PyTorch's
            return ""
        named = trace.activations | {f"the gradient of {name}": d for name, d in trace.gradients.items()}
        return next((name for name, value in named.items() if not np.isfinite(value).all()), "")

    def _advice(self) -> str:
        """How the message of a diverged run ends."""
        way = "try a lower --learning-rate or more --warmup-steps"
        if checkpoint_exists(self.run.resumable):
            return f"the last checkpoint is kept, and --from starts a new run from it; {way}"
        return way

    @contextmanager
    def _saved_if_unreadable(self, metrics: MetricsLog) -> Iterator[None]:
        """Save the steps done if the block cannot read the tokens: the weights are still good."""
        try:
            yield
        except UserError:
            if self.step:
                self._save(self.run.latest, metrics)
            raise

    def _evaluate(self, metrics: MetricsLog, windows: int | None, **options) -> Evaluation | None:
        """returns: None if told to stop before the end; the evaluation is then still due"""
        T = self.windows.sequence_length
        options |= {"sequence_length": T, "max_windows": windows, "interrupted": self.interrupted}
        with self._saved_if_unreadable(metrics):
            return evaluate(self.backend, self.validation, self.settings.batch_size, **options)

    def _evaluate_visibly(self, metrics: MetricsLog, windows: int | None) -> Evaluation | None:
        """`_evaluate`, reporting how far it is."""
        total = self.evaluations.predicted(windows)
        self.report_evaluation(0, total)
        return self._evaluate(metrics, windows, progress=lambda done: self.report_evaluation(done, total))

    def _require_finite(self, evaluation: Evaluation):
        if not isfinite(evaluation.loss):
            raise UserError(
                f"step {self.step}: the validation loss is {evaluation.loss:.4g}, no longer finite; {self._advice()}"
            )

    def _evaluate_initially(self, metrics: MetricsLog) -> bool:
        """The evaluation before the first step, for comparison alone. returns: whether it was made"""
        evaluation = self._evaluate_visibly(metrics, self.evaluations.quick_windows)
        if evaluation is None:
            self._save(self.run.latest, metrics)
        elif isfinite(evaluation.loss):  # or else the first step will say where that begins
            self.evaluations.record.initial_loss = evaluation.loss
            metrics.write(step=0, validation_loss=evaluation.loss, validation_tokens=evaluation.tokens)
            self.report(Progress(0, None, 0.0, evaluation, False))
        return evaluation is not None

    def _evaluate_quickly(self, metrics: MetricsLog) -> Evaluation | None:
        """The evaluation during training; if it is the best so far, keep the checkpoint."""
        evaluation = self._evaluate(metrics, self.evaluations.quick_windows)
        if evaluation is None:
            return None
        self._require_finite(evaluation)
        metrics.write(step=self.step, validation_loss=evaluation.loss, validation_tokens=evaluation.tokens)
        if self.evaluations.add(self.step, evaluation):
            self._save(self.run.best, metrics)
        return evaluation

    def _evaluate_finally(self, metrics: MetricsLog) -> Evaluation | None:
        """The final evaluation, of more windows than the quick one; it is recorded and decides nothing."""
        evaluation = self._evaluate_visibly(metrics, self.evaluations.final_windows(self.step))
        if evaluation is None:
            return None
        self._require_finite(evaluation)
        self.evaluations.set_final(evaluation)
        loss, tokens = evaluation
        metrics.write(step=self.step, final_validation_loss=loss, final_validation_tokens=tokens)
        if self.evaluations.record.best_step == self.step:
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
        # One by one: sharded, each is put together for it.
        for name, value in chain(checkpoint.weights.items(), checkpoint.optimizer.items()):
            if not np.isfinite(value).all():  # a step more would have shown it, but it was told to stop
                raise UserError(f"step {self.step}: {name} is no longer finite; {self._advice()}")
        save_checkpoint(place, checkpoint)
        self._saved = self.clock()

    def _checkpoint(self) -> Checkpoint:
        evaluations, backend = asdict(self.evaluations.record), self.backend
        validation_loss = evaluations.pop("validation_loss")
        return Checkpoint(
            backend.config,
            backend.weights(),
            self.tokenizer,
            step=self.step,
            training=self.settings.to_dict() | self.record | evaluations,
            optimizer=backend.optimizer_state(),
            validation_loss=validation_loss,
        )
