"""Reading a model as Hugging Face publishes it, with safetensors and NumPy alone.

The folder holds `config.json`, the weights in `model.safetensors` or in the shards that `model.safetensors.index.json`
lists, and the vocabulary. Tensors are read one by one, so memory holds no second copy.
"""

import re
from pathlib import Path

from contract.errors import UserError, readable
from contract.schema import read_json
from data.tokenizers import Tokenizer, open_tokenizer
from harness.exchange.families import gpt2
from harness.exchange.hub import CONFIG, INDEX, MODEL, refuse_pointer
from harness.exchange.pickles import conversion
from harness.exchange.published import Published, import_model, listed
from harness.exchange.tokenizer_files import read_tokenizer
from harness.training.checkpoint import Checkpoint
from harness.training.tensor_file import StoredTensor, stored_tensors


def import_folder(folder: Path, *, note=lambda line: None, **options) -> Checkpoint:
    """The model in `folder`; see `import_model` for the options and errors."""
    where = options.get("origin") or {}
    published = published_folder(folder, where["source"] if "revision" in where else None)
    return import_model(published, lambda: _tokenizer(published, note), note=note, **options)


def published_folder(folder: Path, source: str | None = None) -> Published:
    """What the files in `folder` say; source: the name on the hub that it was fetched by.

    Raises UserError naming the file that is missing, damaged or a pickle.
    """
    return Published(folder, _read_object(folder / CONFIG), _stored(folder, source or str(folder)))


def _read_object(path: Path, schema=dict) -> dict:
    if not path.exists():
        raise UserError(f"{path.parent} holds no {path.name}; name a folder as Hugging Face publishes it")
    refuse_pointer(path)
    with readable(path, "get it again", damaged="is not as published"):
        return read_json(path, schema)


def _open_tensors(path: Path) -> dict[str, StoredTensor]:
    if path.is_file():
        refuse_pointer(path)
    return stored_tensors(path)


def _stored(folder: Path, source: str) -> dict[str, StoredTensor]:
    """The tensors of the folder's one file or of all its shards."""
    if (folder / MODEL).is_file():
        return _open_tensors(folder / MODEL)
    if not (folder / INDEX).is_file():
        pickle = next((path for path in sorted(folder.glob("*.bin")) if path.is_file()), None)
        beside = f"; {pickle.name} is a pickle, which is never read" if pickle else ""
        raise UserError(f"{folder} holds neither {MODEL} nor {INDEX}{beside}; {conversion(source)}")
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
        for name, tensor in _open_tensors(folder / shard).items():
            if shard_of.get(name) != shard:
                raise UserError(
                    f"{folder / shard} holds {name}, which {INDEX} does not place there; get the model again"
                )
            stored[name] = tensor
    absent = sorted(shard_of.keys() - stored.keys())
    if absent:
        raise UserError(f"{folder / shard_of[absent[0]]} lacks {listed(absent)}, which {INDEX} places there")
    return stored


def _tokenizer(published: Published, note) -> Tokenizer:
    folder, fields, _ = published
    if tokenizer := read_tokenizer(folder, fields):
        return tokenizer
    if (
        fields["model_type"] != gpt2.model_type
        or fields.get("vocab_size", gpt2.VOCAB_SIZE) != gpt2.VOCAB_SIZE
    ):
        raise UserError(
            f"{folder} has no vocabulary files, and its vocabulary is not GPT-2's {gpt2.VOCAB_SIZE:,} tokens; put the "
            "model's tokenizer.json, or vocab.json and merges.txt, there"
        )
    note(f"{folder} has no vocabulary files; taking tiktoken's gpt2")
    return open_tokenizer("gpt2")
