"""Checkpoints: everything that a run needs to go on, or a model to be used, in one folder.

    config.json             format version, model configuration, training settings, step, hashes
    model.safetensors       the weights under their dotted names
    optimizer.safetensors   Adam's moments, "m." and "v." before each weight's name (only while training)
    tokenizer.tiktoken      the tokenizer's ranks, unless they are tiktoken's own

A checkpoint is written beside its final place, flushed to disk and renamed, so that a complete one exists at
every instant; every file is verified by its hash when it is read. Nothing is ever unpickled.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import tiktoken
from safetensors import SafetensorError
from safetensors.numpy import save_file

from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.weights import Weights, weight_table
from data.tokenizers import identity, load_ranks, open_tokenizer, save_ranks
from harness.tensor_file import StoredTensor, stored_tensors

FORMAT = "twin-gpt checkpoint"
FORMAT_VERSION = 1
READINGS = 20  # of a checkpoint that is replaced while it is read
CONFIG, MODEL, OPTIMIZER, RANKS = (
    "config.json",
    "model.safetensors",
    "optimizer.safetensors",
    "tokenizer.tiktoken",
)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

    config: the model's configuration
    weights: the weights by dotted name
    tokenizer: the encoding that the model was trained with
    step: optimiser steps done
    training: the run's settings, as JSON values
    optimizer: Adam's moments by name, or None where they were not asked for or not kept
    validation_loss: nats per token on the held-out split at this step, None before the first evaluation
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    tokenizer: tiktoken.Encoding
    step: int = 0
    training: dict = field(default_factory=dict)
    optimizer: Mapping[str, np.ndarray] | None = None
    validation_loss: float | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint):
    """Write `checkpoint` to `folder`, in place of the checkpoint that stands there.

    Raises UserError where the disk is full or the place cannot be written; the earlier checkpoint stays.
    """
    fresh, old = _beside(folder, "new"), _beside(folder, "old")
    try:
        _settle(folder)
        fresh.mkdir(parents=True)
        _write_files(fresh, checkpoint)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _flush_folder(folder.parent)
        _discard(old)
    except (OSError, SafetensorError) as error:
        _settle(folder)
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2].partition(" (os error")[0]
        kept = "; the one before is kept" if checkpoint_exists(folder) else ""
        raise UserError(
            f"{folder}: the checkpoint of step {checkpoint.step} cannot be written ({reason}){kept}; see to room and "
            "write access there, and go on with --resume, or start again where no checkpoint was written yet"
        ) from error


def load_checkpoint(folder: Path, *, with_optimizer: bool = False) -> Checkpoint:
    """Read and verify the checkpoint in `folder`; `with_optimizer` reads Adam's moments too.

    A checkpoint that a training process replaces meanwhile is read again, so its files are never mixed.
    Raises UserError naming the file that is missing, damaged or of another format version.
    """
    for _ in range(READINGS):
        place = _complete(folder)
        before = _written(place)
        try:
            checkpoint = _load(place, with_optimizer)
        except (UserError, FileNotFoundError):
            if before is not None and _written(place) == before:
                raise
        else:
            if _written(place) == before:
                return checkpoint
    raise UserError(
        f"{folder} is replaced again before it can be read; try again when its training has ended"
    )


def _load(folder: Path, with_optimizer: bool) -> Checkpoint:
    record = _read_config(folder)
    config = ModelConfig.from_dict(record["model"])
    shapes = {name: spec.shape for name, spec in weight_table(config).items()}
    stored = _verified_tensors(folder, MODEL, record, shapes)
    weights = Weights.zeros(config, next(iter(stored.values())).float_dtype)
    _copy(stored, weights)
    optimizer = None
    if with_optimizer:
        if OPTIMIZER not in record["files"]:
            raise UserError(f"{folder} holds no optimizer state, so its training cannot go on from there")
        moments = {f"{moment}.{name}": shape for moment in "mv" for name, shape in shapes.items()}
        stored = _verified_tensors(folder, OPTIMIZER, record, moments)
        optimizer = {name: np.empty(shape, stored[name].float_dtype) for name, shape in moments.items()}
        _copy(stored, optimizer)
    return Checkpoint(
        config=config,
        weights=weights,
        tokenizer=_read_tokenizer(folder, record),
        step=record["step"],
        training=record["training"],
        optimizer=optimizer,
        validation_loss=record["validation_loss"],
    )


def _written(folder: Path) -> tuple[int, int] | None:
    """What tells a checkpoint from one that has taken its place; None where none stands there."""
    try:
        status = (folder / CONFIG).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def checkpoint_exists(folder: Path) -> bool:
    """Whether a checkpoint stands at `folder`, one whose replacement was interrupted included."""
    return any((place / CONFIG).is_file() for place in _places(folder))


def remove_checkpoint(folder: Path):
    """Delete the checkpoint at `folder` and what an interrupted replacement may have left beside it."""
    for place in (folder, _beside(folder, "new"), _beside(folder, "old")):
        _discard(place)


# Writing


def _write_files(folder: Path, checkpoint: Checkpoint):
    save_file(_contiguous(checkpoint.weights), folder / MODEL)
    if checkpoint.optimizer is not None:
        save_file(_contiguous(checkpoint.optimizer), folder / OPTIMIZER)
    if checkpoint.tokenizer.name != "gpt2":
        save_ranks(checkpoint.tokenizer, folder / RANKS)
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": checkpoint.config.to_dict(),
        "tokenizer": identity(checkpoint.tokenizer),
        "step": checkpoint.step,
        "validation_loss": checkpoint.validation_loss,
        "training": checkpoint.training,
        "files": {path.name: _hash_file(path) for path in sorted(folder.iterdir())},
    }
    record["checksum"] = _checksum(record)
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    _flush_folder(folder)


def _contiguous(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _settle(folder: Path):
    """Put in place what an interrupted `save_checkpoint` left, so that the next can start cleanly."""
    fresh, old = _beside(folder, "new"), _beside(folder, "old")
    if not folder.exists() and old.exists():
        old.rename(folder)
    for leftover in (fresh, old):
        _discard(leftover)


def _discard(folder: Path):
    # The configuration first: without it nobody takes a folder that is half deleted for a checkpoint.
    with suppress(OSError):
        (folder / CONFIG).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _flush_folder(folder: Path):
    if os.name == "posix":  # Windows cannot open a folder, and flushes renames by itself
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# Reading


def _places(folder: Path) -> tuple[Path, ...]:
    """Where the checkpoint may stand; the folder once more, as a replacement may be done between two looks."""
    return folder, _beside(folder, "old"), folder


def _complete(folder: Path) -> Path:
    """The folder itself or, where it was being replaced when the power went, the copy beside it."""
    for place in _places(folder):
        if (place / CONFIG).is_file():
            return place
    raise UserError(f"no checkpoint at {folder}: {CONFIG} is missing; name the folder of a training run")


def _read_config(folder: Path) -> dict:
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kind, version = record["format"], record["format_version"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise UserError(f"{path} is damaged or not a checkpoint's; use another checkpoint") from None
    if kind != FORMAT or version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of format {kind!r} version {version!r}, but this program reads {FORMAT!r} "
            f"version {FORMAT_VERSION}; use the release that wrote it"
        )
    if record.pop("checksum", None) != _checksum(record):
        raise UserError(
            f"{path} does not match its checksum: it was changed or damaged; use another checkpoint"
        )
    return record


def _verified_tensors(
    folder: Path, name: str, record: dict, shapes: dict[str, tuple]
) -> dict[str, StoredTensor]:
    _verify(folder, name, record)
    stored = stored_tensors(folder / name)
    found = {name: tensor.shape for name, tensor in stored.items()}
    if found != shapes:
        odd = sorted(key for key in found.keys() | shapes.keys() if found.get(key) != shapes.get(key))
        raise UserError(
            f"{folder / name} does not fit its configuration: {odd[0]} is {found.get(odd[0], 'missing')}, "
            f"wanted {shapes.get(odd[0], 'none')}"
        )
    return stored


def _copy(stored: Mapping[str, StoredTensor], target: Mapping[str, np.ndarray]):
    # The largest first: while it is mapped, the memory that the others will fill is not taken yet.
    for name in sorted(target, key=lambda name: -target[name].size):
        target[name][...] = stored[name].read()


def _read_tokenizer(folder: Path, record: dict) -> tiktoken.Encoding:
    wanted = record["tokenizer"]
    if RANKS in record["files"]:
        _verify(folder, RANKS, record)
        tokenizer = load_ranks(folder / RANKS, name=wanted["name"])
    else:
        tokenizer = open_tokenizer(wanted["name"])
    if identity(tokenizer) != wanted:
        raise ConfigError(f"the tokenizer of {folder} is not the one that its model was trained with")
    return tokenizer


def _verify(folder: Path, name: str, record: dict):
    path = folder / name
    try:
        found = _hash_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing from the checkpoint; use another checkpoint") from None
    if found != record["files"].get(name):
        raise UserError(
            f"{path} does not match its hash ({path.stat().st_size:,} bytes): it was cut short or damaged; "
            "use another checkpoint"
        )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()


def _checksum(record: dict) -> str:
    return _hash(json.dumps(record, sort_keys=True).encode())
