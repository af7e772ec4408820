"""Every layer and the whole model in NumPy: values against plain formulas, gradients against differences.

A gradient is held against central differences in float64, element by element. Its error is the largest
difference divided by the largest magnitude of the numerical gradient of the same tensor, so that a tensor
with small gradients is held to the same number of digits as one with large ones.
"""

from itertools import product
from math import erf, pi, sqrt, tanh
from typing import NamedTuple

import numpy as np
import pytest

from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.numbers import slope
from contract.randomness import DropoutKey
from contract.rotary import Rotary
from contract.targets import NO_TARGET
from contract.trace import Trace
from contract.weights import Weights, weight_table
from numpy_llm import (
    attend,
    attention,
    block,
    feed_forward,
    layers,
    losses,
    norms,
    positions,
    projection,
    threads,
)
from numpy_llm.model import GPT

LIMIT = 1e-6  # observed at most: 7e-11 for a layer, 6e-9 for a whole model
# float32 against float64, in the same measure
FLOAT32_LIMIT = 5e-6  # observed at most: 5e-7
FLOAT32_MODEL_LIMIT = 5e-5  # errors add up through the layers; observed at most: 4e-6
STEP = 1e-4  # h of the differences
KEY = DropoutKey(seed=3, step=5, first_sequence=1)


def numerical_gradient(loss, tensor):
    """The derivative by every element of `tensor`, which is restored afterwards."""
    slopes = [slope(loss, tensor, STEP, index=index) for index in np.ndindex(tensor.shape)]
    return np.array(slopes, tensor.dtype).reshape(tensor.shape)


def assert_close(name, actual, expected, limit, seed):
    """Fail, naming the worst element, unless |actual - expected| <= limit · max |expected| everywhere."""
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    scale = np.abs(expected).max()
    assert scale > 1e-4, f"{name}: all values are nearly 0 and prove nothing (seed {seed})"
    errors = np.abs(actual.astype(np.float64) - expected) / scale
    index = np.unravel_index(errors.argmax(), errors.shape)
    assert errors[index] <= limit, (
        f"{name}{[int(i) for i in index]}: {actual[index]!r}, expected {expected[index]!r}; "
        f"error {errors[index]:.3g}, limit {limit:g} (seed {seed})"
    )


def config_of(**changes) -> ModelConfig:
    fields = {
        "vocab_size": 7, "context_length": 5, "n_layer": 1, "n_head": 2, "d_model": 6, "d_ff": 5,
        "activation": "gelu_tanh", "position": "learned",
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


# --- the table of layers --------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A pair of functions with arguments to try them on.

    shapes: name -> shape of every float input, in the order of the gradients that `backward` returns
    forward: called with the inputs by name; returns y, cache
    backward: called with dy, cache; returns gradients by name, or in the order of `shapes`
    draw: turns standard normal numbers into fitting inputs
    """

    shapes: dict
    forward: callable
    backward: callable
    draw: callable = lambda inputs: inputs

    def inputs(self, seed, dtype=np.float64):
        random = np.random.default_rng(seed)
        drawn = {name: random.normal(size=shape) for name, shape in self.shapes.items()}
        return {name: value.astype(dtype) for name, value in self.draw(drawn).items()}

    def gradients(self, dy, cache) -> dict:
        result = self.backward(dy, cache)
        if isinstance(result, np.ndarray):
            result = (result,)
        if isinstance(result[-1], dict):  # dx and the gradients by weight name
            dx, named = result
            result = {"x": dx} | {name: value for name, value in named.items() if value is not None}
            assert result.keys() == self.shapes.keys()
            return result
        result = [value for value in result if value is not None]
        return dict(zip(self.shapes, result, strict=True))


def away_from_kink(inputs):
    return {name: value + 0.1 * np.sign(value) for name, value in inputs.items()}


def with_masked_scores(inputs):
    x = inputs["x"]
    x[..., 1:] = np.where(x[..., 1:] > 0.5, -np.inf, x[..., 1:])
    return {"x": x}


def linear(shape, out, bias=True):
    shapes = {"x": shape, "weight": (out, shape[-1])} | ({"bias": (out,)} if bias else {})
    forward = lambda x, weight, bias=None: layers.linear_forward(x, weight, bias)  # noqa: E731
    return Layer(shapes, forward, layers.linear_backward)


def low_rank(shape, out, R, scale=1.5):
    shapes = {"base": (*shape[:-1], out), "x": shape, "a": (R, shape[-1]), "b": (out, R)}
    forward = lambda base, x, a, b: projection.low_rank_forward(base, x, a, b, scale)  # noqa: E731
    return Layer(shapes, forward, projection.low_rank_backward)


def layer_norm(shape, bias=True, eps=1e-5):
    shapes = {"x": shape, "weight": shape[-1:]} | ({"bias": shape[-1:]} if bias else {})
    forward = lambda x, weight, bias=None: norms.layer_norm_forward(x, weight, bias, eps)  # noqa: E731
    return Layer(shapes, forward, norms.layer_norm_backward)


def dropout(rate, key):
    forward = lambda x: layers.dropout_forward(x, rate, key, "somewhere")  # noqa: E731
    return Layer({"x": (3, 4, 5)}, forward, layers.dropout_backward)


def position(start):
    forward = lambda x, table: positions.position_forward(x, table, start)  # noqa: E731
    return Layer({"x": (2, 3, 5), "table": (7, 5)}, forward, positions.position_backward)


def cross_entropy(B, T, V, counts=1.0):
    targets = some_count(np.random.default_rng(B).integers(V, size=(B, T)), counts)
    forward = lambda x: losses.cross_entropy_forward(x, targets)  # noqa: E731
    return Layer({"x": (B, T, V)}, forward, losses.cross_entropy_backward)


EMBEDDED = np.array([[2, 0, 2], [5, 2, 0]])  # 2 three times, 0 twice, 1 and 3 and 4 never


PLACES = {
    "norm": "blocks.0.norm_1", "attention": "blocks.0.attention", "feed_forward": "blocks.0.feed_forward",
    "block": "blocks.0",
}  # fmt: skip


def part(kind, B, T, dropout=None, **changes):
    """A part of the model whose weights come by name: attention, feed-forward, norm or block."""
    config = config_of(dropout=0.3 if dropout else 0.0, **changes)
    prefix, layer = PLACES[kind] + ".", config.layer(0)
    shapes = {"x": (B, T, config.d_model)} | {
        f"part.{name.removeprefix(prefix)}": spec.shape
        for name, spec in weight_table(config).items()
        if name.startswith(prefix)
    }
    pairs = {
        "norm": (norms.norm_forward, norms.norm_backward),
        "attention": (attention.attention_forward, attention.attention_backward),
        "feed_forward": feed_forward.FEED_FORWARDS[config.feed_forward],
        "block": (block.block_forward, block.block_backward),
    }
    forward, backward = pairs[kind]
    extra = (layer, dropout) if kind in ("attention", "block") else ()
    return Layer(
        shapes,
        lambda x, **weights: forward(x, weights, "part", config, *extra),
        backward,
        lambda inputs: {name: value * (1 if name == "x" else 0.6) for name, value in inputs.items()},
    )


def rotate(start, scaling="none"):
    factor = 1.0 if scaling == "none" else 3.0
    rotary = Rotary(theta=10.0, scaling=scaling, factor=factor, original_context_length=12)
    forward = lambda x: positions.rotate_forward(x, rotary, start)  # noqa: E731
    return Layer({"x": (2, 3, 4, 6)}, forward, positions.rotate_backward)


def scores(H, K):
    forward = lambda query, key: attend.scores_forward(query, key, 0.7)  # noqa: E731
    return Layer({"query": (2, H, 3, 4), "key": (2, K, 5, 4)}, forward, attend.scores_backward)


def weighted_sum(H, K):
    shapes = {"probabilities": (2, H, 3, 5), "value": (2, K, 5, 4)}
    return Layer(shapes, attend.weighted_sum_forward, attend.weighted_sum_backward)


def masked_softmax(T, S, window):
    forward = lambda scores: attend.masked_softmax_forward(scores, window)  # noqa: E731
    return Layer({"scores": (2, 3, T, S)}, forward, attend.masked_softmax_backward)


def some_count(targets, share):
    """The targets, of which about this share counts."""
    return np.where(np.random.default_rng(3).random(targets.shape) < share, targets, NO_TARGET)


def linear_cross_entropy(cap, counts=1.0):
    targets = some_count(np.random.default_rng(1).integers(7, size=(2, 3)), counts)
    forward = lambda x, weight: losses.linear_cross_entropy_forward(x, weight, targets, cap)  # noqa: E731

    def backward(dloss, cache):
        dx, dweight = losses.linear_cross_entropy_backward(dloss, cache)
        return dx.reshape(2, 3, 5), dweight

    return Layer({"x": (2, 3, 5), "weight": (7, 5)}, forward, backward)


MODERN = {
    "position": "rotary", "norm": "rms_norm", "activation": "silu", "feed_forward": "gated", "bias": False,
    "n_head": 4, "n_kv_head": 2, "head_size": 4,
}  # fmt: skip
GEMMA = MODERN | {
    "norm": "rms_norm_plus_one", "activation": "gelu_tanh", "block": "sandwich", "score_cap": 2.0,
    "attention_scale": 0.4, "window": 3, "layer_pattern": ("sliding",),
}  # fmt: skip


LAYERS = {
    "embedding with repeated tokens": Layer(
        {"weight": (6, 5)},
        lambda weight: layers.embedding_forward(EMBEDDED, weight),
        layers.embedding_backward,
    ),
    "position from the start": position(0),
    "position from the middle": position(2),
    "linear": linear((2, 3, 5), 4),
    "linear without bias": linear((2, 3, 5), 4, bias=False),
    "linear on rows": linear((3, 5), 1),
    "linear on one token": linear((1, 1, 3), 7),
    "low-rank pair": low_rank((2, 3, 5), 4, 2),
    "low-rank pair on one token": low_rank((1, 1, 3), 7, 1),
    "low-rank pair as wide as x": low_rank((2, 3, 4), 6, 4),
    "layer norm": layer_norm((2, 3, 5)),
    "layer norm without bias": layer_norm((2, 3, 5), bias=False),
    "layer norm with a large eps": layer_norm((3, 7), eps=0.5),
    "rms norm": Layer(
        {"x": (2, 3, 5), "weight": (5,)},
        lambda x, weight: norms.rms_norm_forward(x, weight, 1e-5),
        norms.rms_norm_backward,
    ),
    "rms norm of 1 + w": Layer(
        {"x": (2, 3, 5), "weight": (5,)},
        lambda x, weight: norms.rms_norm_plus_one_forward(x, weight, 1e-5),
        norms.rms_norm_plus_one_backward,
    ),
    "rotation": rotate(0),
    "rotation from the middle": rotate(9),
    "rotation with linear scaling": rotate(2, "linear"),
    "rotation with Llama 3's scaling": rotate(2, "llama3"),
    "scale": Layer({"x": (2, 3, 5)}, lambda x: layers.scale_forward(x, 3.5), layers.scale_backward),
    "soft cap": Layer({"x": (2, 3, 5)}, lambda x: layers.soft_cap_forward(x, 0.8), layers.soft_cap_backward),
    "silu": Layer(
        {"x": (7, 9)},
        feed_forward.silu_forward,
        feed_forward.silu_backward,
        lambda inputs: {"x": 3 * inputs["x"]},
    ),
    "gate": Layer(
        {"active": (2, 3, 5), "up": (2, 3, 5)}, feed_forward.gate_forward, feed_forward.gate_backward
    ),
    "scores": scores(2, 2),
    "scores of grouped queries": scores(6, 2),
    "scores of one key head": scores(3, 1),
    "weighted sum": weighted_sum(2, 2),
    "weighted sum of grouped queries": weighted_sum(6, 2),
    "masked softmax": masked_softmax(4, 4, None),
    "masked softmax after cached tokens": masked_softmax(2, 5, None),
    "masked softmax in a window": masked_softmax(5, 5, 2),
    "masked softmax in a window after cached tokens": masked_softmax(2, 5, 3),
    "output and cross-entropy": linear_cross_entropy(None),
    "output, soft cap and cross-entropy": linear_cross_entropy(1.5),
    "output, soft cap and cross-entropy of some": linear_cross_entropy(1.5, counts=0.5),
    "relu": Layer({"x": (3, 5)}, feed_forward.relu_forward, feed_forward.relu_backward, away_from_kink),
    "gelu": Layer(
        {"x": (7, 9)},
        feed_forward.gelu_tanh_forward,
        feed_forward.gelu_tanh_backward,
        lambda inputs: {"x": 2 * inputs["x"]},
    ),
    "dropout": dropout(0.4, KEY),
    "dropout without a key": dropout(0.4, None),
    "dropout at rate 0": dropout(0.0, KEY),
    "cross-entropy": cross_entropy(2, 3, 5),
    "cross-entropy of some tokens": cross_entropy(2, 5, 5, counts=0.5),
    "cross-entropy of one token": cross_entropy(1, 1, 3),
    "softmax": Layer({"x": (2, 3, 5)}, attend.softmax_forward, attend.softmax_backward),
    "softmax with masked scores": Layer(
        {"x": (2, 5, 5)}, attend.softmax_forward, attend.softmax_backward, with_masked_scores
    ),
    "attention, one head": part("attention", 2, 3, n_head=1, d_model=5),
    "attention, three heads": part("attention", 2, 4, n_head=3, d_model=9),
    "attention of one token": part("attention", 3, 1),
    "attention without bias": part("attention", 1, 5, bias=False),
    "attention with dropout": part("attention", 2, 3, dropout=KEY),
    "feed-forward with relu": part("feed_forward", 2, 3, activation="relu"),
    "feed-forward with gelu": part("feed_forward", 1, 3, d_model=4, d_ff=7),
    "feed-forward without bias": part("feed_forward", 2, 1, bias=False),
    "norm by name": part("norm", 2, 3),
    "norm by name without bias": part("norm", 2, 3, bias=False),
    "block with relu": part("block", 2, 3, activation="relu"),
    "block with gelu": part("block", 2, 3, n_head=3),
    "block without bias": part("block", 1, 4, bias=False),
    "block with dropout": part("block", 2, 3, dropout=KEY),
    "attention of grouped queries": part("attention", 2, 5, **MODERN),
    "attention with norms of heads": part("attention", 2, 5, query_key_norm="head", **MODERN),
    "attention with norms alone": part("attention", 2, 3, query_key_norm="head", bias=False),
    "attention in a window, capped": part("attention", 2, 5, **GEMMA),
    "gated feed-forward": part("feed_forward", 2, 3, **MODERN),
    "gated feed-forward with bias": part("feed_forward", 2, 3, **MODERN | {"bias": True}),
    "block of the modern family": part("block", 2, 4, **MODERN),
    "sandwich": part("block", 2, 5, **GEMMA),
    "attention with low-rank pairs": part("attention", 2, 3, lora_rank=2, lora_alpha=3),
    "gated feed-forward with some": part(
        "feed_forward", 2, 3, **MODERN, lora_rank=2, lora_targets=["gate", "down"]
    ),
    "block with norms behind": part("block", 2, 4, block="post_norm"),
}
SEED = 11
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


def random_like(y):
    """A random gradient of the output: it makes the loss a random weighted sum of all that is computed."""
    return np.random.default_rng(SEED + 1).normal(size=np.shape(y)).astype(y.dtype)


@every_layer
def test_layer_gradients(layer):
    """The gradient of every parameter and every input of a layer is that of central differences."""
    inputs = layer.inputs(SEED)
    y, cache = layer.forward(**inputs)
    dy = random_like(y)
    gradients = layer.gradients(dy, cache)
    for name, value in inputs.items():
        expected = numerical_gradient(lambda: (dy * layer.forward(**inputs)[0]).sum(), value)
        assert_close(f"d{name}", gradients[name], expected, LIMIT, SEED)


@every_layer
def test_layer_writes_to_no_argument(layer):
    """Forward and backward leave their arguments as they were, and a cache serves twice."""
    inputs = layer.inputs(SEED)
    y, cache = layer.forward(**inputs)
    dy = np.array(random_like(y))
    before = {name: value.copy() for name, value in inputs.items()} | {"y": np.copy(y), "dy": dy.copy()}
    for value in (*inputs.values(), dy):
        value.flags.writeable = False
    again, _ = layer.forward(**inputs)
    first = {name: value.copy() for name, value in layer.gradients(dy, cache).items()}
    second = layer.gradients(dy, cache)
    np.testing.assert_array_equal(again, before["y"])
    np.testing.assert_array_equal(dy, before["dy"])
    for name, value in inputs.items():
        np.testing.assert_array_equal(value, before[name])
        np.testing.assert_array_equal(second[name], first[name], err_msg=f"d{name}")


@every_layer
def test_layer_in_float32(layer):
    """A layer stays in the dtype of its inputs, and its float32 agrees with its float64."""
    inputs = layer.inputs(SEED, np.float32)
    y, cache = layer.forward(**inputs)
    dy = random_like(y)
    gradients = layer.gradients(dy, cache)
    exact, exact_cache = layer.forward(**{name: value.astype(np.float64) for name, value in inputs.items()})
    exact_gradients = layer.gradients(dy.astype(np.float64), exact_cache)
    assert y.dtype == np.float32
    assert_close("y", np.asarray(y), np.asarray(exact), FLOAT32_LIMIT, SEED)
    for name, value in gradients.items():
        assert value.dtype == np.float32, name
        assert value.shape == inputs[name].shape, name
        assert_close(f"d{name}", value, exact_gradients[name], FLOAT32_LIMIT, SEED)


# --- values of the layers, from plain formulas ---------------------------------------------------------------


def test_embedding_values():
    """Each token gets its own row, and a row's gradient counts every place of a repeated token."""
    weight = np.arange(30.0).reshape(6, 5)
    y, cache = layers.embedding_forward(EMBEDDED, weight)
    for b, t in np.ndindex(EMBEDDED.shape):
        np.testing.assert_array_equal(y[b, t], weight[EMBEDDED[b, t]])
    counts = layers.embedding_backward(np.ones_like(y), cache)
    np.testing.assert_array_equal(counts, np.array([2, 0, 3, 0, 0, 1])[:, None] * np.ones(5))


def test_sinusoidal_values():
    """The table is sin and cos of t / 10000^(2i/C), side by side."""
    table = positions.sinusoidal_positions(40, 6, np.float64)
    assert table.shape == (40, 6)
    for t, i in product(range(40), range(3)):
        angle = t / 10000 ** (2 * i / 6)
        assert table[t, 2 * i] == pytest.approx(np.sin(angle), abs=1e-14)
        assert table[t, 2 * i + 1] == pytest.approx(np.cos(angle), abs=1e-14)
    np.testing.assert_array_equal(
        positions.sinusoidal_positions(40, 6, np.float32), table.astype(np.float32), strict=True
    )


def test_position_values():
    """Token t of every sequence gets row start + t."""
    x, table = np.zeros((2, 3, 5)), np.arange(35.0).reshape(7, 5)
    for start in (0, 4):
        y, _ = positions.position_forward(x, table, start)
        for b, t in product(range(2), range(3)):
            np.testing.assert_array_equal(y[b, t], table[start + t])


def test_linear_values():
    """y[n, o] = Σ_i x[n, i] weight[o, i] + bias[o], written as loops."""
    random = np.random.default_rng(0)
    x, weight, bias = random.normal(size=(2, 3, 5)), random.normal(size=(4, 5)), random.normal(size=4)
    y, _ = layers.linear_forward(x, weight, bias)
    for b, t, o in np.ndindex(2, 3, 4):
        total = sum(x[b, t, i] * weight[o, i] for i in range(5))
        assert y[b, t, o] == pytest.approx(total + bias[o], rel=1e-12)
        assert layers.linear_forward(x, weight, None)[0][b, t, o] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("rows", [1, 2, threads.FEW_ROWS, threads.FEW_ROWS + 1])
@pytest.mark.parametrize("out", [1, 3, 2500])
def test_linear_of_few_and_many_rows(rows, out):
    """However the product is written for a number of rows, it is the same, in an array of the usual layout."""
    random = np.random.default_rng(rows)
    x, weight, bias = random.normal(size=(rows, 1, 5)), random.normal(size=(out, 5)), random.normal(size=out)
    y, cache = layers.linear_forward(x, weight, bias)
    np.testing.assert_allclose(y, np.einsum("nti,oi->nto", x, weight) + bias, rtol=1e-12, atol=1e-14)
    assert y.flags.c_contiguous
    assert cache.rows.shape == (rows, 5)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_layer_norm_values(eps):
    """(x - mean) / √(var + eps), with the biased variance and eps inside the root."""
    random = np.random.default_rng(1)
    x, weight, bias = random.normal(3, 2, (2, 3, 5)), random.normal(size=5), random.normal(size=5)
    y, _ = norms.layer_norm_forward(x, weight, bias, eps)
    for b, t in product(range(2), range(3)):
        mean = sum(x[b, t]) / 5
        variance = sum((value - mean) ** 2 for value in x[b, t]) / 5
        np.testing.assert_allclose(
            y[b, t], (x[b, t] - mean) / sqrt(variance + eps) * weight + bias, rtol=1e-12
        )


def test_relu_values():
    """max(x, 0), and at the kink the slope 0."""
    y, cache = feed_forward.relu_forward(np.array([-2.0, -0.0, 0.0, 3.0]))
    np.testing.assert_array_equal(y, [0, 0, 0, 3])
    np.testing.assert_array_equal(feed_forward.relu_backward(np.ones(4), cache), [0, 0, 0, 1])


def test_gelu_values():
    """The tanh form at known points, and not the exact-erf form, from which it differs there."""
    points = {
        -3.0: -0.003637392,
        -1.0: -0.158808009,
        0.0: 0.0,
        0.5: 0.345714013,
        1.0: 0.841191991,
        2.0: 1.954597694,
    }
    y, _ = feed_forward.gelu_tanh_forward(np.array(list(points)))
    np.testing.assert_allclose(y, list(points.values()), atol=5e-10)
    for x, value in zip(points, y, strict=True):
        assert value == pytest.approx(x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))), abs=1e-15)
        if x:
            assert abs(value - x / 2 * (1 + erf(x / sqrt(2)))) > 1e-5


def test_gelu_keeps_its_tails():
    """Far from 0 GELU is 0 or x, with slope 0 or 1."""
    y, cache = feed_forward.gelu_tanh_forward(np.array([-1e4, -40.0, 40.0, 1e4]))
    np.testing.assert_array_equal(y, [0, 0, 40, 1e4])
    np.testing.assert_array_equal(feed_forward.gelu_tanh_backward(np.ones(4), cache), [0, 0, 1, 1])


def test_dropout_values():
    """With a key the mask multiplies; without a key, or at rate 0, x comes back as it is."""
    x = np.random.default_rng(2).normal(size=(3, 50))
    y, cache = layers.dropout_forward(x, 0.25, KEY, "somewhere")
    np.testing.assert_array_equal(y, x * cache.mask)
    assert 0 < np.count_nonzero(y) < y.size
    np.testing.assert_array_equal(layers.dropout_forward(x, 0.25, None, "somewhere")[0], x)
    np.testing.assert_array_equal(layers.dropout_forward(x, 0.0, KEY, "somewhere")[0], x)


def test_cross_entropy_values():
    """The mean of -log softmax at the targets."""
    random = np.random.default_rng(3)
    logits, targets = random.normal(0, 3, (2, 3, 5)), random.integers(5, size=(2, 3))
    each_loss = [
        -np.log(np.exp(logits[b, t, targets[b, t]]) / sum(np.exp(logits[b, t]))) for b, t in np.ndindex(2, 3)
    ]
    loss, _ = losses.cross_entropy_forward(logits, targets)
    assert loss.shape == ()
    assert loss == pytest.approx(sum(each_loss) / 6, rel=1e-12)
    targets[0] = targets[1, 2] = NO_TARGET
    loss, _ = losses.cross_entropy_forward(logits, targets)
    assert loss == pytest.approx(sum(each_loss[3:5]) / 2, rel=1e-12)
    targets[...] = NO_TARGET
    loss, cache = losses.cross_entropy_forward(logits, targets)
    assert loss == 0
    assert not losses.cross_entropy_backward(1.0, cache).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_huge_logits(dtype):
    """Logits far beyond the range of exp give the exact loss and finite gradients."""
    logits = np.array([[[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4]]], dtype)
    loss, cache = losses.cross_entropy_forward(logits, np.array([[1, 2]]))
    assert loss == pytest.approx((6e4 + np.log(3)) / 2, rel=1e-6)
    expected = [[[0.5, -0.5, 0], [1 / 6, 1 / 6, -1 / 3]]]
    np.testing.assert_allclose(losses.cross_entropy_backward(1.0, cache), expected, atol=1e-7)


def test_softmax_values():
    """exp(x) / Σ exp(x), exactly 0 at -inf, and no overflow."""
    y, _ = attend.softmax_forward(np.array([[1.0, 2.0, -np.inf], [1e4, 1e4, 1e4 - np.log(2)]]))
    np.testing.assert_allclose(y, [[1 / (1 + np.e), np.e / (1 + np.e), 0], [0.4, 0.4, 0.2]], rtol=1e-9)
    assert y[0, 2] == 0


@pytest.mark.parametrize(("T", "S"), [(1, 1), (4, 4), (2, 5), (1, 3)])
def test_causal_mask(T, S):
    """A query at place S - T + t sees exactly the keys up to its own place."""
    mask = attend.causal_mask(T, S)
    for t, s in product(range(T), range(S)):
        assert mask[t, s] == (0 if s <= S - T + t else -np.inf)


@pytest.mark.parametrize(("n_head", "d_model"), [(1, 5), (2, 6), (3, 9)])
def test_attention_values(n_head, d_model):
    """Attention is what its definition says, written as loops over sequence, head, query and key."""
    B, T, H, D, C = 2, 4, n_head, d_model // n_head, d_model
    layer = part("attention", B, T, n_head=n_head, d_model=d_model)
    inputs = layer.inputs(SEED)
    y, _ = layer.forward(**inputs)
    x, weight, bias = (
        inputs[name] for name in ("x", "part.query_key_value.weight", "part.query_key_value.bias")
    )
    for b, t in product(range(B), range(T)):
        merged = np.zeros(C)
        for h in range(H):

            def project(kind, place, b=b, h=h):  # kind 0 is the query, 1 the key, 2 the value
                rows = slice(kind * C + h * D, kind * C + (h + 1) * D)
                return weight[rows] @ x[b, place] + bias[rows]

            fits = [np.exp(project(0, t) @ project(1, s) / sqrt(D)) for s in range(t + 1)]
            for s in range(t + 1):
                merged[h * D : (h + 1) * D] += fits[s] / sum(fits) * project(2, s)
        expected = inputs["part.output.weight"] @ merged + inputs["part.output.bias"]
        np.testing.assert_allclose(y[b, t], expected, rtol=1e-11, atol=1e-13)


def test_block_values():
    """Each branch reads a normed copy of the stream and adds to it, attention first."""
    layer = part("block", 2, 3, n_head=3)
    inputs = layer.inputs(SEED)
    x, config = inputs.pop("x"), config_of(n_head=3)

    def norm(x, name):
        return norms.layer_norm_forward(x, inputs[f"{name}.weight"], inputs[f"{name}.bias"], 1e-5)[0]

    x_1 = (
        x
        + attention.attention_forward(
            norm(x, "part.norm_1"), inputs, "part.attention", config, config.layer(0)
        )[0]
    )
    hidden = norm(x_1, "part.norm_2") @ inputs["part.feed_forward.up.weight"].T
    hidden = feed_forward.gelu_tanh_forward(hidden + inputs["part.feed_forward.up.bias"])[0]
    branch = hidden @ inputs["part.feed_forward.down.weight"].T + inputs["part.feed_forward.down.bias"]
    y, _ = layer.forward(x=x, **inputs)
    np.testing.assert_allclose(y, x_1 + branch, rtol=1e-12, atol=1e-13)


# --- whole models ----------------------------------------------------------------------------------------------

MODELS = [
    pytest.param({}, (2, 4), id="gelu, learned, tied"),
    pytest.param({"activation": "relu"}, (2, 4), id="relu"),
    pytest.param({"position": "sinusoidal"}, (2, 3), id="sinusoidal"),
    pytest.param({"tie_embeddings": False}, (2, 3), id="untied"),
    pytest.param({"bias": False}, (2, 4), id="no bias"),
    pytest.param({"dropout": 0.3}, (3, 4), id="dropout"),
    pytest.param(MODERN | {"query_key_norm": "head", "norm_eps": 0.1}, (2, 4), id="modern"),
    pytest.param(
        GEMMA | {"n_layer": 2, "layer_pattern": ("sliding", "full"), "embedding_scale": 2.0, "logit_cap": 3.0}
        | {"context_length": 5},
        (2, 5),
        id="gemma",
    ),
    pytest.param({"block": "post_norm"}, (2, 4), id="norms behind"),
    pytest.param({"n_head": 1, "d_model": 5, "d_ff": 7}, (2, 3), id="one head, odd width"),
    pytest.param({"n_head": 3, "d_model": 9, "d_ff": 3}, (1, 4), id="three heads, odd width"),
    pytest.param({}, (2, 1), id="one token"),
    pytest.param({"position": "sinusoidal"}, (1, 4), id="batch of one, whole context"),
    pytest.param({"n_layer": 2, "n_head": 1, "d_model": 4, "d_ff": 3}, (2, 3), id="two layers"),
    pytest.param(
        {"activation": "relu", "position": "sinusoidal", "tie_embeddings": False, "bias": False, "dropout": 0.2,
         "n_layer": 2, "d_model": 4},
        (2, 4),
        id="everything else",
    ),
    pytest.param({"n_layer": 3, "n_head": 1, "d_model": 3, "d_ff": 4, "norm_eps": 0.1}, (2, 4), id="large eps"),
]  # fmt: skip


@pytest.fixture
def make_model(tiny_config, lively_weights):
    def make(changes, seed, dtype="float64"):
        gpt = GPT(tiny_config(**changes), dtype="float64")
        lively_weights(gpt.weights, seed)
        if dtype == "float64":
            return gpt
        weights = Weights.zeros(gpt.config, dtype)
        weights.flat[:] = gpt.weights.flat
        return GPT(gpt.config, weights)

    return make


def tokens_and_targets(shape, seed, vocab_size=7):
    """Random ones from half of the vocabulary: tokens repeat, and some never occur."""
    drawn = np.random.default_rng(seed).integers(vocab_size // 2 + 1, size=(shape[0], shape[1] + 1))
    return drawn[:, :-1], drawn[:, 1:]


@pytest.mark.parametrize("seed", [22, pytest.param(23, marks=pytest.mark.endurance)])
@pytest.mark.parametrize(("changes", "shape"), MODELS)
def test_model_gradients(make_model, changes, shape, seed):
    """In whole tiny models, every element of every parameter's gradient is that of central differences."""
    gpt = make_model(changes, seed)
    tokens, targets = tokens_and_targets(shape, seed)
    dropout = KEY if gpt.config.dropout else None
    trace = Trace()
    _, _, cache = gpt.forward(tokens, targets, dropout=dropout, trace=trace)
    if gpt.config.activation == "relu":
        hidden = [value for name, value in trace.activations.items() if name.endswith("feed_forward.up")]
        nearest = min(np.abs(value).min() for value in hidden)
        assert nearest > 20 * STEP, f"a hidden value is {nearest:.1e} from the kink: choose another seed"
    gradients = gpt.backward(cache)
    assert list(gradients) == list(gpt.weights)
    for name, weight in gpt.weights.items():
        assert gradients[name].dtype == weight.dtype
        expected = numerical_gradient(lambda: gpt.forward(tokens, targets, dropout=dropout)[1], weight)
        assert_close(f"d{name}", gradients[name], expected, LIMIT, seed)


def test_model_backward_adds_its_share(make_model):
    """`backward` multiplies by dloss, adds to the gradients it is given, and leaves its cache as it was."""
    gpt = make_model({"dropout": 0.2}, 5)
    tokens, targets = tokens_and_targets((2, 4), 5)
    _, _, cache = gpt.forward(tokens, targets, dropout=KEY)
    once = gpt.backward(cache).flat
    given = Weights.zeros(gpt.config, "float64")
    given.flat[:] = 1
    assert gpt.backward(cache, dloss=0.25, gradients=given) is given
    np.testing.assert_allclose(given.flat, 1 + 0.25 * once, rtol=1e-12)
    np.testing.assert_array_equal(gpt.backward(cache).flat, once)


def test_model_writes_to_no_argument(make_model):
    """A pass forward and back changes neither weights nor tokens nor targets."""
    gpt = make_model({"dropout": 0.2}, 6)
    tokens, targets = tokens_and_targets((2, 4), 6)
    for value in (gpt.weights.flat, tokens, targets, *gpt.weights.values()):
        value.flags.writeable = False
    before = gpt.weights.flat.copy(), tokens.copy(), targets.copy()
    gpt.backward(gpt.forward(tokens, targets, dropout=KEY)[2])
    for value, kept in zip((gpt.weights.flat, tokens, targets), before, strict=True):
        np.testing.assert_array_equal(value, kept)


@pytest.mark.parametrize(("changes", "shape"), MODELS)
def test_model_in_float32(make_model, changes, shape):
    """In float32 logits, loss and all gradients stay float32 and agree with float64."""
    exact, rounded = make_model(changes, 7), make_model(changes, 7, "float32")
    tokens, targets = tokens_and_targets(shape, 7)
    dropout = KEY if exact.config.dropout else None
    expected_logits, expected_loss, expected_cache = exact.forward(tokens, targets, dropout=dropout)
    logits, loss, cache = rounded.forward(tokens, targets, dropout=dropout)
    assert logits.dtype == loss.dtype == np.float32
    assert_close("logits", logits, expected_logits, FLOAT32_MODEL_LIMIT, 7)
    assert loss == pytest.approx(float(expected_loss), rel=FLOAT32_MODEL_LIMIT)
    gradients, expected = rounded.backward(cache), exact.backward(expected_cache)
    assert gradients.flat.dtype == np.float32
    for name in expected:
        assert_close(f"d{name}", gradients[name], expected[name], FLOAT32_MODEL_LIMIT, 7)


@pytest.mark.parametrize("changes", [{}, {"position": "sinusoidal", "n_layer": 2, "activation": "relu"}])
def test_causality(make_model, changes):
    """Changing a later token changes no earlier logit, and changes its own."""
    gpt = make_model(changes, 8)
    tokens, _ = tokens_and_targets((1, 4), 8)
    logits, _, _ = gpt.forward(tokens)
    for place in range(4):
        changed = tokens.copy()
        changed[0, place] = 6
        other, _, _ = gpt.forward(changed)
        np.testing.assert_array_equal(other[0, :place], logits[0, :place])
        assert (np.abs(other[0, place:] - logits[0, place:]).max(axis=-1) > 1e-6).all()


def test_sequences_are_independent(make_model):
    """A batch computes for each sequence what it computes for that sequence alone."""
    gpt = make_model({}, 9)
    tokens, targets = tokens_and_targets((3, 4), 9)
    logits, loss, cache = gpt.forward(tokens, targets)
    alone = [gpt.forward(tokens[b : b + 1], targets[b : b + 1]) for b in range(3)]
    np.testing.assert_allclose(logits, np.concatenate([one[0] for one in alone]), rtol=1e-11, atol=1e-13)
    assert loss == pytest.approx(sum(one[1] for one in alone) / 3, rel=1e-12)
    total = sum(gpt.backward(one[2]).flat for one in alone) / 3
    np.testing.assert_allclose(gpt.backward(cache).flat, total, rtol=1e-10, atol=1e-14)


def test_model_without_targets(make_model):
    """Without targets there are logits, the same as with them, and neither loss nor cache."""
    gpt = make_model({}, 10)
    tokens, targets = tokens_and_targets((2, 3), 10)
    logits, loss, cache = gpt.forward(tokens)
    assert (loss, cache) == (None, None)
    np.testing.assert_array_equal(logits, gpt.forward(tokens, targets)[0])


def test_tied_output_is_the_embedding(make_model):
    """Tied, the output projection is the token embedding; untied, a weight of its own."""
    for tied, name in ((True, "token_embedding.weight"), (False, "output.weight")):
        gpt = make_model({"tie_embeddings": tied}, 11)
        stream, _ = gpt.stream_forward(np.array([[1, 2]]))
        np.testing.assert_allclose(
            gpt.forward(np.array([[1, 2]]))[0], stream @ gpt.weights[name].T, rtol=1e-12
        )


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        pytest.param([[0] * 5], ["T from 1 to the context length, 4", "got int64 (1, 5)"], id="too many"),
        pytest.param([[]], ["got int64 (1, 0)"], id="none"),
        pytest.param([[0, 7]], ["tokens[0, 1] is 7", "ids 0 to 6"], id="beyond the vocabulary"),
        pytest.param([[-1, 3]], ["tokens[0, 0] is -1", "ids 0 to 6"], id="negative"),
    ],
)
def test_impossible_tokens(make_model, tokens, words):
    """Tokens that the model cannot take are refused with their range or their number."""
    with pytest.raises(ConfigError) as error:
        make_model({}, 12).forward(np.array(tokens, int))
    for word in words:
        assert word in str(error.value)
