"""Where a published model comes from: a folder, or a name on Hugging Face's hub."""

import re
import sys
from pathlib import Path

from contract.errors import ConfigError, UserError, needs
from data.vocabulary import (
    FILE_NAMES,
    GENERATION_FILE,
    ROLES_FILE,
    SETTINGS_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
)

CONFIG, MODEL, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# What is fetched of a published model; its folder also holds the same weights for other programs.
_FETCHED = [
    *(CONFIG, MODEL, INDEX, "model-*-of-*.safetensors"),
    *(name for names in FILE_NAMES for name in names),
    *("added_tokens.json", TOKENIZER_FILE, SETTINGS_FILE, GENERATION_FILE, TEMPLATE_FILE, ROLES_FILE),
]
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def find_source(source: str, revision: str | None = None) -> Path:
    """The folder that `source` means: itself, or the one that a hub name such as "openai-community/gpt2" gets.

    revision: of a hub name: a branch, tag or commit; None for the main branch
    Raises ConfigError for what is neither, UserError if the model cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.is_dir() and revision is not None:
        raise ConfigError(f"--revision {revision} is of a model on the hub, but {path} is a folder; omit it")
    if path.is_dir():
        return path
    if path.exists():
        raise ConfigError(f"{path} is a file; name the folder that holds it, with {CONFIG} and {MODEL}")
    if not _HUB_NAME.fullmatch(source):
        raise ConfigError(f"no folder {source}, and it is no hub name such as openai-community/gpt2 either")
    return _fetch(source, revision)


def _fetch(name: str, revision: str | None) -> Path:
    with needs(f"no folder {name} here, and fetching it from the hub", "hub", ["huggingface_hub"]):
        from huggingface_hub import errors, snapshot_download
        from huggingface_hub.utils import disable_progress_bars
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FETCHED))
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UserError(
            f"no folder {name} here, and the hub shows no model of that name; check the spelling, "
            "or log in there if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"the hub's model {name} has no revision {revision}; check the spelling") from None
    except (errors.HfHubHTTPError, OSError, RuntimeError) as error:
        raise UserError(
            f"no folder {name} here, and it could not be fetched from the hub ({type(error).__name__}); where "
            "there is a network, download the model, copy its folder here and name that"
        ) from error


def origin(source: str, folder: Path) -> dict[str, str]:
    """What to record about a model's origin: its name, and on the hub the commit too."""
    if Path(source).expanduser().is_dir():
        return {"source": folder.resolve().name}
    return {"source": source, "revision": folder.name}
