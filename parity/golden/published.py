"""A golden pack as Hugging Face publishes models: what a port's own loader reads first.

The names and layouts of the files are the family's, and written by the same code as an export of a trained model.
"""

import json
from contextlib import suppress
from pathlib import Path

from contract.config import ModelConfig
from contract.errors import UserError
from contract.weights import weight_table
from harness.exchange.export import write_published
from harness.exchange.families import family_for
from harness.exchange.hub import CONFIG, MODEL
from parity.golden.packs import Pack

BATCH = "batch.json"  # the tokens and targets, and the name of the pack
# What a model of numbers without a text has: none of these tokens, and no row of the embedding that is not trained.
_NO_TEXT = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def published_as(config: ModelConfig) -> str | None:
    """The `model_type` of `pack_family`, None where no family's files can say what this model is."""
    with suppress(UserError):
        return family_for(config).model_type
    return None


def pack_family(config: ModelConfig, name: str):
    """The family of `harness.exchange.families` whose files can say what this model is.

    name: of the pack, for the message of the UserError that is raised where none can
    """
    try:
        return family_for(config)
    except UserError as error:
        _, _, reasons = str(error).partition(": ")
        raise UserError(
            f"{name} has no form of Hugging Face's; choose --format raw, npz or npy ({reasons})"
        ) from None


def write_folder(pack: Pack, dtype: str, folder: Path):
    """Write config.json, model.safetensors and batch.json to an empty folder.

    dtype: as for `write_published`; the weights of a pack are float32 numbers, so that float32 loses nothing
    Raises UserError where no family of published models computes what this one does.
    """
    family = pack_family(pack.config, pack.name)
    weights = {name: pack.tensors[name] for name in weight_table(pack.config)}
    write_published(folder / MODEL, pack.config, weights, family, dtype)
    batch = {"golden": pack.name} | {name: pack.tensors[name].tolist() for name in ("tokens", "targets")}
    for name, content in ((CONFIG, family.published_config(pack.config, dtype) | _NO_TEXT), (BATCH, batch)):
        indent = 2 if name == CONFIG else None
        (folder / name).write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
