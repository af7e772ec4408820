"""Adam, AdamW and clipping: held against the published algorithms written number by number."""

from math import sqrt

import numpy as np
import pytest

from contract.weights import Weights, WeightSpec, parameter_count
from numpy_llm import threads
from numpy_llm.adam import Adam, AdamW, clip_gradients, gradient_norm

TABLE = {"a": WeightSpec((3,), "zeros"), "b": WeightSpec((2, 3), "normal"), "c": WeightSpec((1, 1), "normal")}
TINY_EPS = 1e-300  # changes no bit of a denominator that is not 0
OPTIMIZERS = pytest.mark.parametrize("optimizer", [Adam, AdamW])


def drawn(seed, table=None, dtype=np.float64):
    table = table or TABLE
    size = sum(int(np.prod(spec.shape)) for spec in table.values())
    return Weights(table, np.random.default_rng(seed).normal(size=size).astype(dtype))


def plain_adam(weight, gradients, rates, *, decoupled, beta1, beta2, eps, weight_decay):
    """Kingma & Ba 2015, algorithm 1, and Loshchilov & Hutter 2019, algorithm 2, for a single number."""
    m = v = 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        if not decoupled:
            g = g + weight_decay * weight
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        pull = rate * weight_decay * weight if decoupled else 0.0
        weight = weight - rate * m_hat / (sqrt(v_hat) + eps) - pull
    return weight, m, v


@OPTIMIZERS
@pytest.mark.parametrize(
    "settings",
    [
        {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1},
        {"beta1": 0.5, "beta2": 0.7, "eps": 0.1, "weight_decay": 0.5},
        {"beta1": 0.0, "beta2": 0.0, "eps": 1e-3, "weight_decay": 0.1},
    ],
    ids=["no decay", "decay", "large eps", "no memory"],
)
def test_fifty_steps(optimizer, settings):
    """Over 50 steps every weight and both moments follow the published algorithm; vectors never decay."""
    weights, start = drawn(0), drawn(0)
    history = [drawn(seed) for seed in range(1, 51)]
    rates = [0.1 / step for step in range(1, 51)]
    trained = optimizer(weights, **settings)
    for gradients, rate in zip(history, rates, strict=True):
        trained.update(gradients, rate)
    assert trained.step == 50
    moments = Weights(TABLE, trained.m), Weights(TABLE, trained.v)
    for name, spec in TABLE.items():
        decay = settings["weight_decay"] if len(spec.shape) == 2 else 0.0
        for index in np.ndindex(spec.shape):
            expected = plain_adam(
                start[name][index],
                [gradients[name][index] for gradients in history],
                rates,
                decoupled=optimizer is AdamW,
                **{**settings, "weight_decay": decay},
            )
            actual = (weights[name][index], moments[0][name][index], moments[1][name][index])
            assert actual == pytest.approx(expected, rel=1e-12, abs=1e-14), (name, index)


@OPTIMIZERS
def test_first_step(optimizer):
    """At the first step the bias corrections leave a step of the learning rate against each sign."""
    weights, start, gradients = drawn(0), drawn(0), drawn(1)
    gradients.flat *= 10.0 ** np.arange(-3, 7)  # of whatever size
    optimizer(weights, eps=TINY_EPS).update(gradients, 0.01)
    np.testing.assert_allclose(weights.flat, start.flat - 0.01 * np.sign(gradients.flat), rtol=1e-12)


def test_default_settings():
    """The defaults are the paper's."""
    trained = Adam(drawn(0))
    assert (trained.beta1, trained.beta2, trained.eps, trained.weight_decay) == (0.9, 0.999, 1e-8, 0.0)


def test_decoupled_decay_bypasses_the_moments():
    """Without a gradient AdamW shrinks matrices by rate · decay; Adam passes the pull through its moments."""
    nothing = drawn(0)
    nothing.flat[:] = 0
    decoupled, coupled, start = drawn(0), drawn(0), drawn(0)
    moments = AdamW(decoupled, weight_decay=0.2), Adam(coupled, weight_decay=0.2, eps=TINY_EPS)
    for optimizer in moments:
        optimizer.update(nothing, 0.5)
    np.testing.assert_allclose(decoupled["b"], start["b"] * 0.9, rtol=1e-12)
    np.testing.assert_allclose(coupled["b"], start["b"] - 0.5 * np.sign(start["b"]), rtol=1e-12)
    np.testing.assert_array_equal(decoupled["a"], start["a"])
    assert not moments[0].m.any()
    assert not moments[0].v.any()


@OPTIMIZERS
def test_update_leaves_the_gradients(optimizer):
    """The gradients are read only, and the weights change in the buffer that the optimiser was given."""
    weights, gradients = drawn(0, dtype=np.float32), drawn(1, dtype=np.float32)
    flat, before = weights.flat, gradients.flat.copy()
    gradients.flat.flags.writeable = False
    trained = optimizer(weights, weight_decay=0.1)
    trained.update(gradients, 0.01)
    np.testing.assert_array_equal(gradients.flat, before)
    assert weights.flat is flat
    assert trained.m.dtype == trained.v.dtype == flat.dtype == np.float32
    assert (flat != drawn(0, dtype=np.float32).flat).all()


@OPTIMIZERS
@pytest.mark.parametrize("piece", [1, 4, 7])
def test_pieces_change_nothing(optimizer, piece, monkeypatch):
    """Cutting the buffer into pieces anywhere gives the same bits as taking it whole."""

    def run():
        weights = drawn(0)
        trained = optimizer(weights, weight_decay=0.1)
        for seed in range(1, 4):
            trained.update(drawn(seed), 0.01)
        return weights.flat, trained.m, trained.v

    whole = run()
    monkeypatch.setattr(threads, "PIECE", piece)
    for cut, uncut in zip(run(), whole, strict=True):
        np.testing.assert_array_equal(cut, uncut)


@OPTIMIZERS
@pytest.mark.parametrize("count", range(len(TABLE)))
def test_frozen_weights_stay(optimizer, count):
    """They keep their bits, decay or not, and have no moments; all others take the steps of a training of all."""

    def run(frozen):
        weights, table = drawn(0), {name: spec for name, spec in TABLE.items() if name not in frozen}
        trained = optimizer(weights, weight_decay=0.1, frozen=frozen)
        for seed in range(1, 4):
            gradients, every = Weights(table, np.zeros_like(trained.m)), drawn(seed)
            for name, gradient in gradients.items():
                gradient[...] = every[name]
            trained.update(gradients, 0.01)
        return weights, Weights(table, trained.m), Weights(table, trained.v)

    frozen, start = list(TABLE)[count : count + 2], drawn(0)
    (weights, m, v), free = run(frozen), run(())
    assert m.keys() == v.keys() == TABLE.keys() - set(frozen)
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, start[name] if name in frozen else free[0][name], err_msg=name)
        if name in m:
            np.testing.assert_array_equal((m[name], v[name]), (free[1][name], free[2][name]), err_msg=name)


def test_buffer_larger_than_a_piece():
    """A buffer of several pieces, the border between matrices and vectors inside one, is updated whole."""
    table = {
        "v": WeightSpec((threads.PIECE + 3,), "zeros"),
        "m": WeightSpec((2, threads.PIECE - 5), "normal"),
    }
    weights, start, gradients = drawn(0, table), drawn(0, table), drawn(1, table)
    AdamW(weights, weight_decay=0.1, eps=TINY_EPS).update(gradients, 0.01)
    np.testing.assert_allclose(weights["v"], start["v"] - 0.01 * np.sign(gradients["v"]), rtol=1e-9)
    np.testing.assert_allclose(weights["m"], start["m"] * 0.999 - 0.01 * np.sign(gradients["m"]), rtol=1e-9)
    assert gradient_norm(gradients) == pytest.approx(sqrt(sum(gradients.flat**2)), rel=1e-12)


def test_adam_minimises(tiny_config):
    """Adam finds the minimum of a badly scaled bowl."""
    config = tiny_config()
    weights, gradients = Weights.zeros(config, "float64"), Weights.zeros(config, "float64")
    scale = np.logspace(-3, 3, parameter_count(config))
    weights.flat[:] = 1
    trained = Adam(weights)
    for step in range(400):
        gradients.flat[:] = scale * (weights.flat - 3)
        trained.update(gradients, 0.1 * (1 - step / 400))
    np.testing.assert_allclose(weights.flat, 3, atol=1e-2)


# --- clipping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norm(dtype):
    """The norm is that of all gradients together, a plain float."""
    gradients = drawn(1, dtype=dtype)
    expected = sqrt(sum(float(value) ** 2 for gradient in gradients.values() for value in gradient.ravel()))
    assert gradient_norm(gradients) == pytest.approx(expected, rel=1e-6)
    assert type(gradient_norm(gradients)) is float
    gradients.flat[:] = 0
    assert gradient_norm(gradients) == 0.0


def test_clipping_above_the_limit():
    """Gradients above the limit come down to it together, in their direction; the norm before is returned."""
    gradients, before = drawn(1), drawn(1)
    norm = clip_gradients(gradients, 0.5)
    assert norm == gradient_norm(before) > 0.5
    assert gradient_norm(gradients) == pytest.approx(0.5, rel=1e-12)
    np.testing.assert_allclose(gradients.flat, before.flat * (0.5 / norm), rtol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 1.001, 100.0, float("inf")])
def test_clipping_below_the_limit(factor):
    """Gradients at or below the limit keep every bit."""
    gradients, before = drawn(1), drawn(1)
    assert clip_gradients(gradients, gradient_norm(before) * factor) == gradient_norm(before)
    np.testing.assert_array_equal(gradients.flat, before.flat)


def test_clipping_nothing():
    """Gradients that are all 0 stay so."""
    gradients = drawn(1)
    gradients.flat[:] = 0
    assert clip_gradients(gradients, 1.0) == 0.0
    assert not gradients.flat.any()
