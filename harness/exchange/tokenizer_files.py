"""The tokenizer of a published model: from the files beside its weights, and to them."""

import json
from pathlib import Path

from contract.errors import UserError, readable
from contract.schema import read_json
from data.published import PublishedTokenizer
from data.tokenizers import Tokenizer
from data.vocabulary import (
    END_OF_TEXT,
    GENERATION_FILE,
    ROLES_FILE,
    SETTINGS_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    read_vocabulary,
    vocabulary_files,
    vocabulary_of,
)
from harness.exchange.hub import TOKENIZER_FILES, refuse_pointer

_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_tokenizer(folder: Path, fields: dict) -> Tokenizer | None:
    """The tokenizer of a folder in Hugging Face's form, None if it holds none.

    fields: of its `config.json`, which says where texts end if `generation_config.json` does not
    Raises UserError naming the file and the field that cannot be honoured.
    """
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            refuse_pointer(folder / name)
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
    generation = ends | _object(folder / GENERATION_FILE)
    return PublishedTokenizer(_object(path), settings, generation)


def _object(path: Path) -> dict:
    """What a JSON file holds, {} if there is none."""
    if not path.is_file():
        return {}
    with readable(path, "get it again", damaged="is not as published"):
        return read_json(path)


def tokenizer_texts(tokenizer: Tokenizer, context_length: int) -> dict[str, str]:
    """The text of each file that a folder in Hugging Face's form has of its tokenizer, by the file's name.

    context_length: of the model
    Raises UserError if the tokenizer cannot be written so.
    """
    if isinstance(tokenizer, PublishedTokenizer):
        files = {
            TOKENIZER_FILE: tokenizer.content,
            SETTINGS_FILE: tokenizer.settings,
            GENERATION_FILE: tokenizer.generation,
        }
        return {
            name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in files.items()
        }
    # Without generation_config.json transformers makes one, with a warning.
    return vocabulary_files(tokenizer, context_length) | {
        GENERATION_FILE: json.dumps(end_ids(tokenizer), indent=2) + "\n"
    }


def end_ids(tokenizer: Tokenizer) -> dict[str, int | list[int] | None]:
    """What `config.json` says of the tokens at a text's ends."""
    if isinstance(tokenizer, PublishedTokenizer):
        return {name: tokenizer.generation[name] for name in _ENDS if name in tokenizer.generation}
    return dict.fromkeys(_ENDS[:2], vocabulary_of(tokenizer)[0].get(END_OF_TEXT))
