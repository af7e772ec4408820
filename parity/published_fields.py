"""Small models of `transformers` made from the fields of a config.json, and what import makes of them."""

from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np

import numpy_llm
from data.tokenizers import encoding_of
from harness.exchange.families import FAMILIES
from harness.exchange.published import Published, import_model
from harness.training.checkpoint import Checkpoint
from tests.harness.family_fields import CLASSES


class Held(NamedTuple):
    """A tensor of `Published.stored` that no file holds."""

    value: np.ndarray
    path: Path = Path("memory")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> str:
        return {8: "F64", 4: "F32"}[self.value.itemsize]

    @property
    def float_dtype(self) -> np.dtype:
        return self.value.dtype

    def read(self) -> np.ndarray:
        return self.value


def make(fields: dict, seed: int = 3):
    """The model of `transformers` that these fields describe, of PyTorch's default dtype, in evaluation.

    Its weights are so large that each term matters: norms are not 1, biases not 0.
    """
    import torch
    import transformers

    names = CLASSES[fields["model_type"]]
    settings, kind = (getattr(transformers, name) for name in names)
    # of a copy: they write into nested objects
    config = settings.from_dict(deepcopy(fields), attn_implementation="eager")
    model = kind(config).to(torch.get_default_dtype()).eval()
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = ("norm" in name or ".ln_" in name) and name.endswith("weight")
            plain = norm and not fields["model_type"].startswith("gemma")
            draws = random.normal(1.0 if plain else 0.0, 0.3 if weight.ndim == 1 else 0.5, weight.shape)
            weight.copy_(torch.from_numpy(draws))
    return model


def logits(model, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(tokens))[0].numpy()


def imported(fields: dict, model) -> Checkpoint:
    """The same model as import reads it."""
    stored = {name: Held(value.numpy()) for name, value in model.state_dict().items()}
    published = Published(Path("memory"), deepcopy(fields), stored)
    return import_model(published, lambda: encoding_of("bytes", [b"a", b"b"]))


def our_logits(fields: dict, model, tokens: np.ndarray) -> np.ndarray:
    """Of the NumPy twin, on import of the model."""
    checkpoint = imported(fields, model)
    assert checkpoint.training["model_type"] in FAMILIES
    found, _, _ = numpy_llm.GPT(checkpoint.config, checkpoint.weights).forward(tokens)
    return found
