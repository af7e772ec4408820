"""The tokenizer of a published model, from the files beside its weights."""

from pathlib import Path

from contract.errors import UserError, readable
from contract.schema import read_json
from data.published import PublishedTokenizer
from data.tokenizers import Tokenizer
from data.vocabulary import SETTINGS_FILE, TOKENIZER_FILE, read_vocabulary

GENERATION_CONFIG, TEMPLATE_FILE, ROLES_FILE = (
    "generation_config.json", "chat_template.jinja", "special_tokens_map.json",
)  # fmt: skip
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_tokenizer(folder: Path, fields: dict) -> Tokenizer | None:
    """The tokenizer of a folder in Hugging Face's form, None if it holds none.

    fields: of its `config.json`, which says where texts end if `generation_config.json` does not
    Raises UserError naming the file and the field that cannot be honoured.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        if (folder / "vocab.txt").is_file():
            raise UserError(f"{folder / 'vocab.txt'} is a vocabulary of BERT's kind, which is not supported")
        return read_vocabulary(folder)
    settings = _object(folder / ROLES_FILE) | _object(folder / SETTINGS_FILE)
    if (folder / TEMPLATE_FILE).is_file():
        with readable(folder / TEMPLATE_FILE, "get it again"):
            settings["chat_template"] = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    ends = {name: fields[name] for name in _ENDS if fields.get(name) is not None}
    generation = ends | _object(folder / GENERATION_CONFIG)
    return PublishedTokenizer(_object(path), settings, generation)


def _object(path: Path) -> dict:
    """What a JSON file holds, {} if there is none."""
    if not path.is_file():
        return {}
    with readable(path, "get it again", damaged="is not as published"):
        return read_json(path)
