"""What `train` says before and after."""

import typer

from commands.console import say, write
from commands.corpus import described
from contract.errors import command_line
from contract.weights import frozen_names, parameter_count
from data.prepare import read_info
from harness.training.ranks import Ranks
from harness.training.run_folder import find_checkpoint
from harness.training.run_samples import sample
from harness.training.runs import open_model
from harness.training.trainer import Outcome, Trainer


def plan(trainer: Trainer, ranks: Ranks | None = None):
    """What is about to happen: a topic and a line each."""
    backend, settings = trainer.backend, trainer.settings
    config, steps = backend.config, settings.steps
    yield "model", f"{parameter_count(config):,} parameters, {backend.name}, {settings.dtype}"
    tokens = f"{len(trainer.windows.tokens):,} tokens to train on, {len(trainer.validation):,} held out"
    yield "text", f"{tokens}, vocabulary {config.vocab_size:,}"
    if (new := trainer.record.get("new_tokens")) is not None:
        yield "new tokens", f"{new:,} of {trainer.tokenizer.n_vocab:,} (--grow-vocabulary)"
    yield from described(read_info(trainer.windows.tokens.store.path))
    T, context_length = trainer.windows.sequence_length, config.context_length
    batch = f"{settings.batch_size} x {T} tokens each"
    yield "training", f"steps {trainer.step:,} to {steps:,}, {batch}, {trainer.epochs:.1f} epochs in all"
    if context_length > T:
        yield (
            "sequences",
            f"{T:,} tokens of the {context_length:,} that the model can see (--sequence-length)",
        )
    frozen = frozen_names(backend.weights(), settings.freeze)
    count = sum(backend.weights()[name].size for name in frozen)
    if config.lora_rank:
        pairs = f"rank {config.lora_rank}, alpha {config.lora_alpha:g}, of {', '.join(config.lora_targets)}"
        yield "low-rank", f"{pairs}: {parameter_count(config) - count:,} parameters are trained"
    if settings.freeze:
        yield "frozen", f"{count:,} parameters in {len(frozen)} weights, {settings.freeze}"
    memory, compiled = trainer.estimated_memory / 1e6, ", compiled" if backend.compile else ""
    each = " in this process" if ranks else ""
    yield (
        "machine",
        f"{backend.threads} threads{compiled}, about {memory:,.0f} MB of memory at the peak{each}",
    )
    if ranks and ranks.way == "exact":
        same = f"--accumulate {settings.accumulate} --threads {backend.threads}"
        yield "processes", f"{ranks.size}; one, or any that torchrun starts, give the same bits with {same}"
    elif ranks:
        yield "processes", f"{ranks.size}, by --{ranks.way}: the last bits depend on their number"
    yield "run", f"{trainer.run.path}"
    yield from _learning_rate(trainer)


def _learning_rate(trainer: Trainer):
    """What may surprise in the schedule."""
    settings, rate = trainer.settings, trainer.settings.rate
    steps = settings.steps - settings.schedule_start
    if settings.warmup_steps > steps:
        reached = f"{rate(settings.steps - 1):.1e} of {settings.learning_rate:.1e}"
        exceed = f"{settings.warmup_steps:,} steps exceed the training's {steps:,}"
        yield "warm-up", f"{exceed}: the learning rate only reaches {reached}"
    before, after = (f"{rate:.1e}" for rate in trainer.rate_change or (0.0, 0.0))
    if before != after:
        direction = "up" if float(after) > float(before) else "down"
        end = f"the schedule now ends at step {settings.steps:,}, at {settings.min_learning_rate:.1e}"
        if settings.schedule_start:
            covered = (
                f"the {settings.schedule} schedule of steps {settings.schedule_start:,} to {settings.steps:,}"
            )
            end = f"{covered} ends at {settings.min_learning_rate:.1e}"
        yield "schedule", f"learning rate goes from {before} {direction} to {after}: {end}"


def write_ending(trainer: Trainer, outcome: Outcome):
    """Say how training ended, and write a sample. Raises typer.Exit if it was interrupted."""
    run, settings = trainer.run, trainer.settings
    if outcome.plot_problem:
        say(f"could not draw the plot {run.plot}: {outcome.plot_problem}")
    if not outcome.finished:
        again = command_line("train", "--resume", "--out", run.path)
        say(f"stopped at step {outcome.step:,}; continue with: {again}")
        raise typer.Exit(130)
    if outcome.step < settings.steps:
        evaluations = f"{settings.patience:,} evaluation{'s' * (settings.patience > 1)}"
        say(f"ended early: {evaluations} without a better one (--patience {settings.patience})")
    validation, held_out = outcome.validation, len(trainer.validation)
    part = "all" if validation.tokens == held_out - 1 else f"{validation.tokens:,} of"
    say(
        f"trained {outcome.step:,} steps, {outcome.seconds:.1f} s in this session: validation loss "
        f"{validation.loss:.4f} nats per token, perplexity {validation.perplexity:.3f}, "
        f"over {part} {held_out:,} held-out tokens"
    )
    if not outcome.plot_problem:
        say(f"plot {run.plot}")
    _say_checkpoints(trainer)
    _write_sample(trainer)


def _say_checkpoints(trainer: Trainer):
    run, record = trainer.run, trainer.evaluations.record
    latest, best = (
        f"{f'step {step:,}, ' if step else ''}validation loss {loss:.4f}"  # the first release kept no best step
        for step, loss in ((trainer.step, record.validation_loss), (record.best_step, record.best_loss))
    )
    say(f"checkpoints {run.latest} ({latest}) and {run.best} ({best})")
    if record.initial_loss is not None and record.initial_loss <= record.best_loss:
        say(f"no evaluation was better than the one before the first step, {record.initial_loss:.4f}")


def _write_sample(trainer: Trainer):
    """Write a sample of the checkpoint that `generate` takes."""
    run, backend = trainer.run, trainer.backend
    place = find_checkpoint(run.path)
    if place == run.best and trainer.evaluations.record.best_step != trainer.step:
        machine = {"backend": backend.name, "device": backend.device, "threads": backend.threads}
        backend = open_model(place, **machine)[0]
    say(f"\na sample of the {place.name} checkpoint (more: {command_line('generate', run.path)}):\n")
    for piece in sample(backend, trainer.tokenizer, trainer.validation, trainer.settings.seed):
        write(piece)
    write("\n")
