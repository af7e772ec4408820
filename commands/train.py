"""Training: `train`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from commands.options import (
    CONFIG_HELP,
    MODEL,
    PLACE,
    TOKENIZER_HELP,
    TRAINING,
    BackendOption,
    DeviceOption,
    ThreadsOption,
    option,
)
from contract.components import COMPONENTS
from contract.errors import ConfigError, command_line
from harness.training.settings import FINE_TUNING, Machine, TrainingSettings

MODEL_FLAGS = (
    "n_layer",
    "n_head",
    "d_model",
    "d_ff",
    "context_length",
    "activation",
    "position",
    "norm",
    "dropout",
)
SETTINGS = tuple(TrainingSettings.__dataclass_fields__)
DEFAULTS = TrainingSettings
_FINE_TUNING = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in FINE_TUNING.items())


def _choices(slot: str) -> str:
    return f"{' or '.join(COMPONENTS[slot])}."


def train(
    context: typer.Context,
    text: Annotated[
        Path | None,
        option(
            "UTF-8 text, or a .bin of `prepare`; with --resume, the new path of that .bin. "
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
    preset: Annotated[
        str, option("tense, nano, gpt2, gpt2-medium, gpt2-large or gpt2-xl.", panel=MODEL)
    ] = "tense",
    config: Annotated[Path | None, option(f"{CONFIG_HELP} Instead of --preset.", panel=MODEL)] = None,
    n_layer: Annotated[int | None, option("Transformer blocks.", panel=MODEL)] = None,
    n_head: Annotated[int | None, option("Attention heads per block.", panel=MODEL)] = None,
    d_model: Annotated[int | None, option("Channels of the residual stream.", panel=MODEL)] = None,
    d_ff: Annotated[int | None, option("Hidden channels of the feed-forward layer.", panel=MODEL)] = None,
    context_length: Annotated[int | None, option("Tokens the model sees at once.", panel=MODEL)] = None,
    activation: Annotated[str | None, option(_choices("activation"), panel=MODEL)] = None,
    position: Annotated[str | None, option(_choices("position"), panel=MODEL)] = None,
    norm: Annotated[str | None, option(_choices("norm"), panel=MODEL)] = None,
    dropout: Annotated[float | None, option("Probability of dropping an activation.", panel=MODEL)] = None,
    steps: Annotated[
        int | None, option(f"Optimiser steps. [default: {DEFAULTS.steps}]", panel=TRAINING)
    ] = None,
    epochs: Annotated[
        float | None, option("Passes over the text, instead of --steps.", panel=TRAINING)
    ] = None,
    batch_size: Annotated[int, option("Sequences per step.", panel=TRAINING)] = DEFAULTS.batch_size,
    accumulate: Annotated[
        int, option("Micro-batches per batch: less memory, same result.", panel=TRAINING)
    ] = DEFAULTS.accumulate,
    learning_rate: Annotated[float, option("Peak learning rate.", panel=TRAINING)] = DEFAULTS.learning_rate,
    min_learning_rate: Annotated[
        float | None,
        option("Learning rate at the end. [default: a tenth of --learning-rate]", panel=TRAINING),
    ] = None,
    warmup_steps: Annotated[
        int | None,
        option("Steps to reach the peak. [default: a tenth of the steps, at most 100]", panel=TRAINING),
    ] = None,
    weight_decay: Annotated[
        float, option("Weight decay of AdamW, on matrices only.", panel=TRAINING)
    ] = DEFAULTS.weight_decay,
    beta1: Annotated[float, option("Adam's decay rate of the mean.", panel=TRAINING)] = DEFAULTS.beta1,
    beta2: Annotated[float, option("Adam's decay rate of the mean square.", panel=TRAINING)] = DEFAULTS.beta2,
    clip: Annotated[
        float, option("Maximum gradient norm; inf turns clipping off.", panel=TRAINING)
    ] = DEFAULTS.clip,
    eval_interval: Annotated[
        int, option("Steps between evaluations and checkpoints.", panel=TRAINING)
    ] = DEFAULTS.eval_interval,
    eval_tokens: Annotated[
        int | None,
        option(
            "Held-out tokens of the final evaluation. [default: all, at most 2^21 and half the tokens trained on]",
            panel=TRAINING,
        ),
    ] = None,
    seed: Annotated[int, option("Seed of weights, batch order and dropout.", panel=TRAINING)] = DEFAULTS.seed,
    dtype: Annotated[str, option("float32 or float64.", panel=TRAINING)] = DEFAULTS.dtype,
    backend: BackendOption = "numpy",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    out: Annotated[Path | None, option("Run folder. [default: a new one in runs/]", panel=PLACE)] = None,
    resume: Annotated[bool, option("Continue the run in --out.", "--resume", panel=PLACE)] = False,
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite", panel=PLACE)] = False,
):
    """Train a GPT on a text, save checkpoints and print a sample.

    Without options: on the project's own corpus, in a minute or two.
    """
    given = {name: value for name, value in context.params.items() if _is_given(context, name)}
    _train(_resumed(given) if resume else _started(context.params, given))


def _is_given(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name).name == "COMMANDLINE"


def _named(options: dict, names) -> dict:
    return {name: options[name] for name in names if name in options}


def _started(options: dict, given: dict):
    """The trainer of a new run. given: the options of the command line; options: these and all defaults"""
    from commands.console import reading_progress
    from data.prepare import DEFAULT_TEXT
    from harness.training.run_folder import unused_folder
    from harness.training.runs import start_run

    models = [name for name in ("preset", "config", "from_") if name in given]
    if len(models) > 1:
        one, other = (f"--{name.strip('_')}" for name in models[:2])
        raise ConfigError(f"{one} does not go with {other}, which has a model of its own; give one of them")
    text, out = options["text"] or DEFAULT_TEXT, options["out"]
    place = unused_folder(Path("runs") / text.stem) if out is None else nullcontext(out)
    with place as folder, reading_progress(text, "tokenising") as progress:
        return start_run(
            folder,
            text=text,
            tokenizer=options["tokenizer"],
            start=options["from_"],
            preset_name=options["preset"],
            config=options["config"],
            overrides=_named(given, MODEL_FLAGS),
            training=_named(given, (*SETTINGS, "epochs")),
            overwrite=options["overwrite"],
            progress=progress,
            **_named(options, Machine._fields),
        )


def _resumed(given: dict):
    """The trainer of the run in --out, or a ConfigError naming an option that does not go with --resume."""
    from harness.training.runs import resume_run

    accepted = ("out", "text", *Machine._fields)
    for name in given:
        if name not in ("resume", *accepted, *MODEL_FLAGS, *SETTINGS):
            raise ConfigError(
                f"--{name.strip('_').replace('_', '-')} does not go with --resume: the run keeps its own settings; "
                "omit it"
            )
    if "out" not in given:
        raise ConfigError("--resume needs --out, the folder of the run to continue")
    return resume_run(
        **_named(given, accepted), training=_named(given, SETTINGS), overrides=_named(given, MODEL_FLAGS)
    )


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
        say(
            f"stopped at step {outcome.step:,}; continue with: {command_line('train', '--resume', '--out', run.path)}"
        )
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
    from contract.weights import parameter_count

    backend, settings = trainer.backend, trainer.settings
    config, steps, rate = backend.config, settings.steps, settings.rate
    yield "model", f"{parameter_count(config):,} parameters, {backend.name}, {settings.dtype}"
    yield (
        "text",
        f"{len(trainer.windows.tokens):,} tokens to train on, {len(trainer.validation):,} held out, "
        f"vocabulary {config.vocab_size:,}",
    )
    yield (
        "training",
        f"steps {trainer.step:,} to {steps:,}, {settings.batch_size} x {config.context_length} tokens each, "
        f"{trainer.epochs:.1f} epochs in all",
    )
    memory = f"about {trainer.estimated_memory / 1e6:,.0f} MB of memory at the peak"
    yield "machine", f"{backend.threads} threads, {memory}"
    yield "run", f"{trainer.run.path}"
    if settings.warmup_steps > steps:
        yield (
            "warm-up",
            f"{settings.warmup_steps:,} steps exceed the training's {steps:,}: the learning rate only reaches "
            f"{rate(steps - 1):.1e} of {settings.learning_rate:.1e}",
        )
    before, after = trainer.rate_change or (0.0, 0.0)
    if f"{before:.1e}" != f"{after:.1e}":
        yield (
            "schedule",
            f"learning rate goes from {before:.1e} {'up' if after > before else 'down'} to {after:.1e}: the schedule "
            f"now ends at step {steps:,}, at {settings.min_learning_rate:.1e}",
        )


def _write_sample(trainer):
    from commands.console import say, write
    from harness.training.generation import encode_prompt, generate_text

    say(f"\na sample (more: {command_line('generate', trainer.run.path)}):\n")
    try:
        tokens = encode_prompt(trainer.tokenizer, None)
    except ConfigError:  # a text without line breaks: start the sample as its held-out part does
        tokens = trainer.validation[:1].tolist()
    sampling = {"temperature": 0.8, "seed": trainer.settings.seed}
    for piece in generate_text(trainer.backend, trainer.tokenizer, tokens, 100, **sampling):
        write(piece)
    write("\n")
