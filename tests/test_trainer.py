"""Training runs: they learn, stop and go on exactly, keep their checkpoints, and refuse what cannot work."""

import importlib.util
import json

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from data.grammar import corpus
from harness import trainer as trainer_module
from harness.checkpoint import load_checkpoint
from harness.run_folder import RunFolder
from harness.runs import evaluation_tokens, open_model, prepare, resume_run, start_run
from harness.trainer import TrainingSettings

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
BACKENDS = ["numpy", pytest.param("torch", marks=needs_torch)]
SMALL = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 8}
TRAINING = {"steps": 20, "batch_size": 4, "warmup_steps": 5, "learning_rate": 1e-2, "eval_interval": 5}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of a thousand sentences."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in corpus()[:1000]), newline="")
    return path


@pytest.fixture
def start(text, tmp_path):
    """A function that starts a small run in a folder of its own."""

    def start(name="run", overrides=None, out=None, **changes):
        names = {"text", "tokenizer", "backend", "epochs", "overwrite", "threads", "preset_name"}
        options = {key: changes.pop(key) for key in names & changes.keys()}
        return start_run(
            out or tmp_path / name,
            overrides=SMALL | (overrides or {}),
            training=TRAINING | changes,
            **({"text": text, "preset_name": "nano"} | options),
        )

    return start


def rows(run: RunFolder) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_learns(start, backend):
    """From even odds to far better, with a row a step, both checkpoints, a plot, and a final evaluation."""
    trainer = start(backend=backend, steps=120, eval_interval=60)
    outcome = trainer.train()
    assert outcome.finished
    assert outcome.step == 120
    assert outcome.validation.loss < 0.8 * np.log(trainer.backend.config.vocab_size)
    assert outcome.validation.tokens == len(trainer.validation) - 1
    log = rows(trainer.run)
    assert [row["step"] for row in log if "loss" in row] == list(range(1, 121))
    assert [row["step"] for row in log if "validation_loss" in row] == [60, 120]
    assert trainer.run.plot.exists()
    for place in (trainer.run.latest, trainer.run.best):
        assert load_checkpoint(place, with_optimizer=True).validation_loss == outcome.validation.loss


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_interrupted_run_ends_as_a_straight_one(start, backend, dtype):
    """Stopped twice and resumed, a run has the very weights, moments and metrics; dropout and parts are on."""
    settings = {
        "overrides": {"dropout": 0.2},
        "accumulate": 2,
        "dtype": dtype,
        "backend": backend,
        "threads": 2,
    }
    straight = start("straight", **settings)
    straight.train()
    interrupted = start("interrupted", **settings)
    for stop in (7, 13):
        interrupted.interrupted = lambda trainer=interrupted, stop=stop: trainer.step == stop
        outcome = interrupted.train()
        assert (outcome.finished, outcome.step, outcome.validation) == (False, stop, None)
        interrupted = resume_run(interrupted.run.path, backend=backend, threads=2)
        assert interrupted.step == stop
    assert interrupted.train().finished
    wanted, found = (
        load_checkpoint(trainer.run.latest, with_optimizer=True) for trainer in (straight, interrupted)
    )
    assert found.training == wanted.training
    for of in ("weights", "optimizer"):
        for name, value in getattr(wanted, of).items():
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
    moved = resume_run(moved.run.path, backend=second)
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


def test_epochs_become_steps(start):
    """Half an epoch is half the windows, a batch at a time, rounded up."""
    trainer = start(epochs=0.5)
    assert trainer.settings.steps == -(-trainer.windows.per_epoch // 8)
    assert trainer.epochs == pytest.approx(0.5, abs=4 / trainer.windows.per_epoch)


def test_more_steps_on_resume(start):
    """A finished run says so, and goes on when it is given more steps."""
    trainer = start()
    trainer.train()
    with pytest.raises(UserError, match="has done all its 20 steps; name more with --steps"):
        resume_run(trainer.run.path)
    more = resume_run(trainer.run.path, steps=23)
    assert more.train().step == 23
    assert [row["step"] for row in rows(more.run) if "loss" in row] == list(range(1, 24))


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


@pytest.mark.parametrize(
    ("content", "context_length", "words"),
    [
        ("abcabcab" * 2, 16, "14 tokens to train on, but one context takes 17"),
        ("abab", 2, "0 tokens to validate on"),
    ],
)
def test_a_text_that_is_too_short(start, tmp_path, content, context_length, words):
    """A text shorter than a context, or without two tokens to validate on, starts nothing."""
    short = tmp_path / "short.txt"
    short.write_text(content)
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
    with pytest.raises(ConfigError, match="leave --tokenizer out"):
        start("third", text=tmp_path / "sentences.bin", tokenizer="bytes")

    _, checkpoint = open_model(trainer.run.path)
    with evaluation_tokens(trainer.run.path, checkpoint, None) as held_out:
        np.testing.assert_array_equal(held_out, other.validation)
    (tmp_path / "sentences.bin").unlink()
    with (
        pytest.raises(UserError, match="is missing, so the run's own text is not at hand"),
        evaluation_tokens(trainer.run.path, checkpoint, None),
    ):
        pytest.fail("the block was entered")
