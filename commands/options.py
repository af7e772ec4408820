"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from contract.errors import ConfigError

MODEL, LEARNING_RATE = "Model (overrides the preset)", "Learning rate"
WATCHING, TRAINING, PLACE = "While it trains", "Training", "Run and machine"


def option(text: str, *names: str, panel: str | None = None):
    """An option with its help; without `names` its flag comes from the parameter's name."""
    # Rich would take "[default: all]" for markup and print nothing.
    return typer.Option(*names, help=text.replace("[", r"\["), rich_help_panel=panel)


def check_seed(seed: int | None):
    """Raise ConfigError for a seed out of range; None is one that the command finds itself."""
    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigError(f"--seed must be from 0 to 2^63 - 1, got {seed}")


RunArgument = Annotated[Path, typer.Argument(help="Folder of a run, or of a checkpoint.")]
TextArgument = Annotated[Path, typer.Argument(help="UTF-8 text file.")]
BackendOption = Annotated[str, option("numpy or torch.", panel=PLACE)]
DEVICE_HELP = "cpu, cuda or mps, for PyTorch."
DeviceOption = Annotated[str, option(DEVICE_HELP, panel=PLACE)]
ThreadsOption = Annotated[int | None, option("Threads. [default: one per CPU]", panel=PLACE)]
JsonOption = Annotated[bool, option("Print the result as JSON.", "--json")]
JsonFileOption = Annotated[Path | None, option("JSON file to write the result to.", "--json")]
OverwriteJsonOption = Annotated[bool, option("Replace the file in --json.", "--overwrite")]
TOKENIZER_HELP = "gpt2, bytes, or a ranks file ending in .tiktoken."
CONFIG_HELP = "JSON file with the fields of a model configuration."
