"""The command line: parses, calls, prints. `python cli.py --help` lists the commands.

Text and results go to stdout, talk goes to stderr. A user's mistake is one line and exit code 2 (wrong
usage) or 1 (failure). Everything heavy is imported by the command that needs it.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from contract.errors import ConfigError, UserError

app = typer.Typer(
    help="A GPT whose every gradient is written by hand, in NumPy, beside its twin in PyTorch.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")

MODEL, TRAINING, PLACE = "Model (over the preset)", "Training", "Run and machine"


def option(text: str, *names: str, panel: str | None = None):
    return typer.Option(*names, help=text, rich_help_panel=panel)


RunArgument = Annotated[Path, typer.Argument(help="Folder of a training run, or of one checkpoint.")]
TextArgument = Annotated[Path, typer.Argument(help="UTF-8 text file.")]
BackendOption = Annotated[str, option("numpy or torch.", panel=PLACE)]
ThreadsOption = Annotated[int | None, option("Threads. [default: one a processor]", panel=PLACE)]
JsonOption = Annotated[bool, option("Print JSON to stdout, for machines.", "--json")]
TOKENIZER_HELP = "gpt2, bytes, or a ranks file ending in .tiktoken."


@app.command()
def prepare(
    text: TextArgument,
    tokenizer: Annotated[str, option(TOKENIZER_HELP)] = "bytes",
    out: Annotated[Path | None, option("Token file to write. [default: TEXT with .bin]")] = None,
    validation_fraction: Annotated[float, option("Share of the tokens, at the end, held out.")] = 0.1,
):
    """Turn a text into a token file, of which `train --text` can take several runs."""
    from data.prepare import open_tokens
    from harness.console import reading_progress, say
    from harness.runs import prepare

    out = out or text.with_suffix(".bin")
    with reading_progress(text, "tokenising") as progress:
        prepare(text, tokenizer, out, validation_fraction=validation_fraction, progress=progress)
    info = open_tokens(out).info
    say(
        f"{out}: {info.tokens:,} tokens of {info.tokenizer['vocab_size']:,} kinds from {info.text_bytes:,} bytes, "
        f"{info.train_tokens:,} to train and {info.validation_tokens:,} to validate"
    )


@tokenizer_app.command("train")
def train_tokenizer(
    text: TextArgument,
    vocab_size: Annotated[int, option("Tokens to end with, at least 256.")],
    out: Annotated[Path | None, option("Ranks file to write. [default: TEXT with .tiktoken]")] = None,
):
    """Learn byte-pair ranks from a text, for `--tokenizer`."""
    from data.tokenizers import save_ranks, train_tokenizer
    from harness.console import reading_progress, say

    out = out or text.with_suffix(".tiktoken")
    with reading_progress(text, "counting") as progress:
        encoding = train_tokenizer(text, vocab_size, progress)
    save_ranks(encoding, out)
    say(f"{out}: {encoding.n_vocab:,} tokens; use it with --tokenizer {out}")


@app.command()
def train(
    context: typer.Context,
    text: Annotated[
        Path | None, option("UTF-8 text, or a .bin of `prepare`. [default: data/tense.txt]")
    ] = None,
    tokenizer: Annotated[str | None, option(f"{TOKENIZER_HELP} [default: bytes]")] = None,
    preset: Annotated[
        str, option("tense, nano, gpt2, gpt2-medium, gpt2-large or gpt2-xl.", panel=MODEL)
    ] = "tense",
    n_layer: Annotated[int | None, option("Transformer blocks.", panel=MODEL)] = None,
    n_head: Annotated[int | None, option("Attention heads a block.", panel=MODEL)] = None,
    d_model: Annotated[int | None, option("Channels of the residual stream.", panel=MODEL)] = None,
    d_ff: Annotated[int | None, option("Hidden feed-forward channels.", panel=MODEL)] = None,
    context_length: Annotated[int | None, option("Tokens that the model sees at once.", panel=MODEL)] = None,
    activation: Annotated[str | None, option("relu or gelu_tanh.", panel=MODEL)] = None,
    position: Annotated[str | None, option("sinusoidal or learned.", panel=MODEL)] = None,
    dropout: Annotated[float | None, option("Probability of dropping an activation.", panel=MODEL)] = None,
    steps: Annotated[int | None, option("Optimiser steps. [default: 1500]", panel=TRAINING)] = None,
    epochs: Annotated[
        float | None, option("Passes over the text, instead of --steps.", panel=TRAINING)
    ] = None,
    batch_size: Annotated[int, option("Sequences a step.", panel=TRAINING)] = 64,
    accumulate: Annotated[
        int, option("Parts to cut a batch into: less memory, same result.", panel=TRAINING)
    ] = 1,
    learning_rate: Annotated[float, option("Peak learning rate.", panel=TRAINING)] = 3e-3,
    min_learning_rate: Annotated[float, option("Learning rate at the end.", panel=TRAINING)] = 1e-4,
    warmup_steps: Annotated[int, option("Steps to reach the peak.", panel=TRAINING)] = 100,
    weight_decay: Annotated[float, option("AdamW's pull to 0, on matrices.", panel=TRAINING)] = 0.1,
    beta1: Annotated[float, option("Adam's decay of the mean.", panel=TRAINING)] = 0.9,
    beta2: Annotated[float, option("Adam's decay of the mean square.", panel=TRAINING)] = 0.99,
    clip: Annotated[float, option("Largest gradient norm.", panel=TRAINING)] = 1.0,
    eval_interval: Annotated[int, option("Steps between evaluations and checkpoints.", panel=TRAINING)] = 250,
    seed: Annotated[int, option("Of weights, order and dropout.", panel=TRAINING)] = 0,
    dtype: Annotated[str, option("float32 or float64.", panel=TRAINING)] = "float32",
    backend: BackendOption = "numpy",
    threads: ThreadsOption = None,
    out: Annotated[Path | None, option("Run folder. [default: a new one in runs/]", panel=PLACE)] = None,
    resume: Annotated[bool, option("Go on with the run in --out.", "--resume", panel=PLACE)] = False,
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite", panel=PLACE)] = False,
):
    """Train a GPT on a text, keep its checkpoints and show what it writes.

    Without options: the project's own corpus, in about a minute.
    """
    from harness.runs import DEFAULT_TEXT, resume_run, start_run

    given = {name: context.params[name] for name in context.params if _is_given(context, name)}
    if resume:
        trainer = resume_run(**_resume_arguments(given))
    else:
        from harness.console import reading_progress
        from harness.run_folder import unused_folder
        from harness.trainer import TrainingSettings

        if steps is not None and epochs is not None:
            raise ConfigError("--steps and --epochs both say how long to train; give one of them")
        text = text or DEFAULT_TEXT
        settings = {name: context.params[name] for name in TrainingSettings.__dataclass_fields__}
        model = (
            "n_layer",
            "n_head",
            "d_model",
            "d_ff",
            "context_length",
            "activation",
            "position",
            "dropout",
        )
        with reading_progress(text, "tokenising") as progress:
            trainer = start_run(
                out or unused_folder(Path("runs") / text.stem),
                text=text,
                tokenizer=tokenizer,
                preset_name=preset,
                overrides={name: given[name] for name in model if name in given},
                training=settings | {"steps": 1500 if steps is None else steps},
                epochs=epochs,
                backend=backend,
                threads=threads,
                overwrite=overwrite,
                progress=progress,
            )
    _train(trainer)


def _is_given(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name).name == "COMMANDLINE"


def _resume_arguments(given: dict) -> dict:
    """The arguments of `resume_run` from the options given beside --resume, or a ConfigError naming a wrong one."""
    accepted = ("out", "steps", "backend", "threads")
    for name in given:
        if name not in ("resume", *accepted):
            raise ConfigError(
                f"--{name.replace('_', '-')} does not go with --resume: the run keeps the settings that it was "
                f"started with; only {', '.join('--' + name for name in accepted)} may be given"
            )
    if "out" not in given:
        raise ConfigError("--resume needs --out, the folder of the run to go on with")
    return {name: given[name] for name in accepted if name in given}


def _train(trainer):
    from contract.weights import parameter_count
    from harness.console import interruptible, say, training_progress, write
    from harness.generation import encode_prompt, generate_text

    backend, settings, run = trainer.backend, trainer.settings, trainer.run
    say(f"model       {parameter_count(backend.config):,} parameters, {backend.name}, {settings.dtype}")
    say(
        f"text        {len(trainer.windows.tokens):,} tokens to train on, {len(trainer.validation):,} held out, "
        f"vocabulary {backend.config.vocab_size:,}"
    )
    say(
        f"training    steps {trainer.step:,} to {settings.steps:,}, {settings.batch_size} x "
        f"{backend.config.context_length} tokens each, {trainer.epochs:.1f} epochs in all"
    )
    say(
        f"machine     {backend.threads} threads, about {trainer.estimated_memory / 1e6:,.0f} MB of memory at the peak"
    )
    say(f"run         {run.path}")
    with interruptible() as trainer.interrupted, training_progress(trainer) as trainer.report:
        outcome = trainer.train()
    if not outcome.finished:
        say(f"stopped at step {outcome.step:,}; go on with: python cli.py train --resume --out {run.path}")
        raise typer.Exit(130)
    say(
        f"trained {outcome.step:,} steps, {outcome.seconds:.1f} s in this session: validation loss "
        f"{outcome.validation.loss:.4f} nats per token, perplexity {outcome.validation.perplexity:.3f}"
    )
    say(f"plot {run.plot}, checkpoints {run.latest} and {run.best}")
    say(f"\nwhat it writes (more: python cli.py generate {run.path}):\n")
    tokens = encode_prompt(trainer.tokenizer, "\n")
    for piece in generate_text(backend, trainer.tokenizer, tokens, 100, temperature=0.8, seed=settings.seed):
        write(piece)
    write("\n")


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[str | None, option("Text to continue. [default: begin a new line]")] = None,
    max_new_tokens: Annotated[int, option("Tokens to add.")] = 100,
    temperature: Annotated[float, option("Divides the logits; 0 is greedy.")] = 0.8,
    top_k: Annotated[int | None, option("Draw among the k likeliest tokens. [default: all]")] = None,
    top_p: Annotated[float | None, option("Draw among the likeliest that reach p. [default: all]")] = None,
    seed: Annotated[int, option("Of the draws.")] = 0,
    num_samples: Annotated[int, option("Texts to write, one after the other.")] = 1,
    backend: BackendOption = "numpy",
    threads: ThreadsOption = None,
):
    """Write text with a trained model, token by token as it comes."""
    from harness.console import say, write
    from harness.generation import encode_prompt, generate_text
    from harness.runs import open_model

    for name, value in (("max-new-tokens", max_new_tokens), ("num-samples", num_samples)):
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    model, checkpoint = open_model(run, backend=backend, threads=threads)
    tokens = encode_prompt(checkpoint.tokenizer, prompt)
    context_length = checkpoint.config.context_length
    if len(tokens) > context_length:
        say(f"the prompt has {len(tokens)} tokens; the model sees only the last {context_length} of them")
    for sequence in range(num_samples):
        pieces = generate_text(
            model,
            checkpoint.tokenizer,
            tokens,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            sequence=sequence,
        )
        write(prompt or "")
        for piece in pieces:
            write(piece)
        write("\n")


@app.command()
def evaluate(
    run: RunArgument,
    text: Annotated[Path | None, option("UTF-8 text. [default: the run's held-out split]")] = None,
    batch_size: Annotated[int, option("Windows at once.")] = 32,
    as_json: JsonOption = False,
    backend: BackendOption = "numpy",
    threads: ThreadsOption = None,
):
    """Measure how well a trained model predicts a text."""
    from data.tokenizers import token_lengths
    from harness.evaluation import bits_per_byte, evaluate
    from harness.runs import evaluation_tokens, open_model

    model, checkpoint = open_model(run, backend=backend, threads=threads)
    with evaluation_tokens(run, checkpoint, text) as tokens:
        result = evaluate(model, tokens, batch_size)
        record = {
            "text": text.name if text else "held-out split",
            "tokens": result.tokens,
            "nats_per_token": result.loss,
            "perplexity": result.perplexity,
            "bits_per_byte": bits_per_byte(result, tokens, token_lengths(checkpoint.tokenizer)),
        }
    _print_record(record, as_json)


@app.command()
def info(run: RunArgument, as_json: JsonOption = False):
    """Describe a checkpoint: model, tokenizer, training so far."""
    from contract.weights import parameter_count
    from data.tokenizers import identity
    from harness.checkpoint import load_checkpoint
    from harness.run_folder import find_checkpoint

    folder = find_checkpoint(run)
    checkpoint = load_checkpoint(folder)
    record = {
        "checkpoint": str(folder),
        "parameters": parameter_count(checkpoint.config),
        "step": checkpoint.step,
        "validation_loss": checkpoint.validation_loss,
        "model": checkpoint.config.to_dict(),
        "tokenizer": identity(checkpoint.tokenizer),
        "training": checkpoint.training,
    }
    _print_record(record, as_json)


def _print_record(record: dict, as_json: bool):
    if as_json:
        typer.echo(json.dumps(record))
        return
    rows = {}
    for name, value in record.items():
        rows |= (
            {f"{name}.{key}": each for key, each in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:<{width}}  {f'{value:,}' if isinstance(value, int) else value}")


def main() -> int:
    """Run the command line. returns: the exit code"""
    try:
        return app(standalone_mode=False) or 0
    except UserError as error:
        problem, code = str(error), error.exit_code
    except typer.Exit as exit:
        return exit.exit_code
    except (typer.Abort, KeyboardInterrupt):
        problem, code = "interrupted", 130
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem, code = f"{where}{error.strerror or error}", 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # what every error of the option parser has
            raise
        problem, code = f"{error.format_message()}; see --help", error.exit_code
    print(f"error: {' '.join(problem.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
