"""Training that leaves some weights as they are."""

from dataclasses import replace

import numpy as np
import pytest

import numpy_llm
from contract.errors import ConfigError
from contract.weights import frozen_names
from harness.training import checkpoint
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.runs import resume_run
from numpy_llm.layers import linear_weight_gradient
from tests.harness.small_runs import BACKENDS, rows

NAMES = ["token_embedding.weight", *(f"blocks.{n}.norm_{m}.weight" for n in (0, 1, 10, 11) for m in (1, 2))]
FREEZE = "blocks.0.attention token_embedding *.bias"


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ("", []),
        ("token_embedding", NAMES[:1]),
        ("blocks.1", NAMES[3:5]),
        ("blocks.[0-1]  token_embedding.weight", NAMES[:5]),
        ("*.norm_2", NAMES[2::2]),
        ("blocks", NAMES[1:]),
    ],
)
def test_patterns(patterns, found):
    """A pattern is of a whole name or of its beginning; block 1 is not block 10."""
    assert frozen_names(NAMES, patterns) == found


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("blocks.2", "blocks.2 fits no weight"),
        ("block token_embedding", "block fits no"),
        ("*", "leaves no weight"),
    ],
)
def test_what_cannot_be_frozen(start, patterns, words):
    """Nothing begins with a pattern that fits nothing, or without a weight to train."""
    with pytest.raises(ConfigError, match=words):
        start(freeze=patterns)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_weights_keep_their_bits(start, tmp_path, backend):
    """The others learn; a resumed run is the uninterrupted one; the gradient's norm is of what is trained."""
    first = start("first", backend=backend, steps=1)
    initial = {name: value.copy() for name, value in first.backend.weights().items()}
    whole = start("whole", backend=backend, freeze=FREEZE)
    whole.train()
    frozen = frozen_names(initial, FREEZE)
    assert len(frozen) > 6
    for name, value in whole.backend.weights().items():
        assert np.array_equal(value, initial[name]) == (name in frozen), name
    first.train()
    assert rows(whole.run)[1]["gradient_norm"] < rows(first.run)[1]["gradient_norm"]

    parts = start("parts", backend=backend, freeze=FREEZE)
    parts.interrupted = lambda: parts.step == 7
    parts.train()
    resume_run(parts.run.path).train()
    ours, theirs = (load_checkpoint(each.run.latest).weights for each in (parts, whole))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_weights_cost_nothing(start, backend, monkeypatch):
    """They get no gradient and no moments, in memory or in a file; NumPy takes no product for them."""
    taken = []

    def counted(dy, x, out=None):
        taken.append((dy.shape[1], x.shape[1]))
        return linear_weight_gradient(dy, x, out)

    for module in (numpy_llm.layers, numpy_llm.gradients):
        monkeypatch.setattr(module, "linear_weight_gradient", counted)
    trainer = start(backend=backend, steps=1, freeze="[!b]* *.attention *.norm_? *.down *.bias")
    trainer.train()
    weights = trainer.backend.weights()
    trained = [name for name in weights if name.endswith("feed_forward.up.weight")]
    moments = load_checkpoint(trainer.run.latest, with_optimizer=True).optimizer
    assert moments.keys() == {f"{moment}.{name}" for moment in "mv" for name in trained}
    if backend == "numpy":
        assert set(taken) == {weights[name].shape for name in trained}
    else:
        parameters = trainer.backend.model.named_parameters()
        assert [name for name, weight in parameters if weight.grad is not None] == trained


def test_both_backends_agree(start):
    """With the same weights frozen they train to the same weights, but for rounding."""
    pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    ours, theirs = (start(name, backend=name, freeze=FREEZE, dtype="float64") for name in ("numpy", "torch"))
    for trainer in (ours, theirs):
        trainer.train()
    for name, value in ours.backend.weights().items():
        np.testing.assert_allclose(theirs.backend.weights()[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_run_of_an_earlier_version_goes_on(start, monkeypatch):
    """It kept moments of frozen weights, which are 0: they are left out."""
    trainer = start(steps=2, freeze=FREEZE)
    trainer.train()
    place = trainer.run.latest
    wanted = load_checkpoint(place, with_optimizer=True)
    moments = {f"{m}.{name}": np.zeros_like(weight) for m in "mv" for name, weight in wanted.weights.items()}
    earlier = replace(wanted, optimizer=moments | dict(wanted.optimizer))
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint, "_moments", lambda config, training: {n: m.shape for n, m in moments.items()}
        )
        save_checkpoint(place, earlier)
    found = load_checkpoint(place, with_optimizer=True)
    assert found.optimizer.keys() == wanted.optimizer.keys()
    assert resume_run(trainer.run.path, training={"steps": 3}).train().step == 3
