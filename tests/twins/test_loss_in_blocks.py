"""The loss in blocks of rows: the same numbers as from all logits at once, in both twins."""

import numpy as np
import pytest

import numpy_llm.losses
import numpy_llm.model
from contract.config import ModelConfig
from contract.decoding import kv_cache_numbers
from contract.presets import preset
from contract.targets import NO_TARGET
from numpy_llm import GPT
from parity.cases import lively_weights

torch = pytest.importorskip("torch", reason="needs PyTorch")
import torch_llm.losses  # noqa: E402
import torch_llm.model  # noqa: E402

CONFIG = ModelConfig(
    vocab_size=11, context_length=9, n_layer=2, n_head=4, d_model=12, d_ff=10, activation="silu", position="rotary",
    norm="rms_norm", feed_forward="gated", bias=False, head_size=4, logit_cap=3.0,
)  # fmt: skip
WEIGHTS = lively_weights(CONFIG, 1, "float64")
TOKENS = np.random.default_rng(0).integers(11, size=(2, 9))
X, Y = TOKENS[:, :-1].copy(), TOKENS[:, 1:].copy()
SOME = np.where(np.arange(8) % 3 == 0, NO_TARGET, Y)


@pytest.fixture(params=[11, 33, 1000], ids=["a row", "three rows", "all rows"])
def in_blocks(request, monkeypatch):
    """Hold so few logits at once."""
    for module in (numpy_llm.losses, numpy_llm.model, torch_llm.losses, torch_llm.model):
        monkeypatch.setattr(module, "MAX_LOGITS", request.param)


@pytest.mark.parametrize("targets", [Y, SOME], ids=["all count", "some count"])
def test_blocks_change_nothing(in_blocks, targets):
    """Loss and every gradient are those of all logits at once, the twin's too."""
    model = GPT(CONFIG, WEIGHTS)
    _, wanted, cache = model.forward(X, targets)
    gradients = model.backward(cache)
    loss, cache = model.loss(X, targets)
    assert loss == pytest.approx(wanted, rel=1e-14)
    found = model.backward(cache)
    np.testing.assert_allclose(found.flat, gradients.flat, rtol=0, atol=1e-14)
    twin = torch_llm.GPT(CONFIG, WEIGHTS)
    loss = twin.loss(torch.tensor(X), torch.tensor(targets))
    assert loss.item() == pytest.approx(wanted, rel=1e-14)
    loss.backward()
    for name, weight in twin.named_parameters():
        np.testing.assert_allclose(weight.grad.numpy(), gradients[name], rtol=0, atol=1e-14)


def test_the_last_targets_alone(in_blocks):
    """With fewer targets than tokens the loss is that of the last ones."""
    logits, _, _ = GPT(CONFIG, WEIGHTS).forward(X)
    wanted, _ = numpy_llm.losses.cross_entropy_forward(logits[:, -3:], Y[:, -3:])
    loss, cache = GPT(CONFIG, WEIGHTS).loss(X, Y[:, -3:])
    assert cache is None
    assert loss == pytest.approx(wanted, rel=1e-14)
    twin = torch_llm.GPT(CONFIG, WEIGHTS).loss(torch.tensor(X), torch.tensor(Y[:, -3:].copy()))
    assert twin.item() == pytest.approx(wanted, rel=1e-14)


def test_how_large_a_cache_is():
    """Keys and values of K heads in every layer, of a window at most where there is one."""
    llama = preset("llama-3.2-1b", vocab_size=9)
    assert kv_cache_numbers(llama, 131_072) * 4 == 8_589_934_592  # bytes: the whole context
    gemma = preset("gemma-3-270m", vocab_size=9)
    assert kv_cache_numbers(gemma, 32_768) == 2 * 1 * 256 * (15 * 512 + 3 * 32_768)
    assert kv_cache_numbers(gemma, 100) == 2 * 1 * 256 * 18 * 100
