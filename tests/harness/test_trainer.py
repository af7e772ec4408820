"""The training loop: it learns, evaluates, reports, and keeps its checkpoints."""

from types import SimpleNamespace

import numpy as np
import pytest

from contract.errors import UserError
from harness.training import evaluation_plan
from harness.training import trainer as trainer_module
from harness.training.checkpoint import load_checkpoint
from harness.training.evaluation import Evaluation
from harness.training.metrics import plot_metrics
from harness.training.runs import (
    open_model,
    resume_run,
)
from harness.training.schedule import learning_rate
from harness.training.spikes import SpikeDetector
from harness.training.trainer import CHECKPOINT_SECONDS, Progress, Trainer
from tests.harness.small_runs import BACKENDS, rows


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_learns(start, monkeypatch, backend):
    """From even odds to far better, with a row a step, both checkpoints, a plot, and a final evaluation."""
    monkeypatch.setattr(trainer_module, "plot_metrics", plot_metrics)
    trainer = start(backend=backend, steps=120, eval_interval=60, eval_tokens=10**6)
    outcome = trainer.train()
    assert (outcome.finished, outcome.plot_problem) == (True, "")
    assert outcome.step == 120
    assert outcome.validation.loss < 0.8 * np.log(trainer.backend.config.vocab_size)
    assert outcome.validation.tokens == len(trainer.validation) - 1
    log = rows(trainer.run)
    assert [row["step"] for row in log if "loss" in row] == list(range(1, 121))
    assert [row["step"] for row in log if "validation_loss" in row] == [0, 60, 120]
    assert trainer.run.plot.exists()
    for place in (trainer.run.latest, trainer.run.best):
        training = load_checkpoint(place, with_optimizer=True).training
        assert training["final_validation_loss"] == outcome.validation.loss
        assert training["final_validation_tokens"] == outcome.validation.tokens


def test_the_best_checkpoint_stays(start, monkeypatch):
    """Where the loss rises again, best keeps the lowest of those after the first step, and latest goes on."""
    losses = iter([1.0, 3.0, 2.0, 2.5, 4.0])
    real = trainer_module.evaluate
    monkeypatch.setattr(trainer_module, "evaluate", lambda *a, **k: real(*a, **k)._replace(loss=next(losses)))
    trainer = start()
    trainer.train()
    assert (load_checkpoint(trainer.run.best).step, load_checkpoint(trainer.run.best).validation_loss) == (
        10,
        2.0,
    )
    assert load_checkpoint(trainer.run.latest).step == 20
    assert open_model(trainer.run.path)[1].step == 10


def test_the_best_loss_outlives_an_interruption(start, monkeypatch):
    """A resumed run remembers the lowest loss and the last one, and keeps the best checkpoint against worse."""
    losses = iter([1.0, 3.0, 2.0, 2.5, 4.0])
    real = trainer_module.evaluate
    monkeypatch.setattr(trainer_module, "evaluate", lambda *a, **k: real(*a, **k)._replace(loss=next(losses)))
    trainer = start()
    for stop in (11, 12, 16, 17):
        trainer.interrupted = lambda trainer=trainer, stop=stop: trainer.step == stop
        trainer.train()
        latest = load_checkpoint(trainer.run.latest)
        assert latest.step == stop
        assert latest.validation_loss == (2.0 if stop < 15 else 2.5)
        assert latest.training["best_loss"] == 2.0
        trainer = resume_run(trainer.run.path)
    assert trainer.train().finished
    assert load_checkpoint(trainer.run.best).step == 10


@pytest.mark.parametrize(
    ("changes", "final"),
    [
        pytest.param({}, [], id="a short training"),
        pytest.param({"batch_size": 30}, [300], id="half of the tokens trained on"),
        pytest.param({"batch_size": 60}, [None], id="all where that is more than there are"),
        pytest.param({"batch_size": 60, "most": 2200}, [275], id="a large split"),
        pytest.param({"eval_tokens": 2300}, [287], id="asked for"),
        pytest.param({"eval_tokens": 10**6}, [None], id="asked for all"),
        pytest.param({"eval_tokens": 5, "batch_size": 60}, [], id="asked for less than the others"),
    ],
)
def test_what_an_evaluation_looks_at(start, monkeypatch, changes, final):
    """All evaluations see the same windows; in proportion to the training, a final one sees more or all."""
    seen, real = [], trainer_module.evaluate

    def note(backend, tokens, batch_size, **options):
        seen.append((tokens, options["max_windows"]))
        return real(backend, tokens, batch_size, **options)

    monkeypatch.setattr(trainer_module, "evaluate", note)
    monkeypatch.setattr(evaluation_plan, "MAX_FINAL_TOKENS", changes.pop("most", 1 << 21))
    trainer = start(**changes)
    corpus = np.memmap(trainer.run.tokens, np.uint16, "r")
    outcome = trainer.train()
    assert [windows for _, windows in seen] == [256] * 5 + final
    for tokens, _ in seen:
        np.testing.assert_array_equal(tokens, corpus[len(trainer.windows.tokens) :])
    assert 0.05 < len(seen[0][0]) / len(corpus) < 0.15
    whole = len(trainer.validation) - 1
    assert outcome.validation.tokens == (8 * (seen[-1][1]) if seen[-1][1] else whole)


def test_a_small_split_is_always_seen_whole(start, monkeypatch):
    """Where there are no more windows than an evaluation takes, each sees all tokens, and that is all."""
    monkeypatch.setattr(evaluation_plan, "QUICK_EVALUATION_WINDOWS", 10_000)
    trainer = start(eval_tokens=10**6)
    outcome = trainer.train()
    assert outcome.validation.tokens == len(trainer.validation) - 1
    evaluations = [row for row in rows(trainer.run) if "loss" not in row]
    assert [row["validation_tokens"] for row in evaluations] == [outcome.validation.tokens] * 5
    assert load_checkpoint(trainer.run.latest).training["final_validation_loss"] is None


def test_the_best_is_judged_by_like_losses(start):
    """Weights that stand still have one loss over and over: the first stays the best, whatever the final one says."""
    still = {"learning_rate": 1e-30, "weight_decay": 0, "eval_tokens": 10**6}
    trainer = start(**still)
    outcome = trainer.train()
    log = rows(trainer.run)
    losses = [row["validation_loss"] for row in log if "validation_loss" in row]
    assert len(losses) == 5
    assert len(set(losses)) == 1
    assert log[-1] == {
        "step": 20,
        "final_validation_loss": outcome.validation.loss,
        "final_validation_tokens": len(trainer.validation) - 1,
    }
    latest, best = load_checkpoint(trainer.run.latest), load_checkpoint(trainer.run.best)
    assert (best.step, best.training["best_step"]) == (5, 5)
    assert best.training["final_validation_loss"] is None
    assert latest.validation_loss == best.validation_loss == losses[0]
    assert latest.training["validation_tokens"] == 8 * 256
    assert latest.training["final_validation_loss"] == outcome.validation.loss != losses[0]


def test_long_evaluations_show_their_progress(start):
    """The first and the final one say how much they will see before they begin, and where they are at every batch."""
    trainer, told = start(steps=1, eval_tokens=2300), []
    trainer.report_evaluation = lambda tokens, total: told.append((trainer.step, tokens, total))
    trainer.train()
    first = [(0, 8 * windows, 8 * 256) for windows in range(0, 257, 4)]
    assert told == first + [(1, 8 * windows, 8 * 287) for windows in (*range(0, 287, 4), 287)]


def test_the_final_evaluation_can_be_stopped(start):
    """Told to stop in it, the run has saved its last step, and on resume makes the final evaluation alone."""
    whole = start("straight", eval_tokens=10**6)
    whole.train()
    trainer, told = start(eval_tokens=10**6), []
    trainer.report_evaluation = lambda tokens, total: told.append(tokens) if trainer.step else None
    trainer.interrupted = lambda: len(told) == 3
    outcome = trainer.train()
    assert (outcome.finished, outcome.step, outcome.validation) == (False, 20, None)
    resumed = resume_run(trainer.run.path)
    assert resumed.train().validation.tokens == len(trainer.validation) - 1
    assert rows(resumed.run) == rows(whole.run)
    with pytest.raises(UserError, match="has done all its 20 steps"):
        resume_run(trainer.run.path)
    for place in ("latest", "best"):
        found, wanted = (load_checkpoint(run.run.path / place) for run in (resumed, whole))
        assert found.training == wanted.training
    longer = resume_run(trainer.run.path, training={"steps": 22})
    longer.interrupted = lambda: longer.step == 21
    longer.train()
    assert load_checkpoint(trainer.run.latest).training["final_validation_loss"] is None
    assert resume_run(trainer.run.path).train().finished
    assert [row["step"] for row in rows(trainer.run) if "final_validation_loss" in row] == [20, 22]


def test_steps_take_the_scheduled_rate(start):
    """The rate of the schedule is the one that the update gets and the log shows; the first is peak / warm-up."""
    trainer = start()
    update, rates = trainer.backend.update, []
    trainer.backend.update = lambda rate: (rates.append(rate), update(rate))
    trainer.train()
    shape = {"steps": 20, "peak": 1e-2, "minimum": 1e-3, "warmup_steps": 5}
    assert rates == [learning_rate(step, **shape) for step in range(20)]
    assert rates == [row["learning_rate"] for row in rows(trainer.run) if "loss" in row]
    assert rates[0] == 1e-2 / 5


def test_a_step_is_a_batch_a_clip_and_an_update(start):
    """Each step asks the backend once, for the batch of that step, in the parts and the norm that were set."""
    trainer = start(accumulate=2, clip=0.3, steps=5)
    calls, norms = [], []
    compute, clip = trainer.backend.loss_and_gradients, trainer.backend.clip

    def note(tokens, targets, **options):
        calls.append((tokens, targets, options))
        return compute(tokens, targets, **options)

    trainer.backend.loss_and_gradients = note
    trainer.backend.clip = lambda limit: (norms.append((limit, clip(limit))), norms[-1][1])[1]
    trainer.train()
    assert len(calls) == len(norms) == 5
    for step, (tokens, targets, options) in enumerate(calls):
        assert options == {"step": step, "accumulate": 2}
        for found, wanted in zip((tokens, targets), trainer.windows.batch(step, 4), strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert norms == [(0.3, row["gradient_norm"]) for row in rows(trainer.run) if "loss" in row]


def test_each_step_is_reported(start):
    """The report has every step with its loss, and the validation loss where there was an evaluation, as at first."""
    trainer, reports = start(), []
    trainer.report = reports.append
    trainer.train()
    log = rows(trainer.run)
    validation = {
        row["step"]: Evaluation(row["validation_loss"], row["validation_tokens"])
        for row in log
        if "validation_loss" in row
    }
    assert [report._replace(seconds=0) for report in reports] == [
        Progress(step, loss, 0, validation.get(step), False)
        for step, loss in [(0, None), *((row["step"], row["loss"]) for row in log if "loss" in row)]
    ]
    assert all(report.seconds > 0 for report in reports[1:])


def test_a_checkpoint_by_time(start, monkeypatch):
    """Five minutes after the start or the last checkpoint the latest is written, between two evaluations too."""
    saved, real = [], trainer_module.save_checkpoint
    monkeypatch.setattr(
        trainer_module, "save_checkpoint", lambda *a: saved.append((a[0].name, a[1].step)) or real(*a)
    )
    trainer = start(eval_interval=8)
    trainer.clock = lambda: trainer.step * CHECKPOINT_SECONDS / 3
    trainer.train()
    latest = [step for name, step in saved if name == "latest"]
    assert latest == [3, 6, 8, 11, 14, 16, 19, 20]
    assert CHECKPOINT_SECONDS == 300


@pytest.mark.parametrize("failing", ["train", "validation"])
def test_tokens_that_cannot_be_read(start, failing):
    """Where the token file changed under the training, the steps done are saved before the error comes out."""
    trainer = start()

    class Changed:
        def __init__(self, tokens):
            self.tokens = tokens

        def __len__(self):
            return len(self.tokens)

        def __getitem__(self, places):
            if trainer.step == 10:
                raise UserError("tokens.bin has changed")
            return self.tokens[places]

    if failing == "train":
        trainer.windows.tokens = Changed(trainer.windows.tokens)
    else:
        trainer.validation = Changed(trainer.validation)
    with pytest.raises(UserError, match=r"tokens\.bin has changed"):
        trainer.train()
    assert load_checkpoint(trainer.run.latest).step == 10
    assert resume_run(trainer.run.path).train().finished


def test_the_tokens_are_verified_at_the_end(start):
    """After the last step the corpus is asked whether it is still what it was; not where the run was stopped."""
    trainer, asked = start(), []
    trainer._verify = lambda: asked.append(trainer.step)
    trainer.interrupted = lambda: trainer.step == 7
    trainer.train()
    assert asked == []
    trainer.interrupted = lambda: False
    trainer.train()
    assert asked == [20]


def test_the_corpus_brings_its_check(start):
    """`verify` of the corpus is what is asked."""
    trainer = start()
    corpus = SimpleNamespace(
        train=trainer.windows.tokens, validation=trainer.validation, verify=lambda: 1 / 0
    )
    trainer = Trainer(trainer.backend, trainer.settings, trainer.run, corpus, trainer.tokenizer, {})
    with pytest.raises(ZeroDivisionError):
        trainer.train()


def test_a_plot_fails_no_run(start, monkeypatch):
    """Whatever goes wrong in drawing, the run ends well and says why there is no plot."""

    def fail(metrics, image):
        raise ValueError("no font")

    monkeypatch.setattr(trainer_module, "plot_metrics", fail)
    outcome = start().train()
    assert (outcome.finished, outcome.plot_problem) == (True, "no font")


def test_the_log_is_on_the_disk_before_the_checkpoint(start, monkeypatch):
    """Whatever step a checkpoint is of, the rows up to it can be read when it takes its place."""
    real, saved = trainer_module.save_checkpoint, []

    def note(folder, checkpoint):
        steps = [row["step"] for row in rows(trainer.run) if "loss" in row]
        saved.append((folder.name, checkpoint.step, steps == list(range(1, checkpoint.step + 1))))
        real(folder, checkpoint)

    monkeypatch.setattr(trainer_module, "save_checkpoint", note)
    trainer = start()
    trainer.interrupted = lambda: trainer.step == 12
    trainer.train()
    assert [step for name, step, _ in saved if name == "latest"] == [5, 10, 12]
    assert {name for name, _, _ in saved} == {"latest", "best"}
    assert all(complete for _, _, complete in saved)


def test_spikes_are_told_from_the_whole_run(start, monkeypatch):
    """After a resume a loss is held against those of the earlier part too."""
    seen = []
    monkeypatch.setattr(SpikeDetector, "update", lambda self, loss: bool(seen.append(loss)))
    trainer = start()
    trainer.interrupted = lambda: trainer.step == 7
    trainer.train()
    before = seen[:]
    seen.clear()
    resume_run(trainer.run.path).train()
    assert seen[:7] == before
    assert len(seen) == 20


def test_an_evaluation_can_be_stopped(start, monkeypatch):
    """Told to stop in the middle of an evaluation, the run looks at no further batch and saves."""
    looked = []
    trainer = start(eval_interval=20)
    real = trainer.backend.evaluate
    monkeypatch.setattr(trainer.backend, "evaluate", lambda *batch: looked.append(1) or real(*batch))
    trainer.interrupted = lambda: trainer.step == 20 and len(looked) == 64 + 2
    outcome = trainer.train()
    assert (outcome.finished, outcome.step, len(looked)) == (False, 20, 64 + 2)
    checkpoint = load_checkpoint(trainer.run.latest)
    assert (checkpoint.step, checkpoint.validation_loss) == (20, None)
