"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

MODEL, TRAINING, PLACE = "Model (overrides the preset)", "Training", "Run and machine"


def option(text: str, *names: str, panel: str | None = None):
    """An option with its help; without `names` its flag comes from the parameter's name."""
    # Rich would take "[default: all]" for markup and print nothing.
    return typer.Option(*names, help=text.replace("[", r"\["), rich_help_panel=panel)


RunArgument = Annotated[Path, typer.Argument(help="Folder of a run, or of a checkpoint.")]
TextArgument = Annotated[Path, typer.Argument(help="UTF-8 text file.")]
BackendOption = Annotated[str, option("numpy or torch.", panel=PLACE)]
DEVICE_HELP = "cpu, cuda or mps, for PyTorch."
DeviceOption = Annotated[str, option(DEVICE_HELP, panel=PLACE)]
ThreadsOption = Annotated[int | None, option("Threads. [default: one per CPU]", panel=PLACE)]
JsonOption = Annotated[bool, option("Print the result as JSON.", "--json")]
TOKENIZER_HELP = "gpt2, bytes, or a ranks file ending in .tiktoken."
