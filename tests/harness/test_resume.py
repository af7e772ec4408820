"""Resumed runs: they go on exactly, after any interruption, and refuse what would change them."""

import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from data.prepare import prepare
from harness.training import trainer as trainer_module
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.metrics import plot_metrics
from harness.training.runs import (
    resume_run,
)
from harness.training.trainer import CHECKPOINT_SECONDS
from tests.harness.small_runs import BACKENDS, THREADS, needs_torch, rows


def test_a_run_of_an_earlier_release(start):
    """A finished run whose checkpoint says nothing of the windows is done, its loss the final one, and goes on."""
    trainer = start(eval_tokens=10**6)
    trainer.train()
    old = load_checkpoint(trainer.run.latest, with_optimizer=True)
    for name in (
        "eval_tokens",
        "sequence_length",
        "schedule",
        "schedule_start",
        "patience",
        "sample_every",
        "initial_loss",
        "worse",
        "validation_tokens",
        "final_validation_loss",
        "final_validation_tokens",
        "best_step",
        "compile",
    ):
        del old.training[name]
    old.training["clip"] = float("inf")  # as it was stored
    save_checkpoint(trainer.run.latest, old)
    with pytest.raises(UserError, match="has done all its 20 steps"):
        resume_run(trainer.run.path)
    again = resume_run(trainer.run.path, training={"steps": 22, "clip": float("inf")})
    assert again.evaluations.record.final_validation_loss == old.validation_loss
    assert again.settings.clip is None
    assert again.train().finished


def test_a_run_goes_on_from_a_checkpoint_by_time(start):
    """Killed after such a checkpoint, a run ends with the bits of a straight one."""
    straight, killed = start("straight"), start("killed")
    straight.train()
    killed.clock = lambda: killed.step * CHECKPOINT_SECONDS / 3

    def die(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    killed.report = die
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = resume_run(killed.run.path)
    assert resumed.step == 3
    resumed.train()
    for name, value in straight.backend.weights().items():
        np.testing.assert_array_equal(resumed.backend.weights()[name], value, name)
    assert rows(resumed.run) == rows(straight.run)


def test_damaged_rows_stop_no_resume(start, monkeypatch):
    """A run goes on with a log of which lines are damaged."""
    monkeypatch.setattr(trainer_module, "plot_metrics", plot_metrics)
    trainer = start()
    trainer.interrupted = lambda: trainer.step == 7
    trainer.train()
    with trainer.run.metrics.open("a") as log:
        for value in ("null", '"x"', "[1]", "{}", "NaN", "1" * 400, "true"):
            for name in ("loss", "validation_loss", "final_validation_loss"):
                log.write(f'{{"step": 3, "{name}": {value}}}\n')
        log.write(f'{{"step": -{"1" * 400}, "loss": 1.0}}\n')
    outcome = resume_run(trainer.run.path).train()
    assert (outcome.finished, outcome.plot_problem) == (True, "")
    assert [row["step"] for row in rows(trainer.run) if "loss" in row] == list(range(1, 21))


def test_ways_out(start):
    """Without a checkpoint, or with a damaged one, the message says how to go on."""
    trainer = start()
    trainer.run.unlock()
    with pytest.raises(
        UserError, match="has no checkpoint yet to go on from; start the run again with --over"
    ):
        resume_run(trainer.run.path)
    with pytest.raises(UserError, match="has no checkpoint yet; replace it with --overwrite"):
        start()
    trainer = start(overwrite=True)
    trainer.train()
    (trainer.run.latest / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"The best one, of step \d+, is whole: remove .*latest to go on"):
        resume_run(trainer.run.path, training={"steps": 30})
    shutil.rmtree(trainer.run.latest)
    assert resume_run(trainer.run.path, training={"steps": 30}).train().finished


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_interrupted_run_ends_as_a_straight_one(start, backend, dtype):
    """Stopped and resumed, a run has the very weights, moments and metrics; dropout and parts are on.

    At 7 and 13 it is stopped between two evaluations, at 10 before one and at 20, after the last step, in one.
    """
    settings = {
        "overrides": {"dropout": 0.2},
        "accumulate": 2,
        "dtype": dtype,
        "backend": backend,
    }
    straight = start("straight", **settings)
    straight.train()
    interrupted = start("interrupted", **settings)
    for stop in (7, 10, 13, 20):
        asked = count(1)
        interrupted.interrupted = lambda trainer=interrupted, stop=stop, asked=asked: (
            trainer.step == stop and next(asked) > (stop == 20)
        )
        outcome = interrupted.train()
        assert (outcome.finished, outcome.step, outcome.validation) == (False, stop, None)
        interrupted = resume_run(interrupted.run.path)
        assert interrupted.step == stop
        assert (interrupted.backend.name, interrupted.backend.threads) == (backend, THREADS[backend])
        assert interrupted.settings == straight.settings
    assert interrupted.train().finished
    for place in ("latest", "best"):
        wanted, found = (
            load_checkpoint(trainer.run.path / place, with_optimizer=True)
            for trainer in (straight, interrupted)
        )
        assert (found.training, found.step) == (wanted.training, wanted.step)
        assert found.validation_loss == wanted.validation_loss
        for of in ("weights", "optimizer"):
            for name, value in getattr(wanted, of).items():
                assert value.dtype == dtype
                np.testing.assert_array_equal(getattr(found, of)[name], value, name)
    assert rows(interrupted.run) == rows(straight.run)


@needs_torch
@pytest.mark.parametrize(("first", "second"), [("numpy", "torch"), ("torch", "numpy")])
def test_a_run_changes_its_backend(start, first, second):
    """A float64 run handed over at half way has the losses of a run that stayed."""
    settings = {"overrides": {"dropout": 0.2}, "dtype": "float64"}
    stayed = start("stayed", backend=first, **settings)
    stayed.train()
    moved = start("moved", backend=first, **settings)
    moved.interrupted = lambda: moved.step == 10
    moved.train()
    moved = resume_run(moved.run.path, backend=second, threads=THREADS[second])
    moved.train()
    wanted, found = ([row["loss"] for row in rows(run) if "loss" in row] for run in (stayed.run, moved.run))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_more_steps_on_resume(start):
    """A finished run says so, and goes on, to a last evaluation too, when it is given more steps."""
    trainer = start()
    trainer.train()
    with pytest.raises(UserError, match="has done all its 20 steps; name more with --steps"):
        resume_run(trainer.run.path)
    with pytest.raises(UserError, match="has done all its 19 steps"):
        resume_run(trainer.run.path, training={"steps": 19})
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        resume_run(trainer.run.path, training={"steps": 0})
    more = resume_run(trainer.run.path, training={"steps": 23})
    assert more.settings.steps == 23
    outcome = more.train()
    assert (outcome.step, outcome.finished) == (23, True)
    assert [row["step"] for row in rows(more.run) if "loss" in row] == list(range(1, 24))
    # The last step has an evaluation and a checkpoint, though it is no multiple of the interval.
    assert [row["step"] for row in rows(more.run) if "validation_loss" in row] == [0, 5, 10, 15, 20, 23]
    latest = load_checkpoint(more.run.latest)
    assert (latest.step, latest.validation_loss) == (23, outcome.validation.loss)


def test_the_rate_of_a_longer_resume(start):
    """A schedule that now ends later changes the rate, which is told; the rates may be set with more steps alone."""
    trainer = start()
    trainer.interrupted = lambda: trainer.step == 10
    trainer.train()
    same = resume_run(trainer.run.path)
    assert same.rate_change is None
    same.train()
    with pytest.raises(
        ConfigError, match=r"--learning-rate 0\.5 would change .* or give more --steps beside it"
    ):
        resume_run(trainer.run.path, training={"learning_rate": 0.5})
    longer = resume_run(trainer.run.path, training={"steps": 40})
    assert longer.rate_change == (same.settings.rate(19), longer.settings.rate(20))
    assert longer.rate_change[0] < 2e-3 < 5e-3 < longer.rate_change[1]
    longer.run.unlock()
    other = resume_run(trainer.run.path, training={"steps": 40, "learning_rate": 1e-3})
    assert other.settings.min_learning_rate == 1e-4
    other.run.unlock()
    rates = {"learning_rate": 1e-3, "min_learning_rate": 1e-3}
    other = resume_run(trainer.run.path, training={"steps": 40} | rates)
    other.interrupted = lambda: other.step == 30
    other.train()
    assert {row["learning_rate"] for row in rows(other.run) if row["step"] > 20 and "loss" in row} == {1e-3}
    assert resume_run(trainer.run.path).settings == other.settings


def test_a_schedule_of_its_own_on_resume(start):
    """With more steps a resume may bring a schedule, which covers the steps from there on, without a warm-up."""
    straight, trainer = start("straight"), start()
    straight.train()
    trainer.train()
    with pytest.raises(ConfigError, match=r"--schedule constant would change .* or give more --steps beside"):
        resume_run(trainer.run.path, training={"schedule": "constant"})
    change = {"steps": 40, "schedule": "wsd"}
    more = resume_run(trainer.run.path, training=change)
    assert [more.settings.rate(step) for step in (20, 36, 38)] == pytest.approx([1e-2, 1e-2, 5.5e-3])
    assert more.rate_change == (straight.settings.rate(19), more.settings.rate(20))
    more.interrupted = lambda: more.step == 30
    more.train()
    again = resume_run(trainer.run.path, training=change)  # the same command as before
    assert (again.settings, again.rate_change) == (more.settings, None)
    again.train()
    resume_run(straight.run.path, training=change).train()
    assert rows(again.run) == rows(straight.run)
    longer = resume_run(trainer.run.path, training={"steps": 60})  # the schedule that is there, stretched
    assert longer.settings.schedule_start == 20
    assert [longer.settings.rate(step) for step in (40, 52)] == pytest.approx([1e-2, 1e-2])
    longer.run.unlock()
    shape = {"schedule": "linear", "warmup_steps": 4, "min_learning_rate": 0.0, "learning_rate": 2e-2}
    other = resume_run(trainer.run.path, training={"steps": 60, **shape})
    assert [other.settings.rate(step) for step in (40, 43, 44, 52, 60)] == [5e-3, 2e-2, 2e-2, 1e-2, 0]
    other.run.unlock()
    with pytest.raises(ConfigError, match="--warmup-steps 4 would change"):
        resume_run(trainer.run.path, training={"steps": 60, "warmup_steps": 4})


def test_a_resume_needs_a_run(tmp_path):
    """Nothing to resume is one line."""
    with pytest.raises(UserError, match="no checkpoint at"):
        resume_run(tmp_path / "nowhere")


def test_settings_given_again_on_resume(start):
    """The same value is accepted and how often to look may change; what changes the mathematics is refused."""
    trainer = start(steps=10)
    trainer.interrupted = lambda: trainer.step == 4
    trainer.train()
    again = resume_run(
        trainer.run.path, training={"beta1": 0.9, "eval_interval": 2}, overrides={"n_layer": 1}
    )
    assert again.settings.eval_interval == 2
    again.run.unlock()
    with pytest.raises(
        ConfigError, match=r"--clip inf would change the run in .* which has 1\.0; omit it, or st"
    ):
        resume_run(trainer.run.path, training={"clip": float("inf")})
    for change in ({"training": {"learning_rate": 0.5}}, {"overrides": {"dropout": 0.5}}):
        with pytest.raises(ConfigError, match=r"would change the run in .* which has 0\.0"):
            resume_run(trainer.run.path, **change)


def test_a_moved_run_goes_on(start, tmp_path):
    """A run's folder can be carried elsewhere, its text's own file away, and trained further there."""
    trainer = start()
    trainer.interrupted = iter([False, False, True]).__next__
    trainer.train()
    path = trainer.run.path
    del trainer  # Windows moves no file that is still open
    path.rename(tmp_path / "elsewhere")
    assert resume_run(tmp_path / "elsewhere").train().finished
    assert [folder.name for folder in tmp_path.iterdir()] == ["elsewhere"]


def test_a_prepared_text_is_found_again(start, text, tmp_path, monkeypatch):
    """A token file named by a relative path is found when training goes on from another folder."""
    prepare(text, "bytes", tmp_path / "sentences.bin")
    monkeypatch.chdir(tmp_path)
    trainer = start(text=Path("sentences.bin"))
    trainer.interrupted = lambda: trainer.step == 3
    trainer.train()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for stop in (6, 20):  # the record of the tokens outlives a second part too
        trainer = resume_run(tmp_path / "run")
        trainer.interrupted = lambda trainer=trainer, stop=stop: trainer.step == stop
        assert trainer.train().step == stop
