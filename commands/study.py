"""The study page: `study`."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import option
from contract.errors import needs

_NEEDED = {"torch", "jinja2", "pygments", "latex2mathml", "markupsafe"}


def study(
    run: Annotated[
        Path | None,
        typer.Argument(help=r"Run or checkpoint. \[default: random weights in the default model's shape]"),
    ] = None,
    text: Annotated[
        str, option("Text to run through the model, which predicts each token but the first.")
    ] = "The baby is sleeping.",
    out: Annotated[Path, option("HTML file to write.")] = Path("study.html"),
    layers: Annotated[
        str, option("Blocks whose tensors to show, such as 0,5,10-12. [default: as many as fit in 5 MB]")
    ] = "",
    overwrite: Annotated[bool, option("Replace the file in --out.", "--overwrite")] = False,
):
    """Write a page that shows backpropagation by hand beside autograd.

    It shows every operation with its formulas, the code of both twins, and the
    tensors of a real pass over your text: one file, for any browser, offline.
    """
    from commands.console import say

    with needs("study", "study", _NEEDED):
        from learn.study.write import write_study
    subject = write_study(out, run, text, layers=layers, overwrite=overwrite)
    if subject.note:
        say(subject.note)
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {subject.title}; open it in a browser")
