"""Exchange models with other programs: `import` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import RunArgument, option


def import_model(
    source: Annotated[
        str,
        typer.Argument(help="Folder in Hugging Face's format, GGUF file, or name of a model on the hub."),
    ],
    out: Annotated[Path, option("Run folder to create.")],
    dropout: Annotated[
        float | None, option("Dropout for later training. [default: the published rate]")
    ] = None,
    revision: Annotated[str | None, option("Branch, tag or commit on the hub. [default: main]")] = None,
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite")] = False,
):
    """Import a published model as a run, to generate, evaluate, fine-tune or export.

    The families are GPT-2, Llama, Mistral, Qwen2, Qwen3, Gemma 2 and Gemma 3.
    A folder holds config.json, model.safetensors (or shards with their index)
    and the tokenizer: tokenizer.json, or vocab.json with merges.txt. A GGUF
    file holds it all; quantised weights become float32. A name such as
    openai-community/gpt2 is downloaded once, to the hub's cache. A name, a GGUF
    file and a tokenizer.json need the extra "models".
    """
    from commands.console import import_progress, say
    from contract.errors import command_line
    from contract.weights import parameter_count
    from harness.exchange.gguf import import_gguf
    from harness.exchange.hub import GGUF, find_source, origin
    from harness.exchange.huggingface_import import import_folder
    from harness.training.checkpoint import save_checkpoint
    from harness.training.run_folder import RunFolder, new_run

    run = RunFolder(out)
    with new_run(run, overwrite=overwrite, way="") as staged:
        place = find_source(source, revision)
        read = import_gguf if place.suffix == GGUF and not place.is_dir() else import_folder
        with import_progress() as report:
            where = origin(source, place)
            checkpoint = read(place, origin=where, dropout=dropout, note=say, report=report)
        save_checkpoint(staged.latest, checkpoint)
    run.unlock()
    tokenizer = checkpoint.tokenizer
    chat = ["--chat"] if getattr(tokenizer, "chat_template", None) else []
    say(
        f"{out}: {parameter_count(checkpoint.config):,} parameters, {tokenizer.n_vocab:,} tokens; "
        f"try: {command_line('generate', out, *chat)}"
    )


def export(
    run: RunArgument,
    out: Annotated[Path, option("Folder to create.")],
    format: Annotated[str, option("huggingface, torch or npz.")] = "huggingface",
    dtype: Annotated[
        str | None,
        option("float32, bfloat16 or float16, of a huggingface export. [default: the run's own, float32]"),
    ] = None,
    overwrite: Annotated[bool, option("Replace an earlier export in --out.", "--overwrite")] = False,
):
    """Write a trained model for other programs.

    huggingface: for AutoModelForCausalLM and AutoTokenizer, with the same logits
    and tokens, as the family that the model was imported from, or the first that
    can express it. In GPT-2's files fixed positions become a table, absent biases
    zeros; import turns both back. Hugging Face's tokenizer differs in two ways: it reads <|endoftext|>
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

    export(load_checkpoint(find_checkpoint(run)), format, out, dtype=dtype, overwrite=overwrite)
    say(f"{out}: {', '.join(visible_items(out))}")
