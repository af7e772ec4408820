"""The trace: its names in order, a gradient for every tensor, and no change to what is computed."""

import numpy as np
import pytest

from contract.numbers import central_difference
from contract.randomness import DropoutKey, dropout_mask
from contract.trace import NO_TRACE, Trace
from numpy_llm.model import GPT

BLOCK = [
    *["norm_1", "attention.query", "attention.key", "attention.value", "attention.scores"],
    *["attention.probabilities", "attention.probabilities_dropout", "attention.heads", "attention.output"],
    *["dropout_1", "residual_1"],
    *["norm_2", "feed_forward.up", "feed_forward.activation", "feed_forward.down"],
    *["dropout_2", "residual_2"],
]
NAMES = [
    *["token_embedding", "embedding", "embedding_dropout"],
    *[f"blocks.{layer}.{name}" for layer in (0, 1) for name in BLOCK],
    *["final_norm", "logits", "loss"],
]
KEY = DropoutKey(seed=1, step=2)
TOKENS, TARGETS = np.array([[1, 3, 3], [0, 1, 2]]), np.array([[3, 3, 6], [1, 2, 2]])


class Nudge(type(NO_TRACE)):
    """Adds `step` to one element of one tensor, in the middle of the pass that it is given to."""

    def __init__(self, name, index, step):
        super().__init__()
        self.name, self.index, self.step = name, index, step

    def record(self, name, tensor, operation="", *arguments):
        self.record_all({name: tensor})

    def record_all(self, tensors, operation="", *arguments):
        if self.name in tensors:
            tensors[self.name][self.index] += self.step


@pytest.fixture
def gpt(tiny_config, lively_weights):
    model = GPT(tiny_config(n_layer=2, dropout=0.3), dtype="float64")
    lively_weights(model.weights, 4)
    return model


def traced(gpt, dropout=KEY):
    trace = Trace()
    logits, loss, cache = gpt.forward(TOKENS, TARGETS, dropout=dropout, trace=trace)
    return trace, logits, loss, gpt.backward(cache, trace=trace)


@pytest.mark.parametrize("dropout", [KEY, None])
@pytest.mark.parametrize("changes", [{}, {"position": "sinusoidal", "activation": "relu", "bias": False}])
def test_names_in_order(tiny_config, changes, dropout):
    """Every configuration traces the same names, forward in the order of dataflow, back in reverse."""
    trace, *_ = traced(GPT(tiny_config(n_layer=2, dropout=0.3, **changes)), dropout)
    assert list(trace.activations) == NAMES
    assert list(trace.gradients) == NAMES[::-1]


def test_shapes(gpt):
    """Every tensor has the shape that its name promises, and so has its gradient."""
    trace, *_ = traced(gpt)
    B, T, C, H, D, F, V = 2, 3, 6, 2, 3, 5, 7
    shapes = {
        **dict.fromkeys(["query", "key", "value", "heads"], (B, H, T, D)),
        **dict.fromkeys(["scores", "probabilities", "probabilities_dropout"], (B, H, T, T)),
        **dict.fromkeys(["up", "activation"], (B, T, F)),
        "logits": (B, T, V),
        "loss": (),
    }
    for name in NAMES:
        expected = shapes.get(name.split(".")[-1], (B, T, C))
        assert trace.activations[name].shape == trace.gradients[name].shape == expected, name
        assert trace.activations[name].dtype == trace.gradients[name].dtype == np.float64, name


def test_dropout_sites(gpt):
    """Each place of dropout draws its own mask, keyed by its own name."""
    trace, *_ = traced(gpt)
    sites = {"embedding_dropout": ("embedding", "embedding_dropout")}
    for block in ("blocks.0", "blocks.1"):
        probabilities = f"{block}.attention.probabilities"
        sites[probabilities] = (probabilities, f"{probabilities}_dropout")
        sites[f"{block}.dropout_1"] = (f"{block}.attention.output", f"{block}.dropout_1")
        sites[f"{block}.dropout_2"] = (f"{block}.feed_forward.down", f"{block}.dropout_2")
    for site, (before, after) in sites.items():
        x = trace.activations[before]
        mask = dropout_mask(KEY, site, x.shape, 0.3, np.float64)
        np.testing.assert_array_equal(trace.activations[after], x * mask, err_msg=site)


def test_traced_values(gpt):
    """The traced tensors are those that the formulas of the model connect."""
    trace, logits, loss, _ = traced(gpt)
    at = trace.activations
    np.testing.assert_array_equal(at["logits"], logits)
    np.testing.assert_array_equal(at["loss"], loss)
    np.testing.assert_array_equal(at["token_embedding"], gpt.weights["token_embedding.weight"][TOKENS])
    np.testing.assert_array_equal(at["embedding"], at["token_embedding"] + gpt.positions[:3])
    stream = at["embedding_dropout"]
    for block in ("blocks.0", "blocks.1"):
        scores = at[f"{block}.attention.query"] @ at[f"{block}.attention.key"].swapaxes(2, 3) / np.sqrt(3)
        np.testing.assert_allclose(at[f"{block}.attention.scores"], scores, rtol=1e-12)
        weights = np.tril(np.exp(scores))
        np.testing.assert_allclose(
            at[f"{block}.attention.probabilities"], weights / weights.sum(-1, keepdims=True), rtol=1e-10
        )
        heads = at[f"{block}.attention.probabilities_dropout"] @ at[f"{block}.attention.value"]
        np.testing.assert_allclose(at[f"{block}.attention.heads"], heads, rtol=1e-12)
        np.testing.assert_array_equal(at[f"{block}.residual_1"], stream + at[f"{block}.dropout_1"])
        stream = at[f"{block}.residual_1"] + at[f"{block}.dropout_2"]
        np.testing.assert_array_equal(at[f"{block}.residual_2"], stream)
    output = at["final_norm"] @ gpt.weights["token_embedding.weight"].T
    np.testing.assert_allclose(logits, output, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_traced_gradients(gpt, name):
    """A traced gradient is the loss's central difference by that very tensor, nudged inside the pass."""
    trace, *_ = traced(gpt)
    gradient = trace.gradients[name]
    expected = np.empty_like(gradient)
    for index in np.ndindex(gradient.shape):
        expected[index] = central_difference(
            lambda by, index=index: gpt.forward(TOKENS, TARGETS, dropout=KEY, trace=Nudge(name, index, by))[
                1
            ],
            1e-5,
        )
    errors = np.abs(gradient - expected) / np.abs(expected).max()
    index = np.unravel_index(errors.argmax(), errors.shape)
    assert errors[index] <= 1e-6, (
        f"d{name}{[int(i) for i in index]}: {gradient[index]!r}, expected {expected[index]!r}; "
        f"error {errors[index]:.3g}, limit 1e-06 (weights of seed 4)"
    )


def test_loss_gradient(gpt):
    """The gradient of the loss by itself is what `backward` was told."""
    for share in (1.0, 0.25):
        trace = Trace()
        gpt.backward(gpt.forward(TOKENS, TARGETS)[2], dloss=share, trace=trace)
        assert trace.gradients["loss"] == share


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_trace_changes_nothing(tiny_config, dtype):
    """With a trace and without one, logits, loss and gradients are the same bits."""
    gpt = GPT(tiny_config(n_layer=2, dropout=0.3), dtype=dtype)
    _, *with_trace = traced(gpt)
    logits, loss, cache = gpt.forward(TOKENS, TARGETS, dropout=KEY)
    gradients = gpt.backward(cache)
    np.testing.assert_array_equal(with_trace[0], logits)
    np.testing.assert_array_equal(with_trace[1], loss)
    np.testing.assert_array_equal(with_trace[2].flat, gradients.flat)


def test_recording_copies():
    """What is recorded stays, whatever the model does with the memory afterwards."""
    trace, tensor = Trace(), np.ones((2, 3))
    trace.record("x", tensor)
    trace.record_gradient("x", tensor)
    tensor[:] = 0
    np.testing.assert_array_equal(trace.activations["x"], np.ones((2, 3)))
    np.testing.assert_array_equal(trace.gradients["x"], np.ones((2, 3)))


def test_a_name_is_recorded_once():
    """A second tensor or gradient under a name is an error that says which; one of each is not."""
    trace = Trace()
    trace.record("x", np.zeros(1))
    trace.record_gradient("x", np.zeros(1))
    with pytest.raises(KeyError, match="x is traced twice"):
        trace.record("x", np.zeros(1))
    with pytest.raises(KeyError, match="x is traced twice"):
        trace.record_gradient("x", np.zeros(1))


def test_no_trace_keeps_nothing(gpt):
    """The default trace records neither tensors nor gradients."""
    gpt.backward(gpt.forward(TOKENS, TARGETS)[2])
    NO_TRACE.record("x", np.zeros(1))
    NO_TRACE.record_gradient("x", np.zeros(1))
    assert not NO_TRACE.activations
    assert not NO_TRACE.gradients
