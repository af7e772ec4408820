"""Reading GPT-2 as Hugging Face publishes it, with safetensors and NumPy alone.

The folder holds `config.json`, the weights in `model.safetensors` or in the shards that `model.safetensors.index.json`
lists, and optionally the vocabulary. Tensors are read one by one, so memory holds no second copy.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from contract.config import ModelConfig
from contract.errors import UserError, readable
from contract.schema import read_json
from contract.weights import Weights, weight_table
from data.tokenizers import open_tokenizer
from harness.exchange.families import gpt2
from harness.exchange.hub import CONFIG, INDEX, MODEL
from harness.exchange.tokenizer_files import read_tokenizer
from harness.training.checkpoint import Checkpoint
from harness.training.tensor_file import DTYPES, StoredTensor, stored_tensors
from numpy_llm.positions import sinusoidal_positions


def import_gpt2(
    folder: Path,
    *,
    origin: dict[str, str] | None = None,
    dropout: float | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """The model in `folder`, ready to be saved as a checkpoint.

    origin: see the function of that name; None for the folder's name
    dropout: for later training, in place of the published rates
    note: called with a line for each thing that the user should know
    Raises UserError naming what is missing, extra, damaged, or computes another function.
    """
    fields = _read_object(folder / CONFIG)
    config = gpt2.config_from_published(fields, dropout)
    found = _stored(folder)
    if config.n_layer > len(found):  # before a table of a million layers is built
        raise UserError(
            f"{folder / CONFIG} says n_layer {config.n_layer:,}, but the weights are {len(found)} tensors; "
            "get the files that belong together"
        )
    stored, others = _match(found, config, folder)
    weights = _read_weights(stored, config, note)
    _check_tied_output(others.get(gpt2.OUTPUT), weights)
    dtype = weights.flat.dtype
    config, weights = _restore(fields.get(gpt2.OWN_CONFIG), config, weights, note)
    training = {"dtype": str(dtype)} | (origin or {"source": folder.resolve().name})
    return Checkpoint(config, weights, _tokenizer(folder, fields, config, note), training=training)


def _read_weights(stored: dict[str, StoredTensor], config: ModelConfig, note) -> Weights:
    """The weights in our layout. Raises UserError naming a tensor that holds nan or infinity."""
    weights = Weights.zeros(config, _dtype_of(stored, note))
    for name, place in sorted(gpt2.published_places(config).items(), key=lambda row: -weights[row[0]].size):
        value = stored[name].read()
        weights[name][...] = value.T if place.transposed else value
        del value  # unmaps it
        if not np.isfinite(weights[name]).all():
            at = tuple(map(int, np.argwhere(~np.isfinite(weights[name]))[0]))
            raise UserError(
                f"{stored[name].path}: {place.name} holds {weights[name][at]}, so the file is corrupt; "
                "get the model again"
            )
    return weights


def _read_object(path: Path, schema=dict) -> dict:
    if not path.exists():
        raise UserError(f"{path.parent} holds no {path.name}; name a folder as Hugging Face publishes it")
    with readable(path, "get it again", damaged="is not as published"):
        return read_json(path, schema)


def _stored(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of the folder's one file or of all its shards."""
    if (folder / MODEL).is_file():
        return stored_tensors(folder / MODEL)
    if not (folder / INDEX).is_file():
        pickle = folder / "pytorch_model.bin"
        beside = f"; {pickle.name} is a pickle, which is never read" if pickle.is_file() else ""
        raise UserError(f"{folder} holds neither {MODEL} nor {INDEX}{beside}; get the model as safetensors")
    index = folder / INDEX
    shard_of = _read_object(index, {"weight_map": {str: str}})["weight_map"]
    if not shard_of:
        raise UserError(f"{index} has an empty weight_map, expected the shards; get it again")
    stored: dict[str, StoredTensor] = {}
    for shard in dict.fromkeys(shard_of.values()):
        # Both systems' separators everywhere: a folder must not mean one thing here and another there.
        if re.search(r"[/\\:\0]", shard) or shard in ("", ".", ".."):
            raise UserError(
                f"{index} names the shard {shard!r}, which leaves the folder; get the model elsewhere"
            )
        for name, tensor in stored_tensors(folder / shard).items():
            if shard_of.get(name) != shard:
                raise UserError(
                    f"{folder / shard} holds {name}, which {INDEX} does not place there; get the model again"
                )
            stored[name] = tensor
    absent = sorted(shard_of.keys() - stored.keys())
    if absent:
        raise UserError(f"{folder / shard_of[absent[0]]} lacks {_listed(absent)}, which {INDEX} places there")
    return stored


def _match(
    stored: dict[str, StoredTensor], config: ModelConfig, folder: Path
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The stored tensors by our names, and the rest by theirs: a tied output; masks are omitted.

    Raises UserError listing every tensor that is missing, not GPT-2's, of a wrong shape or not of floats.
    """
    unprefixed: dict[str, StoredTensor] = {}
    problems = []
    for name, tensor in stored.items():
        if gpt2.is_mask(name):
            continue
        short = name.removeprefix(gpt2.PREFIX)
        if short in unprefixed:
            problems.append(f"both {short} and {gpt2.PREFIX}{short}")
        unprefixed[short] = tensor
    table, places = weight_table(config), gpt2.published_places(config)
    found = {ours: unprefixed.pop(place.name) for ours, place in places.items() if place.name in unprefixed}
    named = {places[ours].name: (tensor, ours) for ours, tensor in found.items()}
    others = dict(unprefixed)
    if config.tie_embeddings and gpt2.OUTPUT in others:
        named[gpt2.OUTPUT] = others.pop(gpt2.OUTPUT), "token_embedding.weight"
    if missing := [place.name for ours, place in places.items() if ours not in found]:
        problems.append(f"missing {_listed(missing)}")
    if others:
        problems.append(f"not GPT-2's {_listed(sorted(others))}")
    for name, (tensor, ours) in named.items():
        shape = table[ours].shape[:: -1 if places[ours].transposed else 1]
        if tensor.shape != shape:
            problems.append(f"{name} is {tensor.shape}, wanted {shape}")
        elif tensor.dtype not in DTYPES:
            problems.append(f"{name} is of {tensor.dtype}, wanted {', '.join(DTYPES)}")
    if problems:
        raise UserError(f"the tensors in {folder} are not those of {CONFIG}: {_listed(problems, '; ')}")
    return found, unprefixed


def _listed(names: list[str], separator: str = ", ") -> str:
    """All names up to twenty, then how many more."""
    more = f"{separator}and {len(names) - 20} more" if len(names) > 20 else ""
    return separator.join(names[:20]) + more


def _dtype_of(stored: dict[str, StoredTensor], note) -> np.dtype:
    dtype = max((tensor.float_dtype for tensor in stored.values()), key=lambda dtype: dtype.itemsize)
    kinds = {tensor.dtype for tensor in stored.values()}
    if narrow := [name for kind, name in (("BF16", "bfloat16"), ("F16", "float16")) if kind in kinds]:
        note(f"the weights are {' and '.join(narrow)}; they become {dtype}, which holds the same numbers")
    return dtype


def _check_tied_output(output: StoredTensor | None, weights: Weights):
    if output is not None and not np.array_equal(output.read(), weights["token_embedding.weight"]):
        raise UserError(
            f"{output.path}: {gpt2.OUTPUT} differs from wte.weight, though tie_word_embeddings in {CONFIG} says that "
            "they are one; set it to false if the model was trained with two"
        )


def _restore(own: object, config: ModelConfig, weights: Weights, note) -> tuple[ModelConfig, Weights]:
    """The model that an export of this project was made from, but for positions and biases trained since."""
    if own is None:
        return config, weights
    wanted = None
    with suppress(UserError, TypeError, AttributeError):
        own = replace(ModelConfig.from_dict(own), dropout=config.dropout)
        wanted = own if gpt2.published_terms(own) == config else None
    if wanted is None:
        note(f"{gpt2.OWN_CONFIG} in {CONFIG} does not fit its other fields, which hold")
        return config, weights
    if wanted.position == "sinusoidal":
        table = sinusoidal_positions(wanted.context_length, wanted.d_model, weights.flat.dtype)
        # Machines differ in a sine's last digit; a step of training changes far more.
        if not np.allclose(weights["position_embedding.weight"], table, rtol=0, atol=1e-6):
            note(
                "the positions have changed since the export from fixed sinusoids, so they are learned ones now"
            )
            wanted = replace(wanted, position="learned")
    if not wanted.bias and any(value.any() for name, value in weights.items() if name.endswith(".bias")):
        note("the biases have changed since the export from zeros, so the model has biases now")
        wanted = replace(wanted, bias=True, query_key_value_bias=None)
    if wanted == config:
        return config, weights
    restored = Weights.zeros(wanted, weights.flat.dtype)
    for name, view in restored.items():
        view[...] = weights[name]
    return wanted, restored


def _tokenizer(folder: Path, fields: dict, config: ModelConfig, note):
    encoding = read_tokenizer(folder, fields)
    if encoding is None:
        if config.vocab_size != gpt2.VOCAB_SIZE:
            raise UserError(
                f"{folder} has no vocabulary files, and a vocabulary of {config.vocab_size:,} is not GPT-2's; put its "
                "vocab.json and merges.txt there"
            )
        note(f"{folder} has no vocabulary files; taking tiktoken's gpt2")
        encoding = open_tokenizer("gpt2")
    if encoding.n_vocab > config.vocab_size:
        raise UserError(
            f"{folder}: the vocabulary files have {encoding.n_vocab:,} tokens, but vocab_size in {CONFIG} is "
            f"{config.vocab_size:,}; get the files that belong to the model"
        )
    if encoding.n_vocab < config.vocab_size:
        note(
            f"the model knows {config.vocab_size:,} ids, the vocabulary {encoding.n_vocab:,}; the others stand "
            "for no text"
        )
    return encoding
