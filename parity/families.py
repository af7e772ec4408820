"""Hugging Face's classes of the modern families as witnesses: code that nobody here wrote.

Their norms, softmax and rotary angles are computed in float32 whatever the model's type. So they are held against the
twins twice: in float32 as they are, and in float64 with those casts lifted (`lifted`), where all formulas stay theirs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from unittest.mock import patch

import numpy as np

import numpy_llm
from contract.config import ModelConfig
from harness.exchange import families as published
from parity.cases import FAMILIES, family_case
from parity.compare import Comparison, compare

_CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2", "gemma3": "Gemma3",
}  # fmt: skip


def published_model(title: str, weights, dtype: str):
    """Hugging Face's model of one of `FAMILIES` with these weights, its attention written out; in evaluation."""
    import torch
    import transformers

    family, _ = FAMILIES[title]
    config, text = family_case(title).config, "Text" if family == "gemma3" else ""
    name = _CLASSES[family]
    fields = published.FAMILIES["gemma3_text" if family == "gemma3" else family].published_config(
        config, dtype
    )
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    settings = getattr(transformers, f"{name}{text}Config")(**fields | ends, attn_implementation="eager")
    model = getattr(transformers, f"{name}ForCausalLM")(settings).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for ours, theirs in _places(family, config).items():
            rows = weights[ours]
            for parameter in map(model.get_parameter, theirs):
                parameter.copy_(torch.tensor(rows[: len(parameter)]))
                rows = rows[len(parameter) :]
    return model


def _places(family: str, config: ModelConfig) -> dict[str, list[str]]:
    """Our name of each weight -> theirs, whose rows ours holds one below the other."""
    theirs = published.FAMILIES["gemma3_text" if family == "gemma3" else family]
    return {
        ours: [name if name == theirs.output else theirs.prefix + name for name in place.names]
        for ours, place in theirs.published_places(config).items()
    }


@contextmanager
def lifted() -> Iterator[None]:
    """Inside, Hugging Face's modules compute in float64 what they cast to float32; no formula of theirs is touched.

    Their name `torch` stands for a module whose float32 is float64, and `Tensor.float` gives float64. A model must be
    made inside too, since it computes its frequencies and scales when it is made.
    """
    import torch

    class Lifted(ModuleType):
        float32 = float = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    modules = [f"{name}.modeling_{name}" for name in _CLASSES]
    with ExitStack() as stack:
        for module in [
            *(import_module(f"transformers.models.{name}") for name in modules),
            import_module("transformers.modeling_rope_utils"),
        ]:
            stack.enter_context(patch.object(module, "torch", Lifted("torch")))
        stack.enter_context(patch.object(torch.Tensor, "float", torch.Tensor.double))
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def check_families(twins):
    """Logits, loss and every weight's gradient of each family, in float64 with their casts lifted."""
    with lifted():
        for title in FAMILIES:
            compare_family(title, "float64", twins.reference).require()


def compare_family(title: str, dtype: str, package: ModuleType = numpy_llm) -> Comparison:
    """One family's logits, loss and gradients beside Hugging Face's."""
    case = family_case(title)
    inputs = case.inputs(dtype)
    model = package.GPT(case.config, inputs.weights)
    logits, loss, cache = model.forward(inputs.tokens, inputs.targets)
    found, gradients = published_pass(title, inputs, dtype)
    rows = compare("family output", {"logits": logits, "loss": np.asarray(loss)}, found, dtype)
    rows += compare("family gradient", model.backward(cache), gradients, dtype)
    return Comparison(title, dtype, case.seed, rows)


def published_pass(title: str, inputs, dtype: str) -> tuple[dict, dict]:
    """returns: their logits and loss, and their gradients by our names in our layout"""
    import torch

    family, _ = FAMILIES[title]
    model = published_model(title, inputs.weights, dtype)
    logits = model(torch.tensor(inputs.tokens)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(inputs.targets).flatten())
    loss.backward()
    gradients = {
        ours: np.concatenate([model.get_parameter(name).grad.numpy() for name in theirs])
        for ours, theirs in _places(family, family_case(title).config).items()
    }
    return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}, gradients
