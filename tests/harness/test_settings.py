"""Settings of a run: every one has its effect, and an impossible one is named."""

import json

import numpy as np
import pytest

from contract.errors import ConfigError
from harness.training.settings import TrainingSettings
from tests.harness.small_runs import BACKENDS, TRAINING


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
        "schedule": "linear",
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
        ({"schedule": "square"}, "schedule must be cosine or constant or linear or wsd, got square"),
        (
            {"schedule": "constant", "min_learning_rate": 1e-3},
            "min-learning-rate does not go with --schedule constant",
        ),
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
        ({"dtype": "float16"}, "dtype must be float32, float64 or bfloat16, got float16"),
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
    assert TrainingSettings(schedule="constant").min_learning_rate == 3e-3
    assert TrainingSettings(clip=float("inf")).clip is None
    settings = TrainingSettings(learning_rate=np.float32(0.5), steps=np.int64(7), clip=float("inf"))
    assert TrainingSettings.from_dict(json.loads(json.dumps(settings.to_dict(), allow_nan=False))) == settings
