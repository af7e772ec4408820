"""Exchange models with other programs: `import-gpt2` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import RunArgument, option


def import_gpt2(
    source: Annotated[
        str, typer.Argument(help="Folder in Hugging Face's format, or the name of a model on the hub.")
    ],
    out: Annotated[Path, option("Run folder to create.")],
    dropout: Annotated[
        float | None, option("Dropout for later training. [default: the published rate]")
    ] = None,
    revision: Annotated[str | None, option("Branch, tag or commit on the hub. [default: main]")] = None,
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite")] = False,
):
    """Import a published GPT-2 as a run, to generate, evaluate, fine-tune or export.

    SOURCE holds config.json, model.safetensors (or shards with their index) and
    the vocabulary: vocab.json with merges.txt, or tokenizer.json. A name such as
    openai-community/gpt2 is downloaded once, to the hub's cache; this and
    tokenizer.json need the extra "models".
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
    out: Annotated[Path, option("Folder to create.")],
    format: Annotated[str, option("huggingface, torch or npz.")] = "huggingface",
    overwrite: Annotated[bool, option("Replace an earlier export in --out.", "--overwrite")] = False,
):
    """Write a trained model for other programs.

    huggingface: for GPT2LMHeadModel and AutoTokenizer, with the same logits and
    tokens. Fixed positions become a table, absent biases zeros; import-gpt2 turns
    both back. Hugging Face's tokenizer differs in two ways: it reads <|endoftext|>
    in a text as one token if the vocabulary has it, and it drops symbols missing
    from a vocabulary of bytes, which this program refuses.

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
