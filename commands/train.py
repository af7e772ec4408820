"""Training: `train`."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from commands import options
from commands.options import CONFIG_HELP, MODEL, TOKENIZER_HELP, TRAINING, option
from contract.components import COMPONENTS
from contract.errors import ConfigError, command_line
from contract.presets import PRESETS
from harness.training.settings import FINE_TUNING, Machine, TrainingSettings

MODEL_FLAGS = [
    "n_layer",
    "n_head",
    "d_model",
    "d_ff",
    "context_length",
    "activation",
    "position",
    "norm",
    "dropout",
]
SETTINGS = tuple(TrainingSettings.__dataclass_fields__)
DEFAULTS = TrainingSettings
_FINE_TUNING = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in FINE_TUNING.items())
_model, _training, _place = (partial(option, panel=panel) for panel in (MODEL, TRAINING, options.PLACE))


def _choices(slot: str):
    return _model(f"{' or '.join(COMPONENTS[slot])}.")


def train(
    context: typer.Context,
    text: Annotated[
        list[Path] | None,
        option(
            "Text, folder or JSONL as for `prepare`, may be repeated; or the .bin of `prepare`, with --resume "
            "its new path. "
            "[default: data/tense.txt]"
        ),
    ] = None,
    tokenizer: Annotated[str | None, option(f"{TOKENIZER_HELP} [default: bytes]")] = None,
    from_: Annotated[
        Path | None,
        option(
            "Run or checkpoint to start from, with its weights, model and tokenizer. The defaults then are "
            f"{_FINE_TUNING}.",
            "--from",
        ),
    ] = None,
    pattern: options.PatternOption = None,
    field: options.FieldOption = None,
    separator: options.SeparatorOption = None,
    newlines: options.NewlinesOption = "keep",
    validation: options.ValidationOption = None,
    validation_fraction: options.FractionOption = 0.1,
    held_out: options.HeldOutOption = None,
    held_out_seed: options.HeldOutSeedOption = 0,
    preset: Annotated[str, _model(f"{', '.join(PRESETS)}.")] = "tense",
    config: Annotated[Path | None, _model(f"{CONFIG_HELP} Instead of --preset.")] = None,
    n_layer: Annotated[int | None, _model("Transformer blocks.")] = None,
    n_head: Annotated[int | None, _model("Attention heads per block.")] = None,
    d_model: Annotated[int | None, _model("Channels of the residual stream.")] = None,
    d_ff: Annotated[int | None, _model("Hidden channels of the feed-forward layer.")] = None,
    context_length: Annotated[int | None, _model("Tokens the model sees at once.")] = None,
    activation: Annotated[str | None, _choices("activation")] = None,
    position: Annotated[str | None, _choices("position")] = None,
    norm: Annotated[str | None, _choices("norm")] = None,
    dropout: Annotated[float | None, _model("Probability of dropping an activation.")] = None,
    steps: Annotated[int | None, _training(f"Optimiser steps. [default: {DEFAULTS.steps}]")] = None,
    epochs: Annotated[float | None, _training("Passes over the text, instead of --steps.")] = None,
    batch_size: Annotated[int, _training("Sequences per step.")] = DEFAULTS.batch_size,
    accumulate: Annotated[
        int, _training("Micro-batches per batch: less memory, same result.")
    ] = DEFAULTS.accumulate,
    sequence_length: Annotated[
        int | None,
        _training(
            "Tokens of a sequence. [default: the model's context length; with --from what memory holds]"
        ),
    ] = None,
    learning_rate: Annotated[float, _training("Peak learning rate.")] = DEFAULTS.learning_rate,
    min_learning_rate: Annotated[
        float | None, _training("Learning rate at the end. [default: a tenth of --learning-rate]")
    ] = None,
    warmup_steps: Annotated[
        int | None, _training("Steps to reach the peak. [default: a tenth of the steps, at most 100]")
    ] = None,
    weight_decay: Annotated[
        float, _training("Weight decay of AdamW, on matrices only.")
    ] = DEFAULTS.weight_decay,
    beta1: Annotated[float, _training("Adam's decay rate of the mean.")] = DEFAULTS.beta1,
    beta2: Annotated[float, _training("Adam's decay rate of the mean square.")] = DEFAULTS.beta2,
    clip: Annotated[float, _training("Maximum gradient norm; inf turns clipping off.")] = DEFAULTS.clip,
    eval_interval: Annotated[
        int, _training("Steps between evaluations and checkpoints.")
    ] = DEFAULTS.eval_interval,
    eval_tokens: Annotated[
        int | None,
        _training(
            "Held-out tokens of the final evaluation. [default: all, at most 2^21 and half the tokens trained on]"
        ),
    ] = None,
    seed: Annotated[int, _training("Seed of weights, batch order and dropout.")] = DEFAULTS.seed,
    dtype: Annotated[str, _training("float32 or float64.")] = DEFAULTS.dtype,
    backend: options.BackendOption = "numpy",
    device: options.DeviceOption = "cpu",
    threads: options.ThreadsOption = None,
    out: Annotated[Path | None, _place("Run folder. [default: a new one in runs/]")] = None,
    resume: Annotated[bool, _place("Continue the run in --out.", "--resume")] = False,
    overwrite: Annotated[bool, _place("Replace the run in --out.", "--overwrite")] = False,
):
    """Train a GPT on texts, save checkpoints and print a sample.

    Without options: on the project's own corpus, in a minute or two.
    """
    given = options.given_options(context)
    _train(_resumed(given) if resume else _started(context.params, given))


def _named(parameters: dict, names) -> dict:
    return {name: parameters[name] for name in names if name in parameters}


def _started(parameters: dict, given: dict):
    """The trainer of a new run. given: the options of the command line; parameters: these and all defaults"""
    from commands.console import reading_progress
    from data.prepare import DEFAULT_TEXT
    from harness.training.run_folder import unused_folder
    from harness.training.runs import start_run

    models = [name for name in ("preset", "config", "from_") if name in given]
    if len(models) > 1:
        one, other = (f"--{name.strip('_')}" for name in models[:2])
        raise ConfigError(f"{one} does not go with {other}, which has a model of its own; give one of them")
    texts, out = options.named_texts(parameters["text"] or [DEFAULT_TEXT], given), parameters["out"]
    place = unused_folder(Path("runs") / _run_name(texts.named[0])) if out is None else nullcontext(out)
    with place as folder, reading_progress(texts.size, "tokenising") as progress:
        return start_run(
            folder,
            text=texts,
            held_out=options.named_held_out(given),
            tokenizer=parameters["tokenizer"],
            start=parameters["from_"],
            preset_name=parameters["preset"],
            config=parameters["config"],
            overrides=_named(given, MODEL_FLAGS),
            training=_named(given, (*SETTINGS, "epochs")),
            overwrite=parameters["overwrite"],
            progress=progress,
            **_named(parameters, Machine._fields),
        )


def _run_name(text: Path) -> str:
    """What a run's folder is called after its first text."""
    from data.sources import unpacked_name
    from data.text import STDIN

    if text == STDIN:
        return "stdin"
    return text.resolve().name if text.is_dir() else unpacked_name(text).stem


def _resumed(given: dict):
    """The trainer of the run in --out, or a ConfigError naming an option that does not go with --resume."""
    from harness.training.runs import resume_run

    accepted = ("out", "text", *Machine._fields)
    for name in given:
        if name not in ("resume", *accepted, *MODEL_FLAGS, *SETTINGS):
            flag = f"--{name.strip('_').replace('_', '-')}"
            raise ConfigError(f"{flag} does not go with --resume: the run keeps its own settings; omit it")
    if "out" not in given:
        raise ConfigError("--resume needs --out, the folder of the run to continue")
    kept = _named(given, accepted)
    if "text" in kept:
        if len(kept["text"]) > 1:
            raise ConfigError(
                "--resume takes one --text, the .bin that the run was started with; omit the others"
            )
        kept["text"] = kept["text"][0]
    return resume_run(**kept, training=_named(given, SETTINGS), overrides=_named(given, MODEL_FLAGS))


def _train(trainer):
    from commands.console import say, training_progress
    from commands.interruption import finishing

    for topic, line in _plan(trainer):
        say(f"{topic:<11} {line}")
    ending = "stopping after this step to save a checkpoint; interrupt again to quit at once"
    with (
        finishing(ending) as trainer.interrupted,
        training_progress(trainer) as (trainer.report, trainer.report_evaluation),
    ):
        outcome = trainer.train()
    run = trainer.run
    if outcome.plot_problem:
        say(f"could not draw the plot {run.plot}: {outcome.plot_problem}")
    if not outcome.finished:
        again = command_line("train", "--resume", "--out", run.path)
        say(f"stopped at step {outcome.step:,}; continue with: {again}")
        raise typer.Exit(130)
    validation, held_out = outcome.validation, len(trainer.validation)
    part = "all" if validation.tokens == held_out - 1 else f"{validation.tokens:,} of"
    say(
        f"trained {outcome.step:,} steps, {outcome.seconds:.1f} s in this session: validation loss "
        f"{validation.loss:.4f} nats per token, perplexity {validation.perplexity:.3f}, "
        f"over {part} {held_out:,} held-out tokens"
    )
    plot = "" if outcome.plot_problem else f"plot {run.plot}, "
    say(f"{plot}checkpoints {run.latest} and {run.best}")
    _write_sample(trainer)


def _plan(trainer):
    """What is about to happen: a topic and a line each."""
    from commands.corpus import described
    from contract.weights import parameter_count
    from data.prepare import read_info

    backend, settings = trainer.backend, trainer.settings
    config, steps, rate = backend.config, settings.steps, settings.rate
    yield "model", f"{parameter_count(config):,} parameters, {backend.name}, {settings.dtype}"
    tokens = f"{len(trainer.windows.tokens):,} tokens to train on, {len(trainer.validation):,} held out"
    yield "text", f"{tokens}, vocabulary {config.vocab_size:,}"
    yield from described(read_info(trainer.windows.tokens.store.path))
    T, context_length = trainer.windows.sequence_length, config.context_length
    batch = f"{settings.batch_size} x {T} tokens each"
    yield "training", f"steps {trainer.step:,} to {steps:,}, {batch}, {trainer.epochs:.1f} epochs in all"
    if context_length > T:
        yield (
            "sequences",
            f"{T:,} tokens of the {context_length:,} that the model can see (--sequence-length)",
        )
    memory = trainer.estimated_memory / 1e6
    yield "machine", f"{backend.threads} threads, about {memory:,.0f} MB of memory at the peak"
    yield "run", f"{trainer.run.path}"
    if settings.warmup_steps > steps:
        reached = f"{rate(steps - 1):.1e} of {settings.learning_rate:.1e}"
        exceed = f"{settings.warmup_steps:,} steps exceed the training's {steps:,}"
        yield "warm-up", f"{exceed}: the learning rate only reaches {reached}"
    before, after = (f"{rate:.1e}" for rate in trainer.rate_change or (0.0, 0.0))
    if before != after:
        direction = "up" if float(after) > float(before) else "down"
        end = f"the schedule now ends at step {steps:,}, at {settings.min_learning_rate:.1e}"
        yield "schedule", f"learning rate goes from {before} {direction} to {after}: {end}"


def _write_sample(trainer):
    from commands.console import say, write
    from harness.training.generation import encode_prompt, ends, generate_text

    say(f"\na sample (more: {command_line('generate', trainer.run.path)}):\n")
    try:
        tokens = encode_prompt(trainer.tokenizer, None)
    except ConfigError:  # a text without line breaks: start the sample as its held-out part does
        tokens = trainer.validation[:1].tolist()
    sampling = {"temperature": 0.8, "seed": trainer.settings.seed, "stop": ends(trainer.tokenizer)}
    for piece in generate_text(trainer.backend, trainer.tokenizer, tokens, 100, **sampling):
        write(piece)
    write("\n")
