"""The modern families against Hugging Face's own classes: logits, loss, every gradient, and greedy texts."""

import numpy as np
import pytest

from parity.cases import FAMILIES, family_case
from parity.families import compare_family, lifted, published_model, published_pass

transformers = pytest.importorskip("transformers", reason="needs transformers")
torch = pytest.importorskip("torch", reason="needs PyTorch")

import numpy_llm  # noqa: E402
import torch_llm  # noqa: E402

NEW_TOKENS = 64  # past the window
every_family = pytest.mark.parametrize("title", FAMILIES)


@every_family
def test_as_published(title):
    """In float32, which their classes compute norms, softmax and angles in, whatever the model is in."""
    comparison = compare_family(title, "float32")
    comparison.require()
    assert not comparison.diverging


@every_family
def test_with_casts_lifted(title):
    """In float64, with their casts to float32 lifted and none of their formulas touched."""
    with lifted():
        comparison = compare_family(title, "float64")
    comparison.require()
    assert not comparison.diverging


def test_lifting_ends():
    """Outside `lifted`, their modules compute in float32 again, and PyTorch is as it was."""
    from transformers.models.llama import modeling_llama

    inputs = family_case("Llama").inputs("float64")
    with lifted():
        assert modeling_llama.torch.float32 is torch.float64
        exact, _ = published_pass("Llama", inputs, "float64")
    assert modeling_llama.torch is torch
    assert torch.get_default_dtype() is torch.float32
    assert torch.ones(1).double().float().dtype is torch.float32
    rounded, _ = published_pass("Llama", inputs, "float64")
    error = np.abs(rounded["logits"] - exact["logits"]).max()
    assert error > 1e-9, "their casts are still lifted"


@every_family
def test_greedy_texts(title):
    """64 greedy tokens past the window, with both twins' caches and theirs, in float64: the same."""
    case = family_case(title)
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
