"""Writing a trained model for other programs: Hugging Face's layout, a PyTorch `state_dict`, or NumPy's npz.

huggingface   config.json, model.safetensors, vocab.json, merges.txt, tokenizer_config.json, generation_config.json
torch         model.pt (the twin's state_dict), config.json, tokenizer.tiktoken
npz           model.npz (the same names), config.json, tokenizer.tiktoken

Each comes with SHA256SUMS, by which a later export knows what it may replace.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from contract.config import ModelConfig
from contract.errors import ConfigError, needs
from contract.files import exported_files, write_into, write_sums
from contract.weights import weight_table
from data.tokenizers import RANKS, save_ranks, save_tokenizer
from harness.exchange.families import family_for
from harness.exchange.families.place import row_counts
from harness.exchange.hub import CONFIG, MODEL
from harness.exchange.tokenizer_files import end_ids, tokenizer_texts
from harness.training.checkpoint import TOKENIZER, Checkpoint
from harness.training.lora import merged
from harness.training.tensor_file import stream_tensors
from numpy_llm.positions import sinusoidal_positions

STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


def export(
    checkpoint: Checkpoint, format: str, out: Path, *, dtype: str | None = None, overwrite: bool = False
):
    """Write `checkpoint` to the folder `out`, which appears whole or not at all; low-rank pairs are merged.

    format: one of FORMATS; overwrite: replace an earlier export at `out`
    dtype: of a huggingface export, one of STORED; None for the checkpoint's own
    Raises ConfigError for an unknown format or dtype, UserError if anything but an earlier export stands at `out`, it
    cannot be written, or the format cannot say what the model is.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; choose {', '.join(FORMATS)}")
    if dtype is not None and (dtype not in STORED or format != "huggingface"):
        raise ConfigError(
            f"--dtype is {', '.join(STORED)} of a huggingface export, got {dtype!r} for {format}; omit it"
        )
    exported_files(out, overwrite)
    checkpoint = merged(checkpoint)
    with write_into(out, lambda: exported_files(out, overwrite)) as fresh:
        FORMATS[format](checkpoint, fresh, dtype)
        if format != "huggingface":
            _write_json(fresh / CONFIG, checkpoint.config.to_dict())
            if checkpoint.tokenizer.name == "gpt2":  # whoever reads it may have no tiktoken
                save_ranks(checkpoint.tokenizer, (fresh / TOKENIZER).with_suffix(RANKS))
            else:
                save_tokenizer(checkpoint.tokenizer, fresh / TOKENIZER)
        write_sums(fresh)


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_huggingface(checkpoint: Checkpoint, folder: Path, dtype: str | None):
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    family = family_for(config, checkpoint.training.get("model_type"))
    for name, text in tokenizer_texts(tokenizer, config.context_length).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    dtype = dtype or str(next(iter(checkpoint.weights.values())).dtype)
    write_published(folder / MODEL, config, checkpoint.weights, family, dtype)
    _write_json(folder / CONFIG, family.published_config(config, dtype) | end_ids(tokenizer))


def write_published(path: Path, config: ModelConfig, weights: Mapping, family, dtype: str):
    """The tensors of the family's model that compute what this one computes, one after the other.

    weights: by our names; family: one of `harness.exchange.families`; dtype: one of STORED
    """
    terms = family.published_terms(config)
    places, table = family.published_places(terms), weight_table(terms)
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, place in places.items():
        for name, rows in zip(place.names, row_counts(place, terms, table[ours].shape), strict=True):
            shape = (rows, *table[ours].shape[1:])
            prefix = "" if name == family.output else family.prefix
            shapes[prefix + name] = shape[::-1] if place.transposed else shape

    def values() -> Iterator[np.ndarray]:
        for ours, place in places.items():
            value, start = _weight(ours, table[ours].shape, config, weights), 0
            for rows in row_counts(place, terms, value.shape):
                part = value[start : start + rows]
                yield part.T if place.transposed else part
                start += rows

    # transformers refuses a file that does not say its format
    stream_tensors(path, shapes, values(), STORED[dtype], {"format": "pt"})


def _weight(name: str, shape: tuple[int, ...], config: ModelConfig, weights: Mapping) -> np.ndarray:
    """A weight of the published model; where ours lacks it, what computes the same."""
    if name in weights:
        return weights[name]
    dtype = next(iter(weights.values())).dtype
    if name == "position_embedding.weight":
        return sinusoidal_positions(config.context_length, config.d_model, dtype)
    return np.zeros(shape, dtype)  # adding it changes nothing: exactly what no bias computes


def _write_torch(checkpoint: Checkpoint, folder: Path, dtype: None):
    with needs("--format torch", "torch", ["torch"], ", or choose --format npz"):
        import torch
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.weights.items()}
    try:
        torch.save(tensors, folder / "model.pt")
    except RuntimeError as error:  # what PyTorch makes of a full disk
        reason = "PyTorch failed to write it: is the disk full?"
        raise OSError(None, reason, str(folder / "model.pt")) from error


def _write_npz(checkpoint: Checkpoint, folder: Path, dtype: None):
    np.savez(folder / "model.npz", **checkpoint.weights)


FORMATS = {"huggingface": _write_huggingface, "torch": _write_torch, "npz": _write_npz}
