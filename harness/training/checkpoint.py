"""Checkpoints: all that a run needs to continue, or a model to be used, in one folder.

    config.json             format version, model configuration, training settings, step, hashes
    model.safetensors       the weights under their dotted names
    optimizer.safetensors   Adam's moments, "m." and "v." before the name of each weight that is trained (only while
                            training)
    tokenizer.tiktoken      the tokenizer's ranks, unless they are tiktoken's own; or tokenizer.published.json

A checkpoint is written beside its final place, flushed and renamed, so a complete one exists at every instant. Every
file is verified by its hash when read. Nothing is ever unpickled.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import numpy as np

from contract.checks import check_whole
from contract.config import ModelConfig
from contract.errors import ConfigError, UserError, command_line, readable
from contract.files import WriteError, replace_folder, sha256_of
from contract.schema import pop_checksum, read_json, require, write_record
from contract.staging import replaced_folders
from contract.weights import Weights, check_tensors, check_weights, frozen_names, weight_table
from data.tokenizers import Tokenizer, identity, load_tokenizer, save_tokenizer, tokenizer_file
from harness.training.tensor_file import StoredTensor, StoredTensors, save_tensors, stored_tensors

FORMAT = "twin-gpt checkpoint"
FORMAT_VERSION = 1
MAX_READ_ATTEMPTS = 20  # a writer may replace the checkpoint while we read
CONFIG, MODEL, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
OPTIMIZER = "optimizer.safetensors"
ANOTHER = "use another checkpoint"
_COUNT = range(2**63)
_TEXTS = "freeze dtype source revision model_type from backend device tokens tokens_relative tokens_sha256"
_COUNTS = "threads evaluated best_step train_tokens validation_tokens final_validation_tokens new_tokens"
_RECORD = {
    "format": str,
    "format_version": int,
    "model": dict,
    "tokenizer": {"name": str, "vocab_size": _COUNT, "sha256": str},
    "step": _COUNT,
    "validation_loss": (float, None),
    "training": {
        **dict.fromkeys(_TEXTS.split(), (str, None)),
        **dict.fromkeys(_COUNTS.split(), (_COUNT, None)),
        **dict.fromkeys(("best_loss", "final_validation_loss"), (float, None)),
        **dict.fromkeys(("compile", "conversations"), (bool, None)),
    },
    "files": {str: str},
}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

    weights: by dotted name; tokenizer: that the model was trained with; step: optimiser steps done
    training: the run's settings, as JSON values
    optimizer: Adam's moments by name, or None if not loaded or not kept; loaded, each is read when it is asked for
    validation_loss: nats per token on the held-out split at this step, None before the first evaluation
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    step: int = 0
    training: dict = field(default_factory=dict)
    optimizer: Mapping[str, np.ndarray] | None = None
    validation_loss: float | None = None


def save_checkpoint(folder: str | PathLike, checkpoint: Checkpoint):
    """Write `checkpoint` to `folder`, replacing a checkpoint there; other files in it are kept.

    Raises ConfigError for a checkpoint that could not be read again, UserError if `folder` holds anything but a
    checkpoint or cannot be written; it is then unchanged.
    """
    checkpoint = _checked(checkpoint)
    try:
        with replace_folder(folder, checkpoint_files) as fresh:
            _write_files(fresh, checkpoint)
    except WriteError as error:
        way = "free disk space or fix permissions, then continue with --resume"
        if checkpoint_exists(Path(folder)):
            way = f"the one before is kept; {way}"
        what = f"the checkpoint of step {checkpoint.step} "
        raise WriteError(folder, error.reason, what=what, way=way) from error


def checkpoint_files(folder: Path) -> set[str] | None:
    """The names of a checkpoint's own files; None for a folder that is no checkpoint of this program."""
    with suppress(OSError, ValueError):
        record = read_json(folder / CONFIG, {"format": str, "files": {str: str}})
        names = {CONFIG, *record["files"]}
        plain = all(Path(name).name == name for name in names)  # a foreign file may claim what lies elsewhere
        return names if record["format"] == FORMAT and plain else None


def load_checkpoint(folder: str | PathLike, *, with_optimizer: bool = False) -> Checkpoint:
    """Read and verify the checkpoint in `folder`; `with_optimizer` reads Adam's moments too.

    If a training process replaces it meanwhile, it is read again, so its files are never mixed.
    Raises UserError naming the file that is missing, damaged, of another format version, or not finite.
    """
    folder = Path(folder)
    for _ in range(MAX_READ_ATTEMPTS):
        place = next((place for place in _places(folder) if (place / CONFIG).is_file()), None)
        if place is None:
            raise UserError(
                f"no checkpoint at {folder}: {CONFIG} is missing; name the folder of a training run"
            )
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
    path = _verified(folder, MODEL, record)
    stored = stored_tensors(path)
    if config.n_layer > len(stored):  # before a table of many layers is built
        raise UserError(
            f"{folder / CONFIG} says n_layer {config.n_layer:,}, but {MODEL} has {len(stored)} tensors; {ANOTHER}"
        )
    _require_shapes(path, stored, _shapes(config))
    weights = Weights.zeros(config, next(iter(stored.values())).float_dtype)
    _copy(stored, weights)
    optimizer = None
    if with_optimizer:
        if OPTIMIZER not in record["files"]:
            raise UserError(f"{folder} holds no optimizer state, so its training cannot go on from there")
        path, moments = _verified(folder, OPTIMIZER, record), _moments(config, record["training"])
        # An earlier version kept moments of frozen weights, too, which stayed 0.
        unused = _moments(config, {}).keys() - moments.keys()
        stored = {name: tensor for name, tensor in stored_tensors(path).items() if name not in unused}
        _require_shapes(path, stored, moments)
        optimizer = StoredTensors(path, {name: stored[name] for name in moments})
        for name, value in optimizer.items():
            _require_finite(path, name, value)
    tokenizer, loss = _read_tokenizer(folder, record), record.get("validation_loss")
    return Checkpoint(config, weights, tokenizer, record["step"], record["training"], optimizer, loss)


def _written(folder: Path) -> tuple[int, int] | None:
    """What identifies this version of a checkpoint; None if there is none."""
    with suppress(FileNotFoundError):
        status = (folder / CONFIG).stat()
        return status.st_ino, status.st_mtime_ns


def checkpoint_exists(folder: Path) -> bool:
    """Whether a checkpoint is at `folder`, even if its replacement was interrupted."""
    return any((place / CONFIG).is_file() for place in _places(folder))


# Writing


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with plain JSON numbers. Raises ConfigError for one that could not be read again."""
    for name, kind, what in (("config", ModelConfig, "ModelConfig"), ("tokenizer", Tokenizer, "Tokenizer")):
        if not isinstance(getattr(checkpoint, name, None), kind):
            raise ConfigError(f"a checkpoint's {name} must be a {what}, got {checkpoint!r:.60}")
    check_weights(checkpoint.weights, checkpoint.config)
    check_whole("a checkpoint's step", checkpoint.step, 0)
    loss = checkpoint.validation_loss
    try:
        found = {
            "validation_loss": None if loss is None else float(loss),
            "training": json.loads(json.dumps(checkpoint.training, default=lambda value: value.tolist())),
        }
        require(found, {name: _RECORD[name] for name in found})
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"a checkpoint's training settings and loss must be JSON values ({error})"
        ) from None
    if checkpoint.optimizer is not None:
        check_tensors("moments", checkpoint.optimizer, _moments(checkpoint.config, found["training"]))
    return replace(checkpoint, step=int(checkpoint.step), **found)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in weight_table(config).items()}


def _moments(config: ModelConfig, training: dict) -> dict[str, tuple[int, ...]]:
    """The shapes of Adam's moments, of the weights that this training does not leave as they are."""
    shapes = _shapes(config)
    frozen = set(frozen_names(shapes, training.get("freeze") or ""))
    return {f"{m}.{name}": shape for m in "mv" for name, shape in shapes.items() if name not in frozen}


def _write_files(folder: Path, checkpoint: Checkpoint):
    save_tensors(folder / MODEL, checkpoint.weights, _shapes(checkpoint.config))
    if checkpoint.optimizer is not None:
        moments = _moments(checkpoint.config, checkpoint.training)
        save_tensors(folder / OPTIMIZER, checkpoint.optimizer, moments)
    save_tokenizer(checkpoint.tokenizer, folder / TOKENIZER)
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": checkpoint.config.to_dict(),
        "tokenizer": identity(checkpoint.tokenizer),
        "step": checkpoint.step,
        "validation_loss": checkpoint.validation_loss,
        "training": checkpoint.training,
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    write_record(folder / CONFIG, record)


# Reading


def _places(folder: Path) -> Iterator[Path]:
    """Where the checkpoint may be: at its path, or beside it if its replacement was interrupted.

    The folder comes twice, since its replacement may end in between. "NAME.old" is where earlier releases left the old
    one after a power failure.
    """
    yield folder
    yield from replaced_folders(folder)
    if folder.name:  # "." has none
        yield folder.with_name(f"{folder.name}.old")
    yield folder


def _read_config(folder: Path) -> dict:
    path = folder / CONFIG
    with readable(path, ANOTHER, damaged="is damaged or not a checkpoint's"):
        record = read_json(path)
    if "model_type" in record and not {"format", "format_version"} <= record.keys():
        raise UserError(f"{folder} holds a published model, no checkpoint; {import_advice(folder)}")
    kind, version = record.get("format"), record.get("format_version")
    if kind != FORMAT or version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of format {kind!r} version {version!r}, but this program reads {FORMAT!r} "
            f"version {FORMAT_VERSION}; use the release that wrote it"
        )
    if not pop_checksum(record):
        raise UserError(f"{path} does not match its checksum: it was changed or damaged; {ANOTHER}")
    with readable(path, ANOTHER, damaged="does not describe a checkpoint"):
        require(record, _RECORD)
    return record


def import_advice(source: Path) -> str:
    """What to do with a published model, a folder, a GGUF file or a name on the hub."""
    out = Path("runs") / source.name.removesuffix(".gguf")
    return f"import it first: {command_line('import', source, '--out', out)}"


def _verified(folder: Path, name: str, record: dict) -> Path:
    """The path of a checkpoint's file, whose hash is right."""
    path = folder / name
    if not path.exists():
        raise UserError(f"{path} is missing from the checkpoint; {ANOTHER}")
    with readable(path, ANOTHER):
        found = sha256_of(path)
    if found != record["files"].get(name):
        raise UserError(
            f"{path} does not match its hash ({path.stat().st_size:,} bytes): it was cut short or damaged; {ANOTHER}"
        )
    return path


def _require_shapes(path: Path, stored: Mapping[str, StoredTensor], expected: dict[str, tuple]):
    found = {name: tensor.shape for name, tensor in stored.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            odd = f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
            raise UserError(f"{path} does not fit its configuration: {odd}; {ANOTHER}")


def _copy(stored: Mapping[str, StoredTensor], target: Mapping[str, np.ndarray]):
    # Largest first: while it is mapped, the memory for the others is not taken yet.
    for name in sorted(target, key=lambda name: -target[name].size):
        target[name][...] = stored[name].read()
        _require_finite(stored[name].path, name, target[name])


def _require_finite(path: Path, name: str, value: np.ndarray):
    if not np.isfinite(value).all():
        raise UserError(f"{path}: {name} contains nan or infinity: the file is corrupt; {ANOTHER}")


def _read_tokenizer(folder: Path, record: dict) -> Tokenizer:
    wanted = record["tokenizer"]
    path = tokenizer_file(folder / TOKENIZER, wanted["name"])
    if path is not None:
        _verified(folder, path.name, record)
    tokenizer = load_tokenizer(folder / TOKENIZER, wanted["name"])
    if identity(tokenizer) != wanted:
        raise ConfigError(f"the tokenizer of {folder} is not the one that its model was trained with")
    return tokenizer
