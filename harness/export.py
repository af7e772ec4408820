"""Writing a trained model for other programs: Hugging Face's layout, a PyTorch `state_dict`, or NumPy's npz.

huggingface   config.json, model.safetensors, vocab.json, merges.txt, tokenizer_config.json, generation_config.json
torch         model.pt (the twin's state_dict), config.json, tokenizer.tiktoken
npz           model.npz (the same names), config.json, tokenizer.tiktoken
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import save_file

from contract.errors import ConfigError, UserError
from contract.weights import weight_table
from data.tokenizers import save_ranks
from data.vocabulary import END_OF_TEXT, FILE_NAMES, SETTINGS_FILE, vocabulary_files, vocabulary_of
from harness.checkpoint import RANKS, Checkpoint
from harness.huggingface import CONFIG, MODEL, PREFIX, published_config, published_places, published_terms
from numpy_llm.layers import sinusoidal_positions

FORMATS = ("huggingface", "torch", "npz")
GENERATION_CONFIG = "generation_config.json"
_FILES = {CONFIG, MODEL, SETTINGS_FILE, GENERATION_CONFIG, RANKS, "model.pt", "model.npz", *FILE_NAMES[0]}


def export(checkpoint: Checkpoint, format: str, out: Path, *, overwrite: bool = False):
    """Write `checkpoint` to the folder `out`, which appears whole or not at all.

    format: one of FORMATS; overwrite: replace an earlier export at `out`
    Raises ConfigError for an unknown format, UserError where something stands at `out` or the format cannot
    say what the model is.
    """
    writers: dict[str, Callable] = {
        "huggingface": _write_huggingface,
        "torch": _write_torch,
        "npz": _write_npz,
    }
    if format not in writers:
        raise ConfigError(f"unknown format {format!r}; choose {', '.join(FORMATS)}")
    _check_place(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        fresh, old = Path(staging) / "new", Path(staging) / "old"
        fresh.mkdir()
        writers[format](checkpoint, fresh)
        for path in fresh.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise


def _check_place(out: Path, overwrite: bool):
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    if not overwrite:
        raise UserError(f"{out} is not empty; replace it with --overwrite, or choose another --out")
    others = sorted(path.name for path in out.iterdir() if path.name not in _FILES or path.is_dir())
    if others:
        raise UserError(
            f"{out} holds {others[0]}, which no export wrote, so it is kept; choose another --out"
        )


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- huggingface ---


def _write_huggingface(checkpoint: Checkpoint, folder: Path):
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    for name, text in vocabulary_files(tokenizer, config.context_length).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    end_of_text = vocabulary_of(tokenizer).ids.get(END_OF_TEXT)
    tensors = _published_tensors(checkpoint)
    dtype = next(iter(tensors.values())).dtype
    save_file(tensors, folder / MODEL, metadata={"format": "pt"})  # transformers refuses a file without it
    fields = published_config(config, str(dtype), end_of_text)
    _write_json(folder / CONFIG, fields)
    ends = {name: fields[name] for name in ("bos_token_id", "eos_token_id")}
    _write_json(folder / GENERATION_CONFIG, ends)  # without it transformers makes one, with a warning


def _published_tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The tensors of GPT2LMHeadModel that compute what the checkpoint computes."""
    config, weights = checkpoint.config, checkpoint.weights
    terms = published_terms(config)
    places, dtype = published_places(terms), next(iter(weights.values())).dtype
    tensors = {}
    for name, spec in weight_table(terms).items():
        if name in weights:
            value = weights[name]
        elif name == "position_embedding.weight":
            value = sinusoidal_positions(config.context_length, config.d_model, dtype)
        else:
            value = np.zeros(spec.shape, dtype)  # adding it changes nothing: exactly what no bias computes
        published, transposed = places[name]
        prefix = "" if name == "output.weight" else PREFIX
        tensors[prefix + published] = np.ascontiguousarray(value.T if transposed else value)
    return tensors


# --- torch and npz ---


def _write_torch(checkpoint: Checkpoint, folder: Path):
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            "--format torch needs PyTorch, which is not installed; run: pip install -c constraints.txt "
            '-e ".[torch]", or choose --format npz'
        ) from None
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.weights.items()}
    torch.save(tensors, folder / "model.pt")
    _write_beside(checkpoint, folder)


def _write_npz(checkpoint: Checkpoint, folder: Path):
    np.savez(folder / "model.npz", **checkpoint.weights)
    _write_beside(checkpoint, folder)


def _write_beside(checkpoint: Checkpoint, folder: Path):
    _write_json(folder / CONFIG, checkpoint.config.to_dict())
    save_ranks(checkpoint.tokenizer, folder / RANKS)
