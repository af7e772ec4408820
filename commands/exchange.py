"""Models from and for other programs: `import-gpt2` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import RunArgument, option


def import_gpt2(
    source: Annotated[
        str, typer.Argument(help="Folder as Hugging Face publishes it, or a hub name to fetch it by.")
    ],
    out: Annotated[Path, option("Run folder to make.")],
    dropout: Annotated[float | None, option("For later training. [default: the published rate]")] = None,
    revision: Annotated[str | None, option("Branch, tag or commit on the hub. [default: main]")] = None,
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite")] = False,
):
    """Make a run of a published GPT-2, to generate with, evaluate, train on or export.

    SOURCE holds config.json, model.safetensors (or shards with their index) and
    the vocabulary: vocab.json with merges.txt, or tokenizer.json. A name such as
    openai-community/gpt2 is fetched once, with the extra "hub", and kept in the
    hub's cache.
    """
    from commands.console import say
    from contract.errors import command_line
    from contract.weights import parameter_count
    from harness.exchange.hub import find_source, origin
    from harness.exchange.huggingface_import import import_gpt2
    from harness.training.checkpoint import save_checkpoint
    from harness.training.run_folder import RunFolder, new_run

    run = RunFolder(out)
    with new_run(run, overwrite=overwrite, way="") as staged:
        folder = find_source(source, revision)
        checkpoint = import_gpt2(folder, origin=origin(source, folder), dropout=dropout, note=say)
        save_checkpoint(staged.latest, checkpoint)
    run.unlock()
    say(
        f"{out}: {parameter_count(checkpoint.config):,} parameters, {checkpoint.tokenizer.n_vocab:,} tokens; "
        f"try: {command_line('generate', out)}"
    )


def export(
    run: RunArgument,
    out: Annotated[Path, option("Folder to make.")],
    format: Annotated[str, option("huggingface, torch or npz.")] = "huggingface",
    overwrite: Annotated[bool, option("Replace an earlier export in --out.", "--overwrite")] = False,
):
    """Write a trained model for other programs.

    huggingface: for GPT2LMHeadModel and AutoTokenizer, which give the same logits
    and tokens. Fixed positions become a table and absent biases zeros; import-gpt2
    turns both back. Two differences are Hugging Face's: its tokenizer reads
    <|endoftext|> in a text as one token where the vocabulary has it, and drops
    symbols that a vocabulary of bytes lacks, which are refused here.

    torch: a state_dict that torch.load(weights_only=True) reads.
    npz: the same arrays for NumPy.
    """
    from commands.console import say
    from contract.files import visible_items
    from harness.exchange.export import export
    from harness.training.checkpoint import load_checkpoint
    from harness.training.run_folder import find_checkpoint

    export(load_checkpoint(find_checkpoint(run)), format, out, overwrite=overwrite)
    say(f"{out}: {', '.join(visible_items(out))}")
