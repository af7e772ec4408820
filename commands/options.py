"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

MODEL, TRAINING, PLACE = "Model (over the preset)", "Training", "Run and machine"


def option(text: str, *names: str, panel: str | None = None):
    """An option with its help; its flag comes from the parameter's name where `names` gives none."""
    return typer.Option(*names, help=text, rich_help_panel=panel)


RunArgument = Annotated[Path, typer.Argument(help="Folder of a training run, or of one checkpoint.")]
TextArgument = Annotated[Path, typer.Argument(help="UTF-8 text file.")]
BackendOption = Annotated[str, option("numpy or torch.", panel=PLACE)]
ThreadsOption = Annotated[int | None, option("Threads. [default: one a processor]", panel=PLACE)]
JsonOption = Annotated[bool, option("Print JSON to stdout, for machines.", "--json")]
TOKENIZER_HELP = "gpt2, bytes, or a ranks file ending in .tiktoken."
