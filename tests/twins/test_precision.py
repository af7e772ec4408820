"""bfloat16: what autocast may round in the twin, and what it may not; and how far loss and gradients drift."""

import numpy as np
import pytest

from contract.presets import preset
from contract.rotary import Rotary

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

# These need PyTorch, so they come after the skip.
from torch.overrides import TorchFunctionMode  # noqa: E402

import torch_llm  # noqa: E402
from contract.randomness import DropoutKey  # noqa: E402
from harness.training.backend import open_backend  # noqa: E402
from torch_llm import attend, layers, losses, norms, positions  # noqa: E402
from torch_llm.precision import full_precision  # noqa: E402

SMALL = {"vocab_size": 50, "n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}
MODELS = {"modern": preset("modern", **SMALL), "nano": preset("nano", **SMALL)}
# Of a bfloat16 step against a float32 one: of the loss, the whole gradient (Euclidean norm) and the worst weight's
# (largest element), relative. Four seeds gave up to 1.1e-4 nats, 4.1e-3 and 1.5e-2.
LOSS_LIMIT, GRADIENT_LIMIT, WEIGHT_LIMIT = 5e-4, 8e-3, 4e-2


def half_precision():
    return torch.autocast("cpu", torch.bfloat16)


def numbers(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype("float32"))


x = numbers(2, 3, 8, 16)
weight, bias = 1 + numbers(16) / 8, numbers(16)
targets = torch.arange(6).reshape(2, 3)
IN_FULL = {
    "layer_norm": lambda x: norms.layer_norm(x, weight, bias, 1e-5),
    "rms_norm": lambda x: norms.rms_norm(x, weight, 1e-5),
    "rms_norm_plus_one": lambda x: norms.rms_norm_plus_one(x, weight, 1e-5),
    "rotate": lambda x: positions.rotate(x, Rotary(), 5),
    "softmax": attend.softmax,
    "masked_softmax": attend.masked_softmax,
    "soft_cap": lambda x: layers.soft_cap(x, 2.0),
    "dropout": lambda x: layers.dropout(x, 0.5, DropoutKey(0, 0), "here"),
    "cross_entropy": lambda x: losses.cross_entropy(x[:, :, 0], targets),
}


@pytest.mark.parametrize("operation", IN_FULL.values(), ids=IN_FULL)
def test_is_computed_in_float32(operation):
    """Under autocast, from numbers that a product left in bfloat16, it gives what those numbers give in float32."""
    rounded = x.bfloat16()
    with half_precision():
        found = operation(rounded)
    assert found.dtype == torch.float32
    assert torch.equal(found, operation(rounded.float()))


def test_products_are_computed_in_bfloat16():
    with half_precision():
        assert layers.linear(x, numbers(4, 16), None).dtype == torch.bfloat16
        fits = attend.scores(x, x, 0.3)
        assert fits.dtype == torch.float32  # of a product in bfloat16, and scaled in float32
    assert torch.equal(fits, (x.bfloat16() @ x.bfloat16().transpose(-1, -2)).float() * 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_cast_where_nothing_is_rounded(dtype):
    given = x.to(dtype)
    assert full_precision(given) is given


class Recorded(TorchFunctionMode):
    """Notes the types of what PyTorch's functions of these names read and give."""

    NAMES = ("layer_norm", "rms_norm", "softmax", "cross_entropy", "tanh")

    def __init__(self):
        super().__init__()
        self.types = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__ in self.NAMES:
            floats = [each for each in (*args, result) if isinstance(each, torch.Tensor)]
            found = {each.dtype for each in floats if each.is_floating_point()}
            self.types.setdefault(function.__name__, set()).update(found)
        return result


CAPPED = {"score_cap": 5.0, "logit_cap": 7.0}
PASSES = {
    "layer norm, dropout": (
        preset("nano", **SMALL, score_cap=5.0, block="sandwich", dropout=0.1),
        "layer_norm",
    ),
    "norms of heads": (preset("modern", **SMALL, **CAPPED), "rms_norm"),
    "norms of branches": (preset("modern", **SMALL, **CAPPED, block="sandwich"), "rms_norm"),
}


@pytest.mark.parametrize(("config", "norm"), PASSES.values(), ids=PASSES)
def test_types_of_a_pass(config, norm):
    """Wherever it stands in a model, such a function reads and gives float32, and so does every block."""
    model, streams = torch_llm.GPT(config), set()
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: streams.add(output.dtype))
    tokens = torch.arange(16).reshape(2, 8)
    with half_precision(), Recorded() as recorded:
        loss = model(tokens, tokens, dropout=DropoutKey(0, 0))[1]
    loss.backward()
    full = {torch.float32}
    assert recorded.types == dict.fromkeys((norm, "softmax", "tanh", "cross_entropy"), full)
    assert streams == full
    assert {value.grad.dtype for value in model.parameters()} == full


def step(config, dtype, seed=0):
    """The loss and the gradients of one step."""
    backend = open_backend("torch", config, seed=seed, dtype=dtype, threads=1)
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=(4, config.context_length + 1))
    loss = backend.loss_and_gradients(ids[:, :-1], ids[:, 1:], step=0, accumulate=2)
    return loss, {name: value.grad.numpy() for name, value in backend._weights.items()}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_drift(config):
    """Loss and gradients of a step are those of float32 as far as bfloat16 can tell, and are not the same."""
    (wanted, full), (found, half) = step(config, "float32"), step(config, "bfloat16")
    assert 0 < abs(found - wanted) < LOSS_LIMIT
    assert {value.dtype for value in half.values()} == {np.dtype("float32")}
    apart = {name: half[name] - full[name] for name in full}
    whole = sum(np.square(value).sum() for value in full.values())
    assert sum(np.square(value).sum() for value in apart.values()) < GRADIENT_LIMIT**2 * whole
    for name, value in apart.items():
        assert np.abs(value).max() < WEIGHT_LIMIT * np.abs(full[name]).max(), name
