"""The first divergence of two models: Hugging Face's own class, traced by hooks, and the twin at the same weights.

Both run in float64, where two models that are the same agree to a dozen digits however deep they are. In float32 they
do not: PyTorch's log-softmax on a CPU adds up a row's exponentials one after another, and at a vocabulary of 49,152 all
gradients are off by some 1e-5 for it.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import ConfigError, UserError, needs
from data.tokenizers import encoding_of
from harness.exchange.hub import GGUF, find_source
from harness.exchange.huggingface_import import published_folder
from harness.exchange.published import import_model
from parity.golden.check import Report, compare_dump
from parity.golden.dumps import Dump
from parity.golden.hooked_names import translated, with_hooked
from parity.golden.making import make_pack
from parity.golden.packs import Pack, is_plain

OTHERS = ("transformers",)


class Compared(NamedTuple):
    """report: of a check of the model's tensors, "yours"; model: the name of its class"""

    report: Report
    model: str


def compare_with(other: str, source: str, *, B: int = 2, T: int | None = None, seed: int = 3) -> Compared:
    """Trace a published model in another program, and hold it against the twin.

    other: one of OTHERS; source: a folder as Hugging Face publishes models, or a name on the hub
    B, T: shape of the batch of random tokens; T as in `make_pack`; seed: of it

    Raises ConfigError for another program or source, UserError where the model cannot be read or is of no known family.
    """
    if other not in OTHERS:
        raise ConfigError(f"--against must be {', '.join(OTHERS)}, got {other}")
    with needs("--against transformers", "dev", ["torch", "transformers"]):
        import torch  # noqa: F401  tell what is missing before a model is fetched
        import transformers  # noqa: F401
    folder = find_source(source)
    if folder.suffix == GGUF and folder.is_file():
        raise UserError(f"{folder} is a GGUF file; name a folder with config.json and model.safetensors")
    return compare_folder(folder, twin_pack(folder, source, B=B, T=T, seed=seed))


def twin_pack(folder: Path, source: str, **settings) -> Pack:
    """What the NumPy twin computes from the model in `folder`, in memory. settings: B, T and seed of `make_pack`"""
    # Only ids are compared: no text is read.
    checkpoint = import_model(published_folder(folder), lambda: encoding_of("bytes", [b"\0"]), dropout=0.0)
    name = source if is_plain(source) else folder.resolve().name
    return make_pack(name, checkpoint.config, weights=checkpoint.weights, steps=0, precisions=(), **settings)


def compare_folder(folder: Path, pack: Pack) -> Compared:
    """A check of what hooks see of the model in `folder`, as `transformers` runs it, in float64."""
    import torch

    from parity.families import lifted

    with lifted():
        model = load_model(folder, torch.float64)
        dump = run_hooked(model, pack)
    return Compared(compare_dump(dump, pack, precision="float64"), type(model).__name__)


def load_model(folder: Path, dtype=None):
    """Hugging Face's model, in evaluation, its attention written out so that hooks see it. dtype: of PyTorch, None for
    float32
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    settings = {"dtype": dtype or torch.float32, "attn_implementation": "eager", "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            # Else the padding token's row would have no gradient, wherever the token stands.
            module.padding_idx = None
    return model


def run_hooked(model, pack: Pack) -> dict[str, np.ndarray]:
    """What hooks see of one of Hugging Face's models on the pack's batch, forward and backward, by the pack's names."""
    import torch

    from parity.golden.hooks import record

    tokens, targets = (torch.from_numpy(pack.tensors[name]) for name in ("tokens", "targets"))

    def run(model) -> dict:
        logits = model(tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        return {"logits": logits, "loss": loss}

    known = with_hooked(pack)
    dump = {name: value for name, value in record(model, run).items() if name in known}
    return translated(Dump(dump), pack).tensors
