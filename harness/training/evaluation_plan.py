"""When a run evaluates, on how much of its held-out split, and what came of it."""

from dataclasses import dataclass, fields

from harness.training.checkpoint import Checkpoint
from harness.training.evaluation import Evaluation
from harness.training.settings import TrainingSettings

# Of an evaluation during training, evenly spread over the held-out split; long ones are fewer, so that a short
# training of a large model doesn't end in a long evaluation: half the tokens trained on, but at least so many.
QUICK_EVALUATION_WINDOWS, QUICK_EVALUATION_TOKENS = 256, 4096
MAX_FINAL_TOKENS = 1 << 21  # of the final evaluation by default: more would outlast the training


@dataclass
class EvaluationRecord:
    """What the checkpoints of a run remember of its evaluations; losses in nats per token.

    initial_loss: before the first step; evaluated: the step of the last quick evaluation after that
    worse: how many quick evaluations in a row were no better than the best
    final_*: of the final evaluation, if it followed the step that is now the last
    """

    initial_loss: float | None = None
    evaluated: int = 0
    validation_loss: float | None = None
    validation_tokens: int | None = None
    final_validation_loss: float | None = None
    final_validation_tokens: int | None = None
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0


class EvaluationPlan:
    """Plans the evaluations of a run and records them.

    tokens: of the held-out split; sequence_length: T of a batch
    """

    def __init__(self, settings: TrainingSettings, tokens: int, sequence_length: int):
        self.settings, self.tokens, self.sequence_length = settings, tokens, sequence_length
        self.record = EvaluationRecord()

    def resume(self, checkpoint: Checkpoint):
        """Go on with the record of a checkpoint."""
        training = checkpoint.training
        known = training | {"validation_loss": checkpoint.validation_loss}
        names = (field.name for field in fields(EvaluationRecord))
        self.record = EvaluationRecord(**{name: known[name] for name in names if name in known})
        if "validation_tokens" not in training and self.record.evaluated == training["steps"]:
            self.record.final_validation_loss = self.record.validation_loss  # as in the first release

    @property
    def out_of_patience(self) -> bool:
        """Whether so many evaluations as `settings.patience` says brought none better."""
        return self.settings.patience is not None and self.record.worse >= self.settings.patience

    def ended(self, step: int) -> bool:
        """Whether no step follows this one."""
        return step >= self.settings.steps or self.out_of_patience

    def initial_due(self, step: int) -> bool:
        """Whether the evaluation before the first step is still to be made."""
        return step == 0 and self.record.initial_loss is None

    def quick_due(self, step: int) -> bool:
        """Whether an evaluation follows this step, and was not made yet."""
        due = step == self.settings.steps or step % self.settings.eval_interval == 0
        return due and self.record.evaluated != step

    def final_due(self, step: int) -> bool:
        """Whether the final evaluation is still to be made; there is none if the quick one saw as much."""
        last = step <= self.settings.steps and self.ended(step) and self.record.final_validation_loss is None
        return last and self.final_windows(step) != self.quick_windows

    @property
    def quick_windows(self) -> int | None:
        """How many windows the evaluations during training see; None for all."""
        return self._windows(0)

    def final_windows(self, step: int) -> int | None:
        """How many the final evaluation sees."""
        passed = step * self.settings.batch_size * self.sequence_length
        return self._windows(self.settings.eval_tokens or min(MAX_FINAL_TOKENS, passed // 2))

    def _windows(self, tokens: int) -> int | None:
        """The windows that predict `tokens` tokens, at least those of the quick evaluation; None for all."""
        settings, T = self.settings, self.sequence_length
        trained = min(settings.eval_interval, settings.steps) * settings.batch_size * T  # between evaluations
        quick = min(QUICK_EVALUATION_WINDOWS, max(QUICK_EVALUATION_TOKENS, trained // 2) // T)
        windows = max(1, quick, tokens // T)
        return windows if windows < (self.tokens - 1) // T else None

    def predicted(self, windows: int | None) -> int:
        """How many tokens so many windows predict."""
        return windows * self.sequence_length if windows else self.tokens - 1

    def add(self, step: int, evaluation: Evaluation) -> bool:
        """Record a quick evaluation. returns: whether it is the best so far"""
        record = self.record
        record.evaluated, (record.validation_loss, record.validation_tokens) = step, evaluation
        better = record.best_loss is None or evaluation.loss < record.best_loss
        if better:
            record.best_loss, record.best_step = evaluation.loss, step
        record.worse = 0 if better else record.worse + 1
        return better

    def set_final(self, evaluation: Evaluation | None):
        """Record the final evaluation; None once a step follows it."""
        loss, tokens = evaluation or (None, None)
        self.record.final_validation_loss, self.record.final_validation_tokens = loss, tokens
