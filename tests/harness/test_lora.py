"""Low-rank pairs beside a trained model: begun, trained alone, resumed, merged and exported."""

from dataclasses import replace

import numpy as np
import pytest

import numpy_llm
from contract.errors import ConfigError
from contract.numbers import relative_error
from contract.weights import is_low_rank
from harness.exchange.export import export
from harness.exchange.huggingface_import import import_folder
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.lora import merged, with_pairs
from harness.training.memory import estimate_memory
from harness.training.runs import open_model, resume_run, start_run
from harness.training.settings import TrainingSettings
from parity.cases import cast_weights, lively_weights
from tests.harness.small_runs import BACKENDS, THREADS, TRAINING, needs_torch

PAIRS = {"lora_rank": 2, "lora_alpha": 3.0}
TOKENS = np.arange(14).reshape(2, 7) % 11


@pytest.fixture
def base(start):
    """A trained run with a gated feed-forward layer, query norms and no biases."""
    trainer = start("base", preset_name="modern", dtype="float64", overrides={"d_ff": 24})
    trainer.train()
    return trainer.run.path


@pytest.fixture
def adapt(base, text, tmp_path):
    """A function that starts a run with pairs, PAIRS unless others are given, from `base` or another run."""

    def adapt(name="adapted", start=base, pairs=PAIRS, backend="numpy", **changes):
        training = TRAINING | {"dtype": "float64", "sequence_length": 8} | changes
        machine = {"backend": backend, "threads": THREADS[backend]}
        return start_run(
            tmp_path / name, text=text, start=start, overrides=dict(pairs), training=training, **machine
        )

    return adapt


def weights_of(run):
    return dict(load_checkpoint(run / "latest").weights)


def logits(checkpoint):
    return numpy_llm.GPT(checkpoint.config, checkpoint.weights).forward(TOKENS)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_alone_are_trained(adapt, base, backend):
    """The base keeps its bits, every pair moves, and a resumed run is the uninterrupted one."""
    whole = adapt("whole", backend=backend)
    first = {name: value.copy() for name, value in whole.backend.weights().items()}
    whole.train()
    trained, kept = weights_of(whole.run.path), weights_of(base)
    assert trained.keys() - kept.keys() == {name for name in trained if is_low_rank(name)}
    assert len(trained) == len(kept) + 2 * 5
    for name, value in trained.items():
        assert np.array_equal(value, kept.get(name, first[name])) == (name in kept), name

    parts = adapt("parts", backend=backend)
    parts.interrupted = lambda: parts.step == 7
    parts.train()
    resume_run(parts.run.path).train()
    for name, value in weights_of(parts.run.path).items():
        np.testing.assert_array_equal(value, trained[name], err_msg=name)
    moments = load_checkpoint(whole.run.latest, with_optimizer=True).optimizer
    assert {name[2:] for name in moments} == trained.keys() - kept.keys()


@needs_torch
def test_both_backends_agree(adapt):
    """They train the pairs to the same weights, but for rounding, and write the same text."""
    runs = [adapt(name, backend=name) for name in ("numpy", "torch")]
    for trainer in runs:
        trainer.train()
    ours, theirs = (weights_of(trainer.run.path) for trainer in runs)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    texts = [list(trainer.backend.generate([1, 2], 12, temperature=0)) for trainer in runs]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_new_pairs_add_nothing(base, dtype):
    """The logits are the base's bit for bit; the seed decides on A."""
    checkpoint = load_checkpoint(base / "latest")
    weights = cast_weights(checkpoint.config, checkpoint.weights, dtype)
    checkpoint = replace(checkpoint, weights=weights)
    adapted, other = (with_pairs(checkpoint, PAIRS, seed) for seed in (0, 1))
    assert adapted.config == replace(checkpoint.config, **PAIRS)
    np.testing.assert_array_equal(logits(adapted), logits(checkpoint))
    for name, value in adapted.weights.items():
        if name.endswith("lora_a"):
            assert value.any()
            assert not np.array_equal(value, other.weights[name])
        else:
            assert value.any() != name.endswith("lora_b"), name
    assert with_pairs(checkpoint, {}, 0) is checkpoint


@pytest.fixture
def adapted(base):
    """A checkpoint whose pairs are as large as the weights."""
    checkpoint = with_pairs(load_checkpoint(base / "latest"), PAIRS, 0)
    return replace(checkpoint, weights=lively_weights(checkpoint.config, 1, "float64"))


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float64", 1e-13)])
def test_merged_weights_compute_the_same(adapted, dtype, limit):
    """W + alpha / R · B A, rounded once, in the place of W; what has no pair keeps its bits."""
    checkpoint = replace(adapted, weights=cast_weights(adapted.config, adapted.weights, dtype))
    plain = merged(checkpoint)
    assert plain.config.lora_rank is None
    assert plain.weights.flat.dtype == dtype
    a, b = (checkpoint.weights[f"blocks.0.attention.output.lora_{role}"].astype("float64") for role in "ab")
    name = "blocks.0.attention.output.weight"
    expected = checkpoint.weights[name].astype("float64") + 1.5 * (b @ a)
    np.testing.assert_array_equal(plain.weights[name], expected.astype(dtype))
    for name in ("token_embedding.weight", "blocks.0.norm_1.weight"):
        np.testing.assert_array_equal(plain.weights[name], checkpoint.weights[name])
    assert 0 < relative_error(logits(plain), logits(checkpoint)) < limit
    assert merged(plain) is plain


def test_some_targets_alone_are_merged(base):
    """The other projections keep their bits."""
    start = load_checkpoint(base / "latest")
    some = with_pairs(start, PAIRS | {"lora_targets": ("up",)}, 0)
    for name, value in some.weights.items():
        if name.endswith("lora_b"):
            value += 1
    changed = [
        name for name, value in merged(some).weights.items() if not np.array_equal(value, start.weights[name])
    ]
    assert changed == ["blocks.0.feed_forward.up.weight"]


@pytest.mark.parametrize("format", ["huggingface", "npz"])
def test_an_export_is_merged(adapted, tmp_path, format):
    """Other programs get a model without pairs that computes the same."""
    export(adapted, format, tmp_path / "out", **({"dtype": "float64"} if format == "huggingface" else {}))
    plain = merged(adapted)
    if format == "npz":
        found = dict(np.load(tmp_path / "out" / "model.npz"))
        assert '"lora_rank": null' in (tmp_path / "out" / "config.json").read_text()
    else:
        again = import_folder(tmp_path / "out")
        found = again.weights
        assert relative_error(logits(again), logits(adapted)) < 1e-13
    assert found.keys() == plain.weights.keys()
    for name, value in plain.weights.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_run_with_pairs_is_a_start_too(adapt):
    """Its pairs are trained on; a rank merges them first, and 0 leaves none."""
    first = adapt("first")
    first.train()
    trained = load_checkpoint(first.run.path / "best")
    on = adapt("on", start=first.run.path, pairs={}).backend
    assert on.config == trained.config
    for name, value in trained.weights.items():
        np.testing.assert_array_equal(on.weights()[name], value, err_msg=name)

    new = adapt("new", start=first.run.path, pairs={"lora_rank": 3, "lora_targets": ("gate",)}).backend
    plain = adapt("plain", start=first.run.path, pairs={"lora_rank": 0}).backend
    assert (new.config.lora_targets, plain.config.lora_rank) == (("gate",), None)
    for name, value in merged(trained).weights.items():
        np.testing.assert_array_equal(new.weights()[name], value, err_msg=name)
        np.testing.assert_array_equal(plain.weights()[name], value, err_msg=name)


def test_a_run_with_pairs_is_used_as_it_is(adapt, adapted):
    """It opens to generate and to evaluate, and gives what its merged model gives."""
    trainer = adapt()
    trainer.train()
    save_checkpoint(trainer.run.best, adapted)
    backend, _ = open_model(trainer.run.path, threads=1)
    plain = merged(adapted)
    model = numpy_llm.GPT(plain.config, plain.weights)
    assert list(backend.generate([1, 2], 8, temperature=0)) == model.generate([1, 2], 8, temperature=0)
    targets = np.roll(TOKENS, 1)
    assert backend.evaluate(TOKENS, targets) == pytest.approx(
        float(model.loss(TOKENS, targets)[0]), rel=1e-12
    )


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({"lora_alpha": 4.0}, "--lora-alpha is of new low-rank pairs; give --lora-rank too"),
        ({"lora_rank": 17}, "lora_rank must be at most d_model, 16"),
        ({"lora_rank": 0, "lora_targets": ("up",)}, "lora_targets is set, but lora_rank is not"),
        (
            {"lora_rank": 2, "lora_targets": ("query",)},
            "must be a list of query_key_value, output, gate, up, down",
        ),
    ],
)
def test_what_does_not_fit(adapt, pairs, words):
    """Nothing begins."""
    with pytest.raises(ConfigError, match=words):
        adapt(pairs=pairs)


def test_pairs_need_trained_weights(start):
    with pytest.raises(ConfigError, match=r"--lora-rank adapts trained weights; .* with --from"):
        start(overrides=PAIRS)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_frozen_weights_need_no_memory_of_their_own(adapted, backend):
    """Beside the weights there are gradients and moments for the pairs alone."""
    config = replace(adapted.config, vocab_size=100_000)
    settings = TrainingSettings(batch_size=1, sequence_length=1)
    with_all = estimate_memory(
        backend, replace(config, **dict.fromkeys(PAIRS), lora_targets=None), settings, 1
    )
    with_pairs = estimate_memory(backend, config, settings, 1)
    table = 100_000 * config.d_model * 4
    assert 2.9 * table < with_all - with_pairs < (4.3 if backend == "torch" else 5.3) * table
