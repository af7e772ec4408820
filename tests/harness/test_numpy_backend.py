"""The NumPy backend: threads and micro-batches change no result, and a run can be taken up where it was left."""

import tracemalloc
from dataclasses import replace
from itertools import islice
from threading import Thread

import numpy as np
import pytest

from contract.errors import UserError
from contract.presets import preset
from contract.randomness import DropoutKey
from contract.weights import parameter_count, weight_table
from harness.training.backend import open_backend
from harness.training.memory import PROCESS_BYTES, estimate_memory
from harness.training.numpy_backend import _split
from harness.training.settings import TrainingSettings
from numpy_llm.adam import AdamW
from numpy_llm.model import GPT

SETTINGS = {"seed": 4, "dtype": "float64", "threads": 2, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}


@pytest.fixture
def config(tiny_config, monkeypatch):
    """A small model; its batches are cut into parts as large ones are."""
    monkeypatch.setattr("harness.training.numpy_backend.PART_TOKENS", 4)
    monkeypatch.setattr("harness.training.numpy_backend.PART_NUMBERS", 1)
    return tiny_config(n_layer=2, dropout=0.3)


def backend_of(config, weights=None, **changes):
    return open_backend("numpy", config, weights, **{**SETTINGS, **changes})


def batch_of(B, step=0, T=4):
    drawn = np.random.default_rng([B, step]).integers(7, size=(B, T + 1))
    return drawn[:, :-1], drawn[:, 1:]


def loss_and_gradients(backend, B, step=3, accumulate=1):
    loss = backend.loss_and_gradients(*batch_of(B, step), step=step, accumulate=accumulate)
    return loss, backend._gradients.flat.copy()


def train(backend, steps, B=4, T=4):
    losses = []
    for step in steps:
        losses.append(backend.loss_and_gradients(*batch_of(B, step, T), step=step, accumulate=2))
        backend.clip(1.0)
        backend.update(0.01)
    return losses


@pytest.mark.parametrize("B", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_splitting_changes_nothing(config, B, threads, accumulate):
    """However a batch is cut over threads and micro-batches, loss and gradients are the model's own."""
    model = GPT(config, seed=4, dtype="float64")
    _, expected_loss, cache = model.forward(*batch_of(B, 3), dropout=DropoutKey(4, 3))
    expected = model.backward(cache).flat
    loss, gradients = loss_and_gradients(backend_of(config, threads=threads), B, accumulate=accumulate)
    assert type(loss) is float
    assert loss == pytest.approx(float(expected_loss), rel=1e-12)
    assert np.abs(gradients - expected).max() <= 1e-12 * np.abs(expected).max()


def test_dropout_is_keyed(config):
    """The masks change with the step and with the backend's seed, and dropout is on in training alone."""
    backend = backend_of(config)
    batch = batch_of(4)
    losses = [backend.loss_and_gradients(*batch, step=step, accumulate=1) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    other = backend_of(config, backend.weights(), seed=5)
    assert other.loss_and_gradients(*batch, step=0, accumulate=1) != losses[0]
    assert backend.evaluate(*batch) == other.evaluate(*batch) != losses[0]


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.0, "context_length": 600}], ids=["parts", "blocks"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_threads_gives_the_same_bits(config, changes, dtype, monkeypatch):
    """Losses, weights and moments are those of one thread, bit for bit: in parts, in blocks and in tiles."""
    monkeypatch.setattr("numpy_llm.threads.TILES", ((5, 4), (3, 2)))
    monkeypatch.setattr("numpy_llm.gradients.ROWS", 3)
    monkeypatch.setattr("numpy_llm.threads.PIECE", 16)
    config = replace(config, **changes)
    ends = []
    for count in (1, 2, 3, 4):
        backend = backend_of(config, threads=count, dtype=dtype)
        ends.append((train(backend, range(4), B=5, T=config.context_length), backend))
    for losses, backend in ends[1:]:
        assert losses == ends[0][0]
        for found, expected in zip(_state(backend), _state(ends[0][1]), strict=True):
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("waiting", [True, False])
def test_the_order_of_the_pieces_changes_nothing(config, waiting, monkeypatch):
    """No piece of work needs another that may run beside it: the last first, the same bits come out."""
    monkeypatch.setattr("harness.training.numpy_backend.products_wait", lambda *sizes: waiting)
    monkeypatch.setattr("numpy_llm.gradients.ROWS", 3)
    expected = loss_and_gradients(backend_of(config), 5)

    def backwards(function, items):
        results = [function(item) for item in reversed(list(items))]
        return results[::-1]

    monkeypatch.setattr("harness.training.numpy_backend.each", backwards)
    found = loss_and_gradients(backend_of(config), 5)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def _state(backend) -> list[np.ndarray]:
    return [backend.model.weights.flat, backend.optimizer.m, backend.optimizer.v]


def test_gradients_start_anew(config):
    """A step's gradients hold nothing of the step before, whatever the sizes of the two batches."""
    backend = backend_of(config, threads=3)
    for B in (7, 1, 7, 3, 8, 2):
        _, gradients = loss_and_gradients(backend, B)
        _, expected = loss_and_gradients(backend_of(config, threads=3), B)
        np.testing.assert_allclose(gradients, expected, rtol=1e-10, atol=1e-15)


def test_a_failing_part_ends_the_step(config, monkeypatch):
    """Where one part fails its error comes out, and the next step is as ever."""
    backend, real = backend_of(config), GPT.backward_layers

    def backward_layers(self, cache, dloss, **options):
        yield from islice(real(self, cache, dloss, **options), 2)
        raise MemoryError("too large")

    monkeypatch.setattr(GPT, "backward_layers", backward_layers)
    with pytest.raises(MemoryError, match="too large"):
        loss_and_gradients(backend, 4)
    monkeypatch.setattr(GPT, "backward_layers", real)
    np.testing.assert_array_equal(
        loss_and_gradients(backend, 4)[1], loss_and_gradients(backend_of(config), 4)[1]
    )


def test_a_thread_that_cannot_start(config, monkeypatch):
    """Where the system starts no more threads that is one line, and those that did start do not wait for ever."""
    start, started = Thread.start, []

    def start_two(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(Thread, "start", start_two)
    message = r"the system does not start 4 threads \(can't .* fewer with --threads"
    with pytest.raises(UserError, match=message):
        backend_of(config, threads=4)
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_clip(config):
    """Clipping scales the gradients down and returns their norm before; without a limit it only measures."""
    backend = backend_of(config)
    _, gradients = loss_and_gradients(backend, 4)
    norm = np.sqrt((gradients**2).sum())
    assert backend.clip(None) == pytest.approx(norm, rel=1e-12)
    np.testing.assert_array_equal(backend._gradients.flat, gradients)
    assert backend.clip(norm / 4) == pytest.approx(norm, rel=1e-12)
    np.testing.assert_allclose(backend._gradients.flat, gradients / 4, rtol=1e-12)


def test_update_is_adamw(config):
    """An update is AdamW's with the settings given, over the whole batch's gradients."""
    backend, model = backend_of(config), GPT(config, seed=4, dtype="float64")
    optimizer = AdamW(model.weights, beta1=0.9, beta2=0.99, weight_decay=0.1)
    for step in range(3):
        loss_and_gradients(backend, 5, step)
        backend.update(0.01)
        _, _, cache = model.forward(*batch_of(5, step), dropout=DropoutKey(4, step))
        optimizer.update(model.backward(cache), 0.01)
    np.testing.assert_allclose(backend.model.weights.flat, model.weights.flat, rtol=1e-8, atol=1e-10)


def test_training_learns(tiny_config):
    """Repeating one batch brings its loss far down."""
    backend = backend_of(tiny_config(), dtype="float32")
    batch = batch_of(3)
    before = backend.evaluate(*batch)
    for step in range(150):
        backend.loss_and_gradients(*batch, step=step, accumulate=1)
        backend.clip(1.0)
        backend.update(0.02)
    assert backend.evaluate(*batch) < before / 3


def test_going_on_from_a_saved_state(config):
    """Weights and moments carried to a new backend continue exactly as the old one does."""
    whole = backend_of(config)
    train(whole, range(8))
    first = backend_of(config)
    train(first, range(3))
    weights = {name: value.copy() for name, value in first.weights().items()}
    state = {name: value.copy() for name, value in first.optimizer_state().items()}
    train(first, range(3, 5))  # the copies must not follow
    second = backend_of(config, weights)
    second.load_optimizer_state(state, 3)
    for name, value in second.optimizer_state().items():
        np.testing.assert_array_equal(value, state[name])
    train(second, range(3, 8))
    np.testing.assert_array_equal(second.model.weights.flat, whole.model.weights.flat)
    np.testing.assert_array_equal(second.optimizer.m, whole.optimizer.m)
    np.testing.assert_array_equal(second.optimizer.v, whole.optimizer.v)


def test_optimizer_state_names(config):
    """The state has both moments of every weight under its name, in its shape."""
    backend = backend_of(config)
    train(backend, range(2))
    state, table = backend.optimizer_state(), weight_table(config)
    assert list(state) == [f"{moment}.{name}" for moment in "mv" for name in table]
    for name, spec in table.items():
        assert state[f"m.{name}"].shape == state[f"v.{name}"].shape == spec.shape
        assert (state[f"v.{name}"] >= 0).all()
    assert any((value < 0).any() for name, value in state.items() if name.startswith("m."))
    assert sum(value.size for value in state.values()) == 2 * parameter_count(config)


def test_optimizer_state_of_a_new_backend(config):
    """Before the first update the moments are all 0."""
    assert not any(value.any() for value in backend_of(config).optimizer_state().values())


def test_given_weights_are_copied(config):
    """A backend starts from the weights it is given, in its own dtype, and never writes to them."""
    given = {name: np.full_like(value, 0.25) for name, value in backend_of(config).weights().items()}
    backend = backend_of(config, given, dtype="float32")
    assert list(backend.weights()) == list(weight_table(config))
    assert backend.model.dtype == np.float32
    train(backend, range(1))
    for name, value in given.items():
        np.testing.assert_array_equal(value, 0.25)
        assert backend.weights()[name].dtype == np.float32


def test_initial_weights_are_of_the_seed(config):
    """Without weights, the seed's initial ones are drawn."""
    backend = backend_of(config, seed=9)
    np.testing.assert_array_equal(
        backend.model.weights.flat, GPT(config, seed=9, dtype="float64").weights.flat
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("B", [1, 2, 5])
def test_evaluate(config, threads, B):
    """The loss of an evaluation is that of a forward pass without dropout, also for a short last window."""
    backend = backend_of(config, threads=threads)
    tokens, targets = batch_of(B)
    for stop in (4, 1):
        expected = backend.model.forward(tokens[:, :stop], targets[:, :stop])[1]
        loss = backend.evaluate(tokens[:, :stop], targets[:, :stop])
        assert loss == pytest.approx(float(expected), rel=1e-12)


def test_generate(config):
    """Generation is the model's, token by token."""
    backend = backend_of(config)
    assert list(backend.generate([1, 2], 9, seed=3)) == backend.model.generate([1, 2], 9, seed=3)


def test_protocol_fields(config):
    """A backend tells its name, configuration and threads."""
    backend = backend_of(config, threads=3)
    assert (backend.name, backend.config, backend.threads) == ("numpy", config, 3)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("parts", [1, 2, 3, 20])
def test_split(count, parts):
    """Rows are cut end to end into parts of nearly equal length, none of them empty."""
    cut = _split(slice(4, 4 + count), parts)
    assert [row for part in cut for row in range(part.start, part.stop)] == list(range(4, 4 + count))
    lengths = [part.stop - part.start for part in cut]
    assert len(cut) == min(parts, count)
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1


def estimate(tiny_config, *, batch_size=12, accumulate=1, threads=2, dtype="float32", **changes):
    config = tiny_config(**{"d_model": 64, "d_ff": 64, "n_head": 2, "context_length": 32, **changes})
    settings = TrainingSettings(batch_size=batch_size, accumulate=accumulate, dtype=dtype)
    return estimate_memory("numpy", config, settings, threads)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 13},
        {"dtype": "float64"},
        {"vocab_size": 70},
        {"context_length": 64},
        {"n_layer": 2},
        {"n_head": 4},
        {"d_model": 128},
        {"d_ff": 128},
        {"dropout": 0.1},
        {"tie_embeddings": False},
    ],
    ids=str,
)
def test_memory_estimate_grows(tiny_config, change):
    """More of anything needs more memory."""
    assert 0 < estimate(tiny_config) < estimate(tiny_config, **change)


def test_memory_estimate_shrinks(tiny_config):
    """Micro-batches, and an activation that keeps less, need less memory."""
    assert estimate(tiny_config, accumulate=4) < estimate(tiny_config)
    assert estimate(tiny_config, activation="relu") < estimate(tiny_config)
    assert isinstance(estimate(tiny_config), int)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        pytest.param({}, {}, id="many layers"),
        pytest.param({"n_layer": 1, "vocab_size": 3000}, {}, id="large vocabulary"),
        pytest.param({"n_layer": 2, "n_head": 16, "d_model": 64, "context_length": 128}, {}, id="many heads"),
        pytest.param({"head_size": 96}, {}, id="wide heads"),
        pytest.param({"head_size": 8, "context_length": 128}, {}, id="narrow heads"),
        pytest.param({"dropout": 0.1}, {}, id="dropout"),
        pytest.param({"activation": "relu", "d_ff": 1024}, {}, id="wide relu"),
        pytest.param({}, {"accumulate": 3}, id="micro-batches"),
        pytest.param({"context_length": 600}, {}, id="attention in blocks"),
        pytest.param({}, {"dtype": "float64"}, id="float64"),
    ],
)
def test_memory_estimate_is_what_a_step_takes(changes, settings):
    """The estimate, less what the interpreter takes, is within a fifth of the arrays that training holds."""
    settings = {"accumulate": 1, "dtype": "float32", **settings}
    config = preset("nano", **{"vocab_size": 65, **changes})
    tokens = np.zeros((12, config.context_length), np.int64)
    tracemalloc.start()
    try:
        backend = backend_of(config, dtype=settings["dtype"])
        backend.loss_and_gradients(tokens, tokens, step=0, accumulate=settings["accumulate"])
        backend.update(0.01)
        for step in range(1, 5):  # on a busy machine a thread may be done before the other begins
            backend.loss_and_gradients(tokens, tokens, step=step, accumulate=settings["accumulate"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    training = TrainingSettings(batch_size=12, **settings)
    expected = estimate_memory("numpy", config, training, threads=2) - PROCESS_BYTES["numpy"]
    assert 0.8 * peak < expected < 1.2 * peak


@pytest.mark.parametrize("use", ["evaluate", "logits", "generate"])
def test_reading_a_long_text_keeps_nothing_for_a_backward_pass(use):
    """Beyond the weights it takes as much for 12 layers as for one, but for keys and values."""

    def peak(n_layer):
        config = preset("modern", vocab_size=65, n_layer=n_layer, context_length=2048)
        backend, tokens = backend_of(config, dtype="float32"), np.zeros((1, 2047), np.int64)
        tracemalloc.start()
        try:
            if use == "evaluate":
                backend.evaluate(tokens, tokens)
            elif use == "logits":
                list(backend.logits(tokens, 2047, 512))
            else:
                list(backend.generate(tokens[0].tolist(), 1, temperature=0))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    cached = 4 * 11 * 2 * 2048 * 64 if use == "generate" else 0  # two heads of 32, in float32
    assert peak(12) < 1.1 * peak(1) + 2.2 * cached  # which are moved as the cache grows
