"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from contract.errors import ConfigError

TEXT, MODEL, LEARNING_RATE = "Text", "Model (overrides the preset)", "Learning rate"
WATCHING, TRAINING, PLACE = "While it trains", "Training", "Run and machine"
TUNING = "Trained weights (with --from)"


def option(text: str, *names: str, panel: str | None = None):
    """An option with its help; without `names` its flag comes from the parameter's name."""
    # Rich would take "[default: all]" for markup and print nothing.
    return typer.Option(*names, help=text.replace("[", r"\["), rich_help_panel=panel)


def check_seed(seed: int | None):
    """Raise ConfigError for a seed out of range; None is one that the command finds itself."""
    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigError(f"--seed must be from 0 to 2^63 - 1, got {seed}")


RunArgument = Annotated[Path, typer.Argument(help="Folder of a run, or of a checkpoint.")]
TextsArgument = Annotated[
    list[Path],
    typer.Argument(help="UTF-8 texts, packed by gzip or xz or not, JSONL, folders of them, or - for stdin."),
]
# How texts are read: fields of `data.sources.Texts`. Their commands have parameters of these names.
PatternOption = Annotated[
    list[str] | None,
    option("Files to take from folders, such as '*.py'; may be repeated. [default: all]", panel=TEXT),
]
FieldOption = Annotated[
    str | None,
    option(
        "Read JSONL: the field with a text, or messages, of which replies are learnt. [default: text, in .jsonl]",
        panel=TEXT,
    ),
]
SeparatorOption = Annotated[
    str | None, option("What stands between two documents. [default: a file is a document]", panel=TEXT)
]
NewlinesOption = Annotated[str, option("Line ends: keep them, or lf for those of Unix.", panel=TEXT)]
# What is held out of them: fields of `data.held_out.HeldOut`.
FractionOption = Annotated[float, option("Fraction of the tokens held out for validation.", panel=TEXT)]
HeldOutOption = Annotated[
    str | None,
    option(
        "Hold out the end, whole documents or blocks. [default: documents if possible, else end]", panel=TEXT
    ),
]
HeldOutSeedOption = Annotated[int, option("Seed that draws these documents or blocks.", panel=TEXT)]
ValidationOption = Annotated[Path | None, option("Text of its own to validate on instead.", panel=TEXT)]
READING = ("pattern", "field", "separator", "newlines")
HOLDING_OUT = ("validation_fraction", "held_out", "held_out_seed", "validation")


def named_texts(named: list[Path], given: dict):
    """The texts of a command; given: its options in `READING` that are set"""
    from data.sources import Texts

    reading = {name: given[name] for name in READING if given.get(name) is not None}
    return Texts(tuple(named), patterns=tuple(reading.pop("pattern", ())), **reading)


def named_held_out(given: dict):
    """What a command holds out; given: its options in `HOLDING_OUT` that were given, or None if none were"""
    from data.held_out import HeldOut

    names = dict(zip(HOLDING_OUT, ("fraction", "way", "seed", "text"), strict=True))
    fields = {names[name]: given[name] for name in HOLDING_OUT if name in given}
    if "text" in fields and len(fields) > 1:
        raise ConfigError(
            "--validation is a text of its own to validate on; omit what else says what is held out"
        )
    return HeldOut(**fields) if fields else None


def given_options(context: typer.Context) -> dict:
    """The options that stand on the command line, by their parameters' names."""
    source = context.get_parameter_source
    return {name: value for name, value in context.params.items() if source(name).name == "COMMANDLINE"}


BackendOption = Annotated[str, option("numpy or torch.", panel=PLACE)]
DEVICE_HELP = "cpu, cuda or mps, for PyTorch."
DeviceOption = Annotated[str, option(DEVICE_HELP, panel=PLACE)]
ThreadsOption = Annotated[int | None, option("Threads. [default: one per CPU]", panel=PLACE)]
JsonOption = Annotated[bool, option("Print the result as JSON.", "--json")]
JsonFileOption = Annotated[Path | None, option("JSON file to write the result to.", "--json")]
OverwriteJsonOption = Annotated[bool, option("Replace the file in --json.", "--overwrite")]
TOKENIZER_HELP = "gpt2, bytes, or a ranks file ending in .tiktoken."
CONFIG_HELP = "JSON file with the fields of a model configuration."
