"""Stopping early: after so many evaluations without a better one, and again after a resume."""

import pytest

from contract.errors import UserError
from harness.training import evaluation_plan
from harness.training import trainer as trainer_module
from harness.training.checkpoint import load_checkpoint
from harness.training.evaluation import Evaluation
from harness.training.runs import resume_run
from tests.harness.small_runs import rows

LOSSES = {5: 3.0, 10: 2.0, 15: 2.5, 20: 2.0, 25: 2.1, 30: 1.0, 35: 4.0}


@pytest.fixture(autouse=True)
def losses(monkeypatch):
    """Evaluations have the losses of `LOSSES` by step, and 9 before the first; final ones too."""

    def evaluate(
        backend, tokens, batch_size, *, sequence_length, max_windows, interrupted, progress=lambda done: None
    ):
        count = max_windows * sequence_length if max_windows else len(tokens) - 1
        for done in (1, 2, count):
            progress(done)
            if interrupted():
                return None
        return Evaluation(LOSSES.get(backend.optimizer.step, 9.0), count)

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)


def test_training_ends_early(start):
    """The second evaluation in a row that is no better, an equal one included, is the last; a final one follows it."""
    trainer = start(steps=40, patience=2, eval_tokens=10**6)
    outcome = trainer.train()
    assert (outcome.finished, outcome.step, trainer.evaluations.out_of_patience) == (True, 20, True)
    assert outcome.validation.tokens == len(trainer.validation) - 1
    assert rows(trainer.run)[-1]["final_validation_loss"] == LOSSES[20]
    latest, best = load_checkpoint(trainer.run.latest), load_checkpoint(trainer.run.best)
    assert (latest.step, best.step) == (20, 10)
    assert latest.training["final_validation_tokens"] == outcome.validation.tokens


def test_a_better_evaluation_begins_the_count_anew(start):
    """Only evaluations in a row count: with one more in patience the better one at step 30 is reached."""
    outcome = start(steps=40, patience=4).train()
    assert outcome.step == 40
    trainer = start("less", steps=50, patience=3)
    assert trainer.train().step == 25
    assert load_checkpoint(trainer.run.latest).training["worse"] == 3


@pytest.mark.parametrize("patience", [None, 0])
def test_no_patience_is_endless(start, patience):
    """Without it all steps are made."""
    trainer = start(steps=25, patience=patience)
    assert trainer.train().step == 25
    assert not trainer.evaluations.out_of_patience


def test_patience_is_switched_off_on_resume(start):
    """A run that ended early makes its last steps, and another resume knows that there is no patience left to lose."""
    trainer = start(steps=40, patience=1)
    assert trainer.train().step == 15
    resumed = resume_run(trainer.run.path, training={"patience": 0})
    resumed.interrupted = lambda: resumed.step == 27
    resumed.train()
    assert load_checkpoint(trainer.run.latest).training["patience"] is None
    assert resume_run(trainer.run.path).train().step == 40


def test_patience_outlives_an_interruption(start):
    """Stopped between two evaluations, in one and in the final one, a run ends where a straight one does."""
    settings = {"steps": 40, "patience": 2, "eval_tokens": 10**6}
    straight, trainer = start("straight", **settings), start(**settings)
    straight.train()
    for stop in (12, 15, 17):
        trainer.interrupted = lambda trainer=trainer, stop=stop: trainer.step == stop
        assert not trainer.train().finished
        trainer = resume_run(trainer.run.path)
        assert trainer.step == stop
    told = []
    trainer.report_evaluation = lambda tokens, total: told.append(tokens)
    trainer.interrupted = lambda: len(told) == 3
    assert not trainer.train().finished
    trainer = resume_run(trainer.run.path)
    assert (trainer.step, trainer.train().finished) == (20, True)
    assert rows(trainer.run) == rows(straight.run)
    for place in ("latest", "best"):
        found, wanted = (load_checkpoint(run.run.path / place).training for run in (trainer, straight))
        assert found == wanted


def test_more_patience_on_resume(start):
    """A run that stopped early says so, and goes on with more patience, but not with more steps alone."""
    trainer = start(steps=40, patience=2)
    trainer.train()
    for change in ({}, {"steps": 50}, {"patience": 1}):
        with pytest.raises(UserError, match=r"stopped early, out of --patience \d; name a larger"):
            resume_run(trainer.run.path, training=change)
    more = resume_run(trainer.run.path, training={"patience": 4})
    assert more.train().step == 40
    whole = start("whole", steps=40, patience=4)
    whole.train()
    assert rows(more.run) == rows(whole.run)


def test_the_quick_evaluation_may_see_all(start, monkeypatch):
    """A run that ends early makes no final evaluation where the quick one saw the whole split."""
    monkeypatch.setattr(evaluation_plan, "QUICK_EVALUATION_WINDOWS", 10_000)
    trainer = start(steps=40, patience=2)
    outcome = trainer.train()
    assert (outcome.step, outcome.validation.tokens) == (20, len(trainer.validation) - 1)
    assert not any("final_validation_loss" in row for row in rows(trainer.run))
