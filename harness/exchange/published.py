"""A published model, whatever its files: what an importer reads."""

from pathlib import Path
from typing import NamedTuple

from harness.training.tensor_file import StoredTensor


class Published(NamedTuple):
    """A published model that was not read into memory yet.

    where: the folder or the file, for messages
    fields: as in the `config.json` of the model's family
    stored: its tensors by Hugging Face's names
    """

    where: Path
    fields: dict
    stored: dict[str, StoredTensor]
