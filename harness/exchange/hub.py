"""Where a published model comes from: a folder, a GGUF file, or a name on Hugging Face's hub."""

import re
import sys
from pathlib import Path

from contract.errors import ConfigError, UserError, needs, readable
from contract.files import open_regular
from data.vocabulary import (
    FILE_NAMES,
    GENERATION_FILE,
    ROLES_FILE,
    SETTINGS_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
)
from harness.exchange.pickles import SUFFIXES, conversion

CONFIG, MODEL, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GGUF = ".gguf"
TOKENIZER_FILES = [
    *(name for names in FILE_NAMES for name in names),
    *("added_tokens.json", TOKENIZER_FILE, SETTINGS_FILE, GENERATION_FILE, TEMPLATE_FILE, ROLES_FILE),
]
# What is fetched of a published model; its folder also holds the same weights for other programs.
_FETCHED = [CONFIG, MODEL, INDEX, "model-*-of-*.safetensors", *TOKENIZER_FILES]
_POINTER = b"version https://git-lfs"
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def find_source(source: str, revision: str | None = None) -> Path:
    """The folder or GGUF file that `source` means; a hub name such as "openai-community/gpt2" gets a folder.

    revision: of a hub name: a branch, tag or commit; None for the main branch
    Raises ConfigError for what is neither, UserError if the model cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.exists() and revision is not None:
        raise ConfigError(f"--revision {revision} is of a model on the hub, but {path} is here; omit it")
    if path.is_dir() or path.suffix == GGUF:
        return path
    if path.is_file() and path.suffix in SUFFIXES:
        raise UserError(f"{path} is no safetensors file, and pickles are never read; {conversion(path)}")
    if path.exists():
        raise ConfigError(
            f"{path} is no {GGUF} file; name the folder that holds it, with {CONFIG} and {MODEL}"
        )
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


def refuse_pointer(path: Path):
    """Raise UserError for the few lines that stand for a file which Git LFS has not fetched."""
    with readable(path, "get it again"), open_regular(path) as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(
                f"{path} is a Git LFS pointer, not the file itself; run git lfs pull in {path.parent}"
            )


def origin(source: str, place: Path) -> dict[str, str]:
    """What to record about a model's origin: its name, and on the hub the commit too."""
    if Path(source).expanduser().exists():
        return {"source": place.resolve().name}
    return {"source": source, "revision": place.name}
