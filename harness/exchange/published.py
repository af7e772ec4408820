"""A published model, wherever it was read from, becomes a checkpoint: its tensors are matched, checked and copied."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.errors import UserError
from contract.weights import Weights, weight_table
from data.tokenizers import Tokenizer
from harness.exchange.families import family_of
from harness.exchange.families.place import row_counts
from harness.exchange.hub import CONFIG
from harness.training.checkpoint import Checkpoint
from harness.training.tensor_file import DTYPES, StoredTensor

WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name


class Published(NamedTuple):
    """What a published model's files say, before any of it is checked.

    where: the folder or file; fields: as in `config.json`
    stored: the tensors by their published names, each with `path`, `shape`, `dtype`, `float_dtype` and `read()`
    """

    where: Path
    fields: dict
    stored: dict[str, StoredTensor]


def import_model(
    published: Published,
    tokenizer: Callable[[], Tokenizer],
    *,
    origin: dict[str, str] | None = None,
    dropout: float | None = None,
    note: Callable[[str], None] = lambda line: None,
    report: Callable[[int, int, int, int], None] = lambda *counts: None,
) -> Checkpoint:
    """The model, ready to be saved as a checkpoint. Memory holds its weights and one tensor of the files.

    tokenizer: gives the model's tokenizer; called once the tensors are known to be the configuration's
    origin: what to record of where it came from; None for the name of `published.where`
    dropout: for later training, in place of the published rates
    note: called with a line for each thing that the user should know
    report: called with the weights done, all weights, and the bytes of both
    Raises UserError naming what is missing, extra, damaged, or computes another function.
    """
    where, fields, stored = published
    family = family_of(fields)
    config = family.config_from_published(fields, dropout, note)
    if config.n_layer > len(stored):  # before a table of many layers is built
        raise UserError(
            f"{where / CONFIG} says {family.layers_field} {config.n_layer:,}, but the weights are {len(stored)} "
            "tensors; get the files that belong together"
        )
    found, output = _match(published, family, config)
    text = tokenizer()
    _check_vocabulary(where, text.n_vocab, config.vocab_size, note)
    weights = _read_weights(found, family, config, note, report)
    if output is not None and not np.array_equal(output.read(), weights["token_embedding.weight"]):
        tied = family.published_places(config)["token_embedding.weight"].name
        raise UserError(
            f"{output.path}: {family.output} differs from {tied}, though tie_word_embeddings in {CONFIG} says that "
            "they are one; set it to false if the model was trained with two"
        )
    dtype = str(weights.flat.dtype)
    config, weights = family.finish(fields, config, weights, note)
    training = {"dtype": dtype, "model_type": fields["model_type"]}
    return Checkpoint(config, weights, text, training=training | (origin or {"source": where.resolve().name}))


def _check_vocabulary(where: Path, n_vocab: int, vocab_size: int, note):
    """Refuse a tokenizer with ids that the model lacks; tell of ids that stand for no text."""
    if n_vocab > vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {n_vocab:,} tokens, but vocab_size is {vocab_size:,}; get the files that "
            "belong to the model"
        )
    if n_vocab < vocab_size:
        note(f"the model knows {vocab_size:,} ids, the tokenizer {n_vocab:,}; the others stand for no text")


def _read_weights(stored: dict[str, StoredTensor], family, config: ModelConfig, note, report) -> Weights:
    """The weights in our layout. Raises UserError naming a tensor that holds nan or infinity."""
    weights = Weights.zeros(config, _dtype_of(stored, note))
    places, done = family.published_places(config), 0
    # Largest first: while it is read, the memory for the others is not taken yet.
    for count, name in enumerate(sorted(places, key=lambda name: -weights[name].size), 1):
        start, place = 0, places[name]
        for theirs, rows in zip(place.names, row_counts(place, config, weights[name].shape), strict=True):
            part, value = weights[name][start : start + rows], stored[theirs].read()
            part[...] = value.T if place.transposed else value
            del value  # unmaps it
            if not np.isfinite(part).all():
                at = tuple(map(int, np.argwhere(~np.isfinite(part))[0]))
                raise UserError(
                    f"{stored[theirs].path}: {theirs} holds {part[at]}, so the file is corrupt; get the model again"
                )
            start += rows
        done += weights[name].nbytes
        report(count, len(places), done, weights.flat.nbytes)
    return weights


def _match(
    published: Published, family, config: ModelConfig
) -> tuple[dict[str, StoredTensor], StoredTensor | None]:
    """The stored tensors by the names that the family has for them, without its prefix, and an output that is tied.

    Raises UserError listing every tensor that is missing, doubled, not the family's, of a wrong shape or not of floats.
    """
    problems: list[str] = []
    others = _unprefixed(published.stored, family, problems)
    table, found, missing = weight_table(config), {}, []
    for ours, place in family.published_places(config).items():
        shape = table[ours].shape
        for name, rows in zip(place.names, row_counts(place, config, shape), strict=True):
            if name not in others:
                missing.append(name)
                continue
            found[name] = others.pop(name)
            wanted = (rows, *shape[1:])
            _check(name, found[name], wanted[::-1] if place.transposed else wanted, problems)
    output = others.pop(family.output, None) if config.tie_embeddings else None
    if output is not None:
        _check(family.output, output, table["token_embedding.weight"].shape, problems)
    if others:
        problems.insert(0, f"not {family.title}'s {listed(sorted(others))}")
    if missing:
        problems.insert(0, f"missing {listed(missing)}")
    if problems:
        raise UserError(
            f"the tensors in {published.where} are not those of {CONFIG}: {listed(problems, '; ')}"
        )
    return found, output


def _unprefixed(stored: dict[str, StoredTensor], family, problems: list[str]) -> dict[str, StoredTensor]:
    """The tensors without what stands before all their names, and without the family's prefix."""
    names = {name: name for name in stored if not family.is_buffer(name)}
    while names:
        shared = (
            prefix
            for prefix in (*WRAPPERS, family.prefix)
            if all(name.startswith(prefix) for name in names.values())
        )
        if (prefix := next(shared, None)) is None:
            break
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    found: dict[str, StoredTensor] = {}
    origins: dict[str, str] = {}
    for name, short in names.items():
        short = short.removeprefix(family.prefix)
        if short in found:
            problems.append("both " + " and ".join(sorted((origins[short], name), key=len)))
        found[short], origins[short] = stored[name], name
    return found


def _check(name: str, tensor: StoredTensor, shape: tuple[int, ...], problems: list[str]):
    if tensor.shape != shape:
        problems.append(f"{name} is {tensor.shape}, wanted {shape}")
    elif tensor.dtype not in DTYPES:
        problems.append(f"{name} is of {tensor.dtype}, wanted {', '.join(DTYPES)}")


def listed(names: list[str], separator: str = ", ") -> str:
    """All names up to twenty, then how many more."""
    more = f"{separator}and {len(names) - 20} more" if len(names) > 20 else ""
    return separator.join(names[:20]) + more


def _dtype_of(stored: dict[str, StoredTensor], note) -> np.dtype:
    dtype = max((tensor.float_dtype for tensor in stored.values()), key=lambda dtype: dtype.itemsize)
    kinds = {tensor.dtype for tensor in stored.values()}
    if narrow := [name for kind, name in (("BF16", "bfloat16"), ("F16", "float16")) if kind in kinds]:
        note(f"the weights are {' and '.join(narrow)}; they become {dtype}, which holds the same numbers")
    return dtype
