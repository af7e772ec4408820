"""Training: `train`."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from commands import options
from commands.options import CONFIG_HELP, LEARNING_RATE, MODEL, TOKENIZER_HELP, TRAINING, WATCHING, option
from commands.ranks import all_ranks
from contract.components import COMPONENTS
from contract.errors import ConfigError
from contract.presets import PRESETS
from harness.training.schedule import SCHEDULES
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
    "lora_rank",
    "lora_alpha",
    "lora_targets",
]
SETTINGS = tuple(TrainingSettings.__dataclass_fields__)
DEFAULTS = TrainingSettings
_FINE_TUNING = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in FINE_TUNING.items())
_panels = (MODEL, LEARNING_RATE, WATCHING, TRAINING, options.TUNING, options.PLACE)
_model, _rate, _watching, _training, _tuning, _place = (partial(option, panel=panel) for panel in _panels)


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
    preset: Annotated[str, option(f"{', '.join(PRESETS)}.")] = "tense",
    steps: Annotated[int | None, option(f"Optimiser steps. [default: {DEFAULTS.steps}]")] = None,
    batch_size: Annotated[int, option("Sequences per step.")] = DEFAULTS.batch_size,
    learning_rate: Annotated[float, option("Peak learning rate.")] = DEFAULTS.learning_rate,
    out: Annotated[Path | None, option("Run folder. [default: a new one in runs/]")] = None,
    resume: Annotated[bool, option("Continue the run in --out.", "--resume")] = False,
    from_: Annotated[
        Path | None,
        option(
            "Run or checkpoint to start from, with its weights, model and tokenizer. The defaults then are "
            f"{_FINE_TUNING}.",
            "--from",
        ),
    ] = None,
    backend: Annotated[str, option("numpy or torch.")] = "numpy",
    pattern: options.PatternOption = None,
    field: options.FieldOption = None,
    separator: options.SeparatorOption = None,
    newlines: options.NewlinesOption = "keep",
    validation: options.ValidationOption = None,
    validation_fraction: options.FractionOption = 0.1,
    held_out: options.HeldOutOption = None,
    held_out_seed: options.HeldOutSeedOption = 0,
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
    find_rate: Annotated[
        bool, _rate("Only try which --learning-rate fits; nothing is trained.", "--find-rate")
    ] = False,
    schedule: Annotated[
        str, _rate(f"{', '.join(SCHEDULES)}: how it falls. wsd stays at the peak, but for the last fifth.")
    ] = DEFAULTS.schedule,
    min_learning_rate: Annotated[
        float | None, _rate("Learning rate at the end. [default: a tenth of --learning-rate]")
    ] = None,
    warmup_steps: Annotated[
        int | None, _rate("Steps to reach the peak. [default: a tenth of the steps, at most 100]")
    ] = None,
    eval_interval: Annotated[
        int, _watching("Steps between evaluations and checkpoints.")
    ] = DEFAULTS.eval_interval,
    eval_tokens: Annotated[
        int | None,
        _watching(
            "Held-out tokens of the final evaluation. [default: all, at most 2^21 and half the tokens trained on]"
        ),
    ] = None,
    patience: Annotated[
        int | None,
        _watching("Stop after so many evaluations without a better one; 0: never. [default: never]"),
    ] = None,
    sample_every: Annotated[
        int | None, _watching("Steps between samples, written to samples.txt too. [default: none]")
    ] = None,
    tensorboard: Annotated[
        bool, _watching("Also write the metrics for TensorBoard.", "--tensorboard")
    ] = False,
    epochs: Annotated[float | None, _training("Passes over the text, instead of --steps.")] = None,
    dry_run: Annotated[
        bool, _training("Only say what would be done, and show the tokens to learn.", "--dry-run")
    ] = False,
    accumulate: Annotated[
        int, _training("Micro-batches per batch: less memory, same result.")
    ] = DEFAULTS.accumulate,
    sequence_length: Annotated[
        int | None,
        _training(
            "Tokens of a sequence. [default: the model's context length; with --from what memory holds]"
        ),
    ] = None,
    weight_decay: Annotated[
        float, _training("Weight decay of AdamW, on matrices only.")
    ] = DEFAULTS.weight_decay,
    beta1: Annotated[float, _training("Adam's decay rate of the mean.")] = DEFAULTS.beta1,
    beta2: Annotated[float, _training("Adam's decay rate of the mean square.")] = DEFAULTS.beta2,
    clip: Annotated[float, _training("Maximum gradient norm; inf turns clipping off.")] = DEFAULTS.clip,
    seed: Annotated[int, _training("Seed of weights, batch order and dropout.")] = DEFAULTS.seed,
    dtype: Annotated[
        str, _training("float32, float64 or, in PyTorch, bfloat16: products in bfloat16, weights in float32.")
    ] = DEFAULTS.dtype,
    grow_vocabulary: Annotated[
        int | None,
        _tuning(
            "Give the symbols that the tokenizer lacks tokens of their own, and learn so many more "
            "from the text. [default: keep the tokenizer]"
        ),
    ] = None,
    lora_rank: Annotated[
        int | None,
        _tuning(
            "Train low-rank pairs of this rank alone (LoRA); 0 merges those of the run. "
            "[default: none, or the run's]"
        ),
    ] = None,
    lora_alpha: Annotated[
        float | None, _tuning("Their product is multiplied by alpha / rank. [default: twice the rank]")
    ] = None,
    lora_targets: Annotated[
        str | None,
        _tuning("What they adapt, such as 'query_key_value output'. [default: these, up, down and a gate's]"),
    ] = None,
    freeze: Annotated[
        str,
        _tuning("Weights to leave as they are, such as 'blocks.[0-3] token_embedding'. [default: none]"),
    ] = DEFAULTS.freeze,
    device: options.DeviceOption = "cpu",
    threads: options.ThreadsOption = None,
    compile: Annotated[
        bool, _place("Compile the training step, with PyTorch and a C++ compiler.", "--compile/--no-compile")
    ] = False,
    shard: Annotated[
        bool, _place("Under torchrun: each process keeps a part of the model, not all of it.", "--shard")
    ] = False,
    overlap: Annotated[
        bool,
        _place("Under torchrun: add up gradients while others are computed; other last bits.", "--overlap"),
    ] = False,
    overwrite: Annotated[bool, _place("Replace the run in --out.", "--overwrite")] = False,
):
    """Train a GPT on texts, save checkpoints and print a sample.

    Without options: on the project's own corpus, in a minute or two.
    """
    if tensorboard:
        from harness.training.event_files import check_tensorboard

        check_tensorboard()  # before the text is tokenised
    given = options.given_options(context)
    with all_ranks(given) as ranks:
        if find_rate and not resume:
            from commands.find_rate import find

            find(context.params, given)
        elif dry_run and not resume:
            from commands.dry_run import dry_run as show_plan

            show_plan(context.params, given)
        else:
            trainer = _resumed(given, ranks) if resume else start(context.params, given, ranks)
            _train(trainer, tensorboard, ranks)


def _named(parameters: dict, names) -> dict:
    return {name: parameters[name] for name in names if name in parameters}


def _model_fields(given: dict) -> dict:
    fields = _named(given, MODEL_FLAGS)
    if "lora_targets" in fields:
        fields["lora_targets"] = tuple(fields["lora_targets"].split())
    return fields


def start(parameters: dict, given: dict, ranks=None):
    """The trainer of a new run.

    given: the options of the command line; parameters: these and all defaults; ranks: see `all_ranks`
    """
    from commands.console import reading_progress
    from data.prepare import DEFAULT_TEXT
    from harness.training.run_folder import unused_folder
    from harness.training.runs import start_run

    models = [name for name in ("preset", "config", "from_") if name in given]
    if len(models) > 1:
        one, other = (f"--{name.strip('_')}" for name in models[:2])
        raise ConfigError(f"{one} does not go with {other}, which has a model of its own; give one of them")
    texts, out = options.named_texts(parameters["text"] or [DEFAULT_TEXT], given), parameters["out"]
    place = unused_folder(Path("runs") / run_name(texts.named[0])) if out is None else nullcontext(out)
    with place as folder, reading_progress(texts.size, "tokenising") as progress:
        return start_run(
            folder,
            text=texts,
            held_out=options.named_held_out(given),
            tokenizer=parameters["tokenizer"],
            start=parameters["from_"],
            grow_vocabulary=parameters["grow_vocabulary"],
            preset_name=parameters["preset"],
            config=parameters["config"],
            overrides=_model_fields(given),
            training=_named(given, (*SETTINGS, "epochs")),
            overwrite=parameters["overwrite"],
            progress=progress,
            ranks=ranks,
            **_named(parameters, Machine._fields),
        )


def run_name(text: Path) -> str:
    """What a run's folder is called after its first text."""
    from data.sources import unpacked_name
    from data.text import STDIN

    if text == STDIN:
        return "stdin"
    return text.resolve().name if text.is_dir() else unpacked_name(text).stem


def _resumed(given: dict, ranks=None):
    """The trainer of the run in --out, or a ConfigError naming an option that does not go with --resume."""
    from harness.training.runs import resume_run

    accepted = ("out", "text", *Machine._fields)
    for name in given:
        if name not in ("resume", "tensorboard", "shard", "overlap", *accepted, *MODEL_FLAGS, *SETTINGS):
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
    return resume_run(**kept, training=_named(given, SETTINGS), overrides=_model_fields(given), ranks=ranks)


def _train(trainer, tensorboard: bool, ranks):
    from commands.console import say, training_progress
    from commands.interruption import finishing
    from commands.train_report import plan, write_ending
    from harness.training.event_files import event_file

    for topic, line in plan(trainer, ranks):
        say(f"{topic:<11} {line}")
    ending = "stopping after this step to save a checkpoint; interrupt again to quit at once"
    events = event_file(trainer.run.events, trainer.step) if tensorboard else nullcontext(trainer.observe)
    with (
        finishing(ending) as trainer.interrupted,
        training_progress(trainer) as (trainer.report, trainer.report_evaluation),
        events as trainer.observe,
    ):
        outcome = trainer.train()
    write_ending(trainer, outcome)
