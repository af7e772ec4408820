"""Compare the twins on the user's machine: `parity`."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import DEVICE_HELP, JsonFileOption, OverwriteJsonOption, option
from contract.errors import needs
from contract.files import require_free


def parity(
    run: Annotated[
        Path | None,
        typer.Argument(help=r"Run or checkpoint. \[default: random weights in the shapes of tense and nano]"),
    ] = None,
    dtype: Annotated[
        str, option("float32, as in training, or float64, nearly without rounding error.")
    ] = "float32",
    device: Annotated[str, option(DEVICE_HELP)] = "cpu",
    compile: Annotated[
        bool, option("Compile the twin; compare only outputs and gradients of weights.", "--compile")
    ] = False,
    seed: Annotated[int, option("Seed of tokens, dropout masks and random weights.")] = 0,
    json: JsonFileOption = None,
    overwrite: OverwriteJsonOption = False,
):
    """Compare every tensor of PyTorch with NumPy's, on your machine.

    An error is the largest difference, relative to the largest magnitude.
    "Untraced" is the pass that training runs: fused attention, no tensor kept.
    The exit code is 1 if a tensor differs.
    """
    from commands.console import show

    with needs("parity", "torch", ["torch"]):
        from parity.summary import compare_models, summary, table, write_json

    if json is not None:
        require_free(json, overwrite)
    comparisons = []
    for comparison in compare_models(run, dtype=dtype, device=device, compiled=compile, seed=seed):
        comparisons.append(comparison)
        for line in (f"{comparison.title}, {dtype}, seed {seed}", "", *table(comparison), ""):
            show(line)
    if json is not None:
        write_json(json, comparisons, device=device, compiled=compile, overwrite=overwrite)
    for line in map(summary, comparisons):
        show(line)
    if any(comparison.diverging for comparison in comparisons):
        raise typer.Exit(1)
