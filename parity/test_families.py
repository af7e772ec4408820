"""The modern families against Hugging Face's own classes: logits, loss, every gradient, and greedy texts."""

import numpy as np
import pytest

from parity.cases import Case
from parity.compare import Comparison, compare
from parity.families import FAMILIES, family_config, lifted, published_gradients, published_model

transformers = pytest.importorskip("transformers", reason="needs transformers")
torch = pytest.importorskip("torch", reason="needs PyTorch")

import numpy_llm  # noqa: E402
import torch_llm  # noqa: E402

T, NEW_TOKENS = 32, 64  # past the window, and past the knee of Llama 3's scaling
every_family = pytest.mark.parametrize("title", FAMILIES)


def case_of(title):
    return Case(title, family_config(title), B=2, T=T, symbols=19)


def their_pass(title, inputs, dtype):
    """Their logits and loss, and their gradients by our names."""
    model = published_model(title, inputs.weights, dtype)
    logits = model(torch.tensor(inputs.tokens)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(inputs.targets).flatten())
    loss.backward()
    found = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    return found, published_gradients(title, model)


def hold(title, dtype):
    case = case_of(title)
    inputs = case.inputs(dtype)
    logits, loss, cache = (model := numpy_llm.GPT(case.config, inputs.weights)).forward(
        inputs.tokens, inputs.targets
    )
    gradients = model.backward(cache)
    found, theirs = their_pass(title, inputs, dtype)
    rows = compare("family output", {"logits": logits, "loss": np.asarray(loss)}, found, dtype)
    rows += compare("family gradient", gradients, theirs, dtype)
    Comparison(title, dtype, case.seed, rows).require()


@every_family
def test_as_published(title):
    """In float32, which their classes compute norms, softmax and angles in, whatever the model is in."""
    hold(title, "float32")


@every_family
def test_with_casts_lifted(title):
    """In float64, with their casts to float32 lifted and none of their formulas touched."""
    with lifted():
        hold(title, "float64")


def test_lifting_ends():
    """Outside `lifted`, their modules compute in float32 again, and PyTorch is as it was."""
    from transformers.models.llama import modeling_llama

    inputs = case_of("Llama").inputs("float64")
    with lifted():
        assert modeling_llama.torch.float32 is torch.float64
        exact, _ = their_pass("Llama", inputs, "float64")
    assert modeling_llama.torch is torch
    assert torch.get_default_dtype() is torch.float32
    assert torch.ones(1).double().float().dtype is torch.float32
    rounded, _ = their_pass("Llama", inputs, "float64")
    error = np.abs(rounded["logits"] - exact["logits"]).max()
    assert error > 1e-9, "their casts are still lifted"


@every_family
def test_greedy_texts(title):
    """64 greedy tokens past the window, with both twins' caches and theirs, in float64: the same."""
    case = case_of(title)
    config = case.config
    inputs = case.inputs("float64")
    prompt = inputs.tokens[0, :9].tolist()
    with lifted():
        model = published_model(title, inputs.weights, "float64")
        tokens = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
        theirs = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)[0, len(prompt) :]
    for twin in (numpy_llm, torch_llm):
        ours = twin.GPT(config, inputs.weights).generate(prompt, NEW_TOKENS, temperature=0)
        assert ours == theirs.tolist(), twin.__name__
