"""Writing a trained model for other programs: Hugging Face's layout, a PyTorch `state_dict`, or NumPy's npz.

huggingface   config.json, model.safetensors, vocab.json, merges.txt, tokenizer_config.json, generation_config.json
torch         model.pt (the twin's state_dict), config.json, tokenizer.tiktoken
npz           model.npz (the same names), config.json, tokenizer.tiktoken

Each comes with SHA256SUMS, by which a later export knows what it may replace.
"""

import json
from pathlib import Path

import numpy as np

from contract.errors import ConfigError, needs
from contract.files import exported_files, write_into, write_sums
from contract.weights import weight_table
from data.tokenizers import RANKS, save_ranks, save_tokenizer
from harness.exchange.families import gpt2
from harness.exchange.hub import CONFIG, MODEL
from harness.exchange.tokenizer_files import end_ids, tokenizer_texts
from harness.training.checkpoint import TOKENIZER, Checkpoint
from harness.training.tensor_file import save_tensors
from numpy_llm.positions import sinusoidal_positions


def export(checkpoint: Checkpoint, format: str, out: Path, *, overwrite: bool = False):
    """Write `checkpoint` to the folder `out`, which appears whole or not at all.

    format: one of FORMATS; overwrite: replace an earlier export at `out`
    Raises ConfigError for an unknown format, UserError if anything but an earlier export stands at `out`, it
    cannot be written, or the format cannot say what the model is.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; choose {', '.join(FORMATS)}")
    exported_files(out, overwrite)
    with write_into(out, lambda: exported_files(out, overwrite)) as fresh:
        FORMATS[format](checkpoint, fresh)
        if format != "huggingface":
            _write_json(fresh / CONFIG, checkpoint.config.to_dict())
            if checkpoint.tokenizer.name == "gpt2":  # whoever reads it may have no tiktoken
                save_ranks(checkpoint.tokenizer, (fresh / TOKENIZER).with_suffix(RANKS))
            else:
                save_tokenizer(checkpoint.tokenizer, fresh / TOKENIZER)
        write_sums(fresh)


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_huggingface(checkpoint: Checkpoint, folder: Path):
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    for name, text in tokenizer_texts(tokenizer, config.context_length).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    tensors = _published_tensors(checkpoint)
    dtype = next(iter(tensors.values())).dtype
    save_tensors(folder / MODEL, tensors, {"format": "pt"})  # transformers refuses a file without it
    _write_json(folder / CONFIG, gpt2.published_config(config, str(dtype)) | end_ids(tokenizer))


def _published_tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The tensors of GPT2LMHeadModel that compute what the checkpoint computes."""
    config, weights = checkpoint.config, checkpoint.weights
    terms = gpt2.published_terms(config)
    places, dtype = gpt2.published_places(terms), next(iter(weights.values())).dtype
    tensors = {}
    for name, spec in weight_table(terms).items():
        if name in weights:
            value = weights[name]
        elif name == "position_embedding.weight":
            value = sinusoidal_positions(config.context_length, config.d_model, dtype)
        else:
            value = np.zeros(spec.shape, dtype)  # adding it changes nothing: exactly what no bias computes
        published, transposed = places[name]
        prefix = "" if name == "output.weight" else gpt2.PREFIX
        tensors[prefix + published] = np.ascontiguousarray(value.T if transposed else value)
    return tensors


def _write_torch(checkpoint: Checkpoint, folder: Path):
    with needs("--format torch", "torch", ["torch"], ", or choose --format npz"):
        import torch
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.weights.items()}
    try:
        torch.save(tensors, folder / "model.pt")
    except RuntimeError as error:  # what PyTorch makes of a full disk
        reason = "PyTorch failed to write it: is the disk full?"
        raise OSError(None, reason, str(folder / "model.pt")) from error


def _write_npz(checkpoint: Checkpoint, folder: Path):
    np.savez(folder / "model.npz", **checkpoint.weights)


FORMATS = {"huggingface": _write_huggingface, "torch": _write_torch, "npz": _write_npz}
