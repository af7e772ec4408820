"""Training runs: they learn, stop and go on exactly, keep their checkpoints, and refuse what cannot work."""

import importlib.util
import json
import os
import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from data.prepare import DEFAULT_RANKS, DEFAULT_TEXT, default_tokenizer, open_prepared, prepare
from data.tokenizers import encode
from harness.training import trainer as trainer_module
from harness.training.checkpoint import checkpoint_exists, load_checkpoint, save_checkpoint
from harness.training.evaluation import Evaluation
from harness.training.run_corpus import evaluation_tokens
from harness.training.run_folder import RunFolder, plot_metrics
from harness.training.runs import (
    open_model,
    resume_run,
    start_run,
)
from harness.training.schedule import learning_rate
from harness.training.settings import TrainingSettings
from harness.training.spikes import SpikeDetector
from harness.training.trainer import CHECKPOINT_SECONDS, Progress, Trainer

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch (pip install -e '.[dev]')"
)
BACKENDS = ["numpy", pytest.param("torch", marks=needs_torch)]
# PyTorch splits nothing this small over threads, and two that wait for each other on a busy machine take minutes.
THREADS = {"numpy": 2, "torch": 1}
SMALL = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 8}
TRAINING = {"steps": 20, "batch_size": 4, "warmup_steps": 5, "learning_rate": 1e-2, "eval_interval": 5}


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """A plot takes longer than a small run, so it is drawn only where a test puts it back."""
    monkeypatch.setattr(trainer_module, "plot_metrics", lambda metrics, image: None)


@pytest.fixture
def start(text, tmp_path):
    """A function that starts a small run in a folder of its own."""

    def start(name="run", overrides=None, out=None, **changes):
        names = {"text", "tokenizer", "backend", "overwrite", "threads", "preset_name"}
        options = {key: changes.pop(key) for key in names & changes.keys()}
        options = {"threads": THREADS[options.get("backend", "numpy")]} | options
        training = TRAINING | changes
        if "epochs" in training:
            del training["steps"]
        return start_run(
            out or tmp_path / name,
            overrides=SMALL | (overrides or {}),
            training=training,
            **({"text": text, "preset_name": "nano"} | options),
        )

    return start


def rows(run: RunFolder) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


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
    assert [row["step"] for row in log if "validation_loss" in row] == [60, 120]
    assert trainer.run.plot.exists()
    for place in (trainer.run.latest, trainer.run.best):
        training = load_checkpoint(place, with_optimizer=True).training
        assert training["final_validation_loss"] == outcome.validation.loss
        assert training["final_validation_tokens"] == outcome.validation.tokens


def test_the_best_checkpoint_stays(start, monkeypatch):
    """Where the loss rises again, best keeps the lowest and latest goes on."""
    losses = iter([3.0, 2.0, 2.5, 4.0])
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
    losses = iter([3.0, 2.0, 2.5, 4.0])
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
    monkeypatch.setattr(trainer_module, "MAX_FINAL_TOKENS", changes.pop("most", 1 << 21))
    trainer = start(**changes)
    corpus = np.memmap(trainer.run.tokens, np.uint16, "r")
    outcome = trainer.train()
    assert [windows for _, windows in seen] == [256, 256, 256, 256, *final]
    for tokens, _ in seen:
        np.testing.assert_array_equal(tokens, corpus[len(trainer.windows.tokens) :])
    assert 0.05 < len(seen[0][0]) / len(corpus) < 0.15
    whole = len(trainer.validation) - 1
    assert outcome.validation.tokens == (8 * (seen[-1][1]) if seen[-1][1] else whole)


def test_a_small_split_is_always_seen_whole(start, monkeypatch):
    """Where there are no more windows than an evaluation takes, each sees all tokens, and that is all."""
    monkeypatch.setattr(trainer_module, "QUICK_EVALUATION_WINDOWS", 10_000)
    trainer = start(eval_tokens=10**6)
    outcome = trainer.train()
    assert outcome.validation.tokens == len(trainer.validation) - 1
    evaluations = [row for row in rows(trainer.run) if "loss" not in row]
    assert [row["validation_tokens"] for row in evaluations] == [outcome.validation.tokens] * 4
    assert load_checkpoint(trainer.run.latest).training["final_validation_loss"] is None


def test_the_best_is_judged_by_like_losses(start):
    """Weights that stand still have one loss over and over: the first stays the best, whatever the final one says."""
    still = {"learning_rate": 1e-30, "weight_decay": 0, "eval_tokens": 10**6}
    trainer = start(**still)
    outcome = trainer.train()
    log = rows(trainer.run)
    losses = [row["validation_loss"] for row in log if "validation_loss" in row]
    assert len(losses) == 4
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


def test_the_final_evaluation_shows_its_progress(start):
    """It says how much it will see before it begins, and where it is after every batch."""
    trainer, told = start(steps=1, eval_tokens=2300), []
    trainer.report_evaluation = lambda tokens, total: told.append((tokens, total))
    trainer.train()
    assert told == [(8 * windows, 8 * 287) for windows in (*range(0, 287, 4), 287)]


def test_the_final_evaluation_can_be_stopped(start):
    """Told to stop in it, the run has saved its last step, and on resume makes the final evaluation alone."""
    whole = start("straight", eval_tokens=10**6)
    whole.train()
    trainer, told = start(eval_tokens=10**6), []
    trainer.report_evaluation = lambda tokens, total: told.append(tokens)
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


def test_a_run_of_an_earlier_release(start):
    """A finished run whose checkpoint says nothing of the windows is done, its loss the final one, and goes on."""
    trainer = start(eval_tokens=10**6)
    trainer.train()
    old = load_checkpoint(trainer.run.latest, with_optimizer=True)
    for name in (
        "eval_tokens",
        "validation_tokens",
        "final_validation_loss",
        "final_validation_tokens",
        "best_step",
    ):
        del old.training[name]
    old.training["clip"] = float("inf")  # as it was stored
    save_checkpoint(trainer.run.latest, old)
    with pytest.raises(UserError, match="has done all its 20 steps"):
        resume_run(trainer.run.path)
    again = resume_run(trainer.run.path, training={"steps": 22, "clip": float("inf")})
    assert again.evaluations.final_validation_loss == old.validation_loss
    assert again.settings.clip is None
    assert again.train().finished


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
    """The report has every step with its loss, and the validation loss where there was an evaluation."""
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
        Progress(row["step"], row["loss"], 0, validation.get(row["step"]), False)
        for row in log
        if "loss" in row
    ]
    assert all(report.seconds > 0 for report in reports)


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
    trainer = Trainer(trainer.backend, trainer.settings, trainer.run, corpus, trainer.tokenizer)
    with pytest.raises(ZeroDivisionError):
        trainer.train()


def test_a_plot_fails_no_run(start, monkeypatch):
    """Whatever goes wrong in drawing, the run ends well and says why there is no plot."""

    def fail(metrics, image):
        raise ValueError("no font")

    monkeypatch.setattr(trainer_module, "plot_metrics", fail)
    outcome = start().train()
    assert (outcome.finished, outcome.plot_problem) == (True, "no font")


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
    trainer.interrupted = lambda: len(looked) == 2
    outcome = trainer.train()
    assert (outcome.finished, outcome.step, len(looked)) == (False, 20, 2)
    checkpoint = load_checkpoint(trainer.run.latest)
    assert (checkpoint.step, checkpoint.validation_loss) == (20, None)


def test_another_text_is_not_taken_for_the_runs_own(start, text, tmp_path):
    """A token file prepared anew from an edited text is refused on resume, though the tokenizer is the same."""
    prepared, edited = tmp_path / "text.bin", tmp_path / "edited.txt"
    prepare(text, "bytes", prepared)
    tokenizer = open_prepared(prepared)[1]
    trainer = start(text=prepared)
    trainer.interrupted = lambda: trainer.step == 3
    trainer.train()
    edited.write_text(text.read_text()[1000:], newline="")
    prepare(edited, tokenizer, prepared, overwrite=True)
    with pytest.raises(UserError, match="holds another text than the one that"):
        resume_run(trainer.run.path)


@pytest.mark.parametrize("source", [{"text": "tokens.bin"}, {"start": ""}, {"start": "best"}], ids=str)
def test_a_run_is_not_replaced_by_what_starts_from_it(start, source):
    """Neither the tokens nor the weights that a run is to start from go with the run that it replaces."""
    trainer = start()
    trainer.train()
    folder = trainer.run.path
    arguments = {name: str(folder / part) for name, part in source.items()}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    with pytest.raises(ConfigError, match="is of the run that --overwrite replaces"):
        start_run(str(folder), training={"steps": 2, "batch_size": 2}, overwrite=True, **arguments)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"} == before


@pytest.mark.parametrize("name", ["latest", "best"])
def test_a_folder_of_the_users_in_a_checkpoints_place(start, name):
    """It is told before the first step, not when the first checkpoint finds no place."""
    trainer = start()
    trainer.train()
    place = trainer.run.path / name
    (place / "config.json").unlink()
    with pytest.raises(
        UserError, match=rf"{name} is in the place of a checkpoint, but is none; move it away"
    ):
        resume_run(trainer.run.path, training={"steps": 30})
    shutil.move(place, trainer.run.path / "away")
    assert resume_run(trainer.run.path, training={"steps": 30}).train().finished


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes (Linux or macOS)")
def test_a_pipe_in_a_runs_folder(start):
    """Nobody waits for it: the log's is told in a line, the plot's costs the plot alone."""
    trainer = start()
    trainer.train()
    trainer.run.plot.unlink(missing_ok=True)
    os.mkfifo(trainer.run.plot)
    with pytest.raises(UserError, match="no run drew it"):
        plot_metrics(trainer.run.metrics, trainer.run.plot)
    trainer.run.metrics.unlink()
    os.mkfifo(trainer.run.metrics)
    with pytest.raises((UserError, OSError), match=r"not a regular file|no run wrote it"):
        resume_run(trainer.run.path, training={"steps": 30}).train()


def test_a_folder_in_the_runs_place(start, tmp_path):
    """Where the run's folder was moved away and another stands in its place, nothing is written there."""
    trainer = start()

    def move_away():
        if trainer.step == 7:
            trainer.run.path.rename(tmp_path / "away")
            trainer.run.path.mkdir()
        return False

    trainer.interrupted = move_away
    with pytest.raises(UserError, match="was moved or removed while the run was training"):
        trainer.train()
    assert list(trainer.run.path.iterdir()) == []
    assert load_checkpoint(tmp_path / "away" / "latest").step == 5


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


def test_the_seed_decides(start):
    """The same seed gives the same losses; another seed gives others."""
    found = []
    for number, seed in enumerate((1, 1, 2)):
        trainer = start(f"run-{number}", seed=seed, steps=3)
        trainer.train()
        found.append(rows(trainer.run))
    assert found[0] == found[1] != found[2]


def test_the_seed_decides_all(start):
    """Initial weights, the order of windows and dropout each follow the seed."""
    first, second = start("first", seed=1), start("second", seed=2)
    assert (first.backend.seed, second.backend.seed) == (1, 2)
    assert (first.windows.batch(0, 4)[0] != second.windows.batch(0, 4)[0]).any()
    name = "token_embedding.weight"
    assert (first.backend.weights()[name] != second.backend.weights()[name]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_setting_reaches_the_training(start, backend):
    """Each setting that changes the result does change it, so none is lost on the way to the backend."""

    def outcome(name, **changes):
        trainer = start(name, steps=4, eval_interval=4, backend=backend, threads=1, **changes)
        assert trainer.backend.threads == 1
        trainer.train()
        return {name: np.array(value) for name, value in trainer.backend.weights().items()}

    usual = outcome("usual", warmup_steps=1)
    for name, value in {
        "learning_rate": 2e-2,
        "min_learning_rate": 5e-3,
        "warmup_steps": 3,
        "weight_decay": 0.5,
        "beta1": 0.8,
        "beta2": 0.9,
        "clip": 0.1,
        "batch_size": 8,
        "dtype": "float64",
    }.items():
        other = outcome(name, **({"warmup_steps": 1} | {name: value}))
        assert any((other[key] != usual[key]).any() for key in usual), name
        assert all(array.dtype == (value if name == "dtype" else "float32") for array in other.values())


def test_epochs_become_steps(start):
    """Half an epoch is half the windows, a batch at a time, rounded up."""
    trainer = start(epochs=0.5)
    assert trainer.settings.steps == -(-trainer.windows.per_epoch // 8)
    assert trainer.epochs == pytest.approx(0.5, abs=4 / trainer.windows.per_epoch)


def test_a_step_is_the_least(start):
    """However small a part of an epoch is asked for, training has a step."""
    assert start(epochs=1e-9).settings.steps == 1


@pytest.mark.parametrize("epochs", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_epochs(start, tmp_path, epochs):
    """Epochs that are no positive number are refused by name, and nothing is started."""
    with pytest.raises(ConfigError, match="epochs must be a positive number, got"):
        start(epochs=epochs)
    assert list(tmp_path.iterdir()) == []


def test_epochs_of_an_impossible_batch(start):
    """The batch size is refused by name before the steps are counted with it."""
    with pytest.raises(ConfigError, match="batch-size must be at least 1, got 0"):
        start(epochs=1.0, batch_size=0)


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
    assert [row["step"] for row in rows(more.run) if "validation_loss" in row] == [5, 10, 15, 20, 23]
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


def test_a_resume_needs_a_run(tmp_path):
    """Nothing to resume is one line."""
    with pytest.raises(UserError, match="no checkpoint at"):
        resume_run(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run(start, value):
    """The step is named, the last checkpoint stays, the bad step is not logged or taken."""
    trainer = start()
    real = trainer.backend.loss_and_gradients
    trainer.backend.loss_and_gradients = lambda *a, step, **k: (
        value if step == 11 else real(*a, step=step, **k)
    )
    with pytest.raises(UserError, match=r"step 12: the loss is (nan|inf).*last checkpoint is kept"):
        trainer.train()
    assert load_checkpoint(trainer.run.latest).step == 10
    assert resume_run(trainer.run.path).train().finished


def test_no_checkpoint_is_promised_that_is_not_there(start):
    """Before the first checkpoint the message of a bad loss does not say that one is kept."""
    trainer = start()
    trainer.backend.loss_and_gradients = lambda *a, **k: np.nan
    with pytest.raises(UserError, match=r"no longer finite.*; try a lower --learning-rate") as error:
        trainer.train()
    assert not checkpoint_exists(trainer.run.resumable)
    assert "kept" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_stops_the_run(start, value):
    """A finite loss with such a gradient updates no weight."""
    trainer = start()
    clip, update = trainer.backend.clip, trainer.backend.update
    updates = []
    trainer.backend.clip = lambda limit: value if trainer.step == 11 else clip(limit)
    trainer.backend.update = lambda rate: (updates.append(rate), update(rate))
    with pytest.raises(UserError, match=r"step 12: the loss is \d.* the gradient norm (nan|inf), no longer"):
        trainer.train()
    assert len(updates) == 11
    assert load_checkpoint(trainer.run.latest).step == 10


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("bad", [10, 20])
def test_a_validation_loss_that_is_not_finite_stops_the_run(start, monkeypatch, value, bad):
    """Weights that went bad in the last update replace no checkpoint, at the end neither."""
    real = trainer_module.evaluate

    def evaluate(*arguments, **options):
        found = real(*arguments, **options)
        return found._replace(loss=value) if trainer.step == bad else found

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    trainer = start()
    with pytest.raises(
        UserError, match=rf"step {bad}: the validation loss is (nan|inf), .*checkpoint is kept"
    ):
        trainer.train()
    for place in (trainer.run.latest, trainer.run.best):
        checkpoint = load_checkpoint(place)
        assert checkpoint.step < bad
        assert np.isfinite(checkpoint.validation_loss)


def test_a_spike_is_marked(start, monkeypatch):
    """The log has a mark on the step whose loss is a spike and on no other, and whoever follows is told."""
    seen, told = count(1), []
    monkeypatch.setattr(SpikeDetector, "update", lambda self, loss: next(seen) == 3)
    trainer = start(steps=5)
    trainer.report = told.append
    trainer.train()
    assert [row["step"] for row in rows(trainer.run) if row.get("spike")] == [3]
    assert [progress.step for progress in told if progress.spike] == [3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tensor_that_is_not_finite_is_named(start, backend):
    """Where a weight has become infinite the message names the first tensor that shows it, in dataflow order."""
    trainer = start(backend=backend)
    dict(trainer.backend.weights())["blocks.0.feed_forward.up.weight"][0, 0] = np.inf
    with pytest.raises(UserError, match=r"no longer finite, first in blocks\.0\.feed_forward\.up; try"):
        trainer.train()


def test_ruined_weights_are_not_saved(start):
    """Told to stop right after a step that ruined the weights, a run keeps the checkpoint before."""
    trainer = start()

    def stop_later():
        if trainer.step == 7:
            dict(trainer.backend.weights())["final_norm.bias"][0] = np.nan
        return trainer.step == 7

    trainer.interrupted = stop_later
    with pytest.raises(UserError, match=r"step 7: final_norm\.bias is no longer finite; the last checkpoint"):
        trainer.train()
    assert load_checkpoint(trainer.run.latest).step == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_not_finite_is_named(start, backend, monkeypatch):
    """Where the loss is finite and a gradient is not, the gradient is named."""
    trainer = start(backend=backend)
    real = trainer.backend.trace

    def trace(*arguments, **options):
        found = real(*arguments, **options)
        found.gradients["blocks.0.residual_1"][0, 0, 0] = np.nan
        return found

    monkeypatch.setattr(trainer.backend, "trace", trace)
    monkeypatch.setattr(trainer.backend, "clip", lambda max_norm: float("nan"))
    with pytest.raises(UserError, match=r"first in the gradient of blocks\.0\.residual_1"):
        trainer.train()


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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch-size must be at least 1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"accumulate": 3}, "batch-size 4 does not divide into --accumulate 3"),
        ({"eval_interval": 0}, "eval-interval must be at least 1"),
        ({"learning_rate": 0.0}, "learning-rate must be a positive number"),
        ({"learning_rate": float("nan")}, "learning-rate must be a positive number"),
        ({"learning_rate": float("inf")}, "learning-rate must be a positive number"),
        ({"min_learning_rate": -1e-3}, "min-learning-rate must be from 0"),
        ({"min_learning_rate": 0.5}, "min-learning-rate must be from 0 to the learning rate, 0.01"),
        ({"warmup_steps": -1}, "warmup-steps must be at least 0"),
        ({"weight_decay": -0.1}, "weight-decay must be at least 0"),
        ({"weight_decay": float("nan")}, "weight-decay must be at least 0"),
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1"),
        ({"beta2": -0.1}, "beta2 must be at least 0 and below 1"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"clip": float("nan")}, "clip must be above 0"),
        ({"eval_tokens": 0}, "eval-tokens must be at least 1"),
        ({"steps": 2.0}, "steps must be an integer, got 2.0"),
        ({"batch_size": True}, "batch-size must be an integer, got True"),
        ({"learning_rate": "fast"}, "learning-rate must be a number, got 'fast'"),
        ({"beta1": 10**400}, "beta1 must be a number"),
        ({"dtype": None}, "dtype must be text, got None"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**63}, "seed must be from 0"),
        ({"dtype": "float16"}, "dtype must be float32 or float64, got float16"),
    ],
    ids=str,
)
def test_impossible_settings_are_named(settings, words):
    """Each is refused in one line with the setting, what was wanted and what was found."""
    with pytest.raises(ConfigError, match=words) as error:
        TrainingSettings(**(TRAINING | settings))
    assert "\n" not in str(error.value)


def test_defaults_follow_the_rest():
    """The warm-up is a tenth of the steps, at most 100; the minimum a tenth of the rate; inf means no clipping."""
    for steps, warmup in ((1, 0), (50, 5), (999, 99), (1000, 100), (10**6, 100)):
        assert TrainingSettings(steps=steps).warmup_steps == warmup
    assert TrainingSettings(learning_rate=5e-5).min_learning_rate == 5e-6
    assert TrainingSettings().min_learning_rate == 3e-4
    assert TrainingSettings(clip=float("inf")).clip is None
    settings = TrainingSettings(learning_rate=np.float32(0.5), steps=np.int64(7), clip=float("inf"))
    assert TrainingSettings.from_dict(json.loads(json.dumps(settings.to_dict(), allow_nan=False))) == settings


@pytest.mark.parametrize(
    ("content", "context_length", "words"),
    [
        ("abcabcab" * 2, 16, "14 tokens to train on, but one context takes 17"),
        ("abcabcab" * 2, 14, "14 tokens to train on, but one context takes 15"),
        ("abab", 2, "0 tokens to validate on"),
        ("abcabcab" * 2, 13, None),
        ("abcabca" * 2, 2, "1 tokens to validate on"),
    ],
)
def test_a_text_that_is_too_short(start, tmp_path, content, context_length, words):
    """A text shorter than a context, or without two tokens to validate on, starts nothing; just enough does."""
    short = tmp_path / "short.txt"
    short.write_text(content)
    if words is None:
        assert start(text=short, overrides={"context_length": context_length}, steps=1).train().finished
        return
    with pytest.raises(UserError, match=words):
        start(text=short, overrides={"context_length": context_length})
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_prepared_text(start, text, tmp_path):
    """A token file brings its tokenizer, and the run uses it where it lies."""
    prepare(text, "bytes", tmp_path / "sentences.bin")
    trainer = start(text=tmp_path / "sentences.bin")
    trainer.train()
    assert not trainer.run.tokens.exists()
    other = start("other")
    other.train()
    assert rows(trainer.run) == rows(other.run)
    with pytest.raises(ConfigError, match="omit --tokenizer"):
        start("third", text=tmp_path / "sentences.bin", tokenizer="bytes")

    path = trainer.run.path
    _, checkpoint = open_model(path)
    with evaluation_tokens(path, checkpoint, None) as held_out:
        np.testing.assert_array_equal(held_out, other.validation)
    del trainer, held_out  # Windows removes no file that is still open
    (tmp_path / "sentences.bin").unlink()
    with (
        pytest.raises(UserError, match=r"sentences\.bin is missing: the text of .* cannot be found"),
        evaluation_tokens(path, checkpoint, None),
    ):
        pytest.fail("the block was entered")


def test_a_run_is_replaced_only_when_asked(start, tmp_path):
    """A second run in the same folder is refused, one that cannot start replaces nothing, another one does."""
    trainer = start()
    trainer.train()
    with pytest.raises(UserError, match="already holds a run"):
        start()
    with pytest.raises(ConfigError, match="does not divide"):
        start(overwrite=True, overrides={"n_head": 3})
    assert load_checkpoint(trainer.run.latest).step == 20
    del trainer  # Windows removes no file that is still open
    again = start(overwrite=True)
    assert not again.run.latest.exists()
    assert list(tmp_path.iterdir()) == [again.run.path]
    assert again.train().finished


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


def test_tokens_of_another_tokenizer_are_refused(start, text, tmp_path):
    """A token file prepared anew with another tokenizer is not taken for the run's own."""
    prepare(text, "bytes", tmp_path / "sentences.bin")
    trainer = start(text=tmp_path / "sentences.bin")
    trainer.interrupted = iter([False, False, True]).__next__
    trainer.train()
    path = trainer.run.path
    del trainer  # Windows removes no file that is still open
    for name in (".bin", ".json", ".tiktoken"):
        (tmp_path / "sentences").with_suffix(name).unlink()
    prepare(text, str(DEFAULT_RANKS), tmp_path / "sentences.bin")
    with pytest.raises(UserError, match=r"sentences\.bin was made by another tokenizer than the model's"):
        resume_run(path)


def test_what_is_evaluated(start, tmp_path):
    """The run's held-out split, for a checkpoint's own folder too; of a text that is named, all of it."""
    trainer = start(dtype="float64")
    trainer.train()
    backend, checkpoint = open_model(trainer.run.latest)
    assert all(value.dtype == "float64" for value in backend.weights().values())
    for path in (trainer.run.path, trainer.run.latest):
        with evaluation_tokens(path, checkpoint, None) as tokens:
            np.testing.assert_array_equal(tokens, trainer.validation)
    (tmp_path / "other.txt").write_text("He is sad.\nThe girl is sad.\n", newline="")
    with evaluation_tokens(trainer.run.path, checkpoint, tmp_path / "other.txt") as tokens:
        wanted = encode(checkpoint.tokenizer, "He is sad.\nThe girl is sad.\n")
        np.testing.assert_array_equal(tokens, wanted)


def test_default_tokenizer(text):
    """The shipped text has its shipped ranks, any other its bytes."""
    assert default_tokenizer(DEFAULT_TEXT) == str(DEFAULT_RANKS)
    assert default_tokenizer(text) == "bytes"
