"""Starting a training run, going on with one, and opening what it made."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from math import ceil, inf
from os import PathLike
from pathlib import Path

import tiktoken

from contract.config import ModelConfig, preset
from contract.errors import ConfigError, UserError
from contract.schema import require
from contract.staging import clear_leftovers
from data.batches import windows_per_epoch
from data.prepare import TokenFile, TokenFileInfo, open_tokens, prepare
from data.tokenizers import load_ranks, open_tokenizer, tokenizer_is_fixed
from harness.training.backend import Backend, check_threads, open_backend
from harness.training.checkpoint import Checkpoint, checkpoint_exists, checkpoint_files, load_checkpoint
from harness.training.memory import check_memory
from harness.training.run_corpus import check_length, check_named, check_tokenizer, corpus_record, run_corpus
from harness.training.run_folder import RunFolder, find_checkpoint, new_run
from harness.training.settings import TrainingSettings
from harness.training.trainer import Trainer

DEFAULT_TEXT = Path(__file__).parents[2] / "data" / "tense.txt"
DEFAULT_RANKS = DEFAULT_TEXT.with_suffix(".tiktoken")
# Settings that --resume may change: how far the run goes and how it is evaluated; with more steps, the rates too.
CHANGEABLE = ("steps", "eval_interval", "eval_tokens")
CHANGEABLE_RATES = ("learning_rate", "min_learning_rate")
# What a checkpoint must say for its training to go on.
RESUMABLE = {
    **dict.fromkeys(("backend", "device", "tokens_sha256"), str),
    **dict.fromkeys(("steps", "batch_size", "threads"), range(1, 2**63)),
    "evaluated": range(2**63),
}


def open_prepared(path: Path) -> tuple[TokenFile, tiktoken.Encoding]:
    """Open what `prepare` wrote."""
    corpus = open_tokens(path)
    name = corpus.info.tokenizer["name"]
    encoding = (
        open_tokenizer(name) if name == "gpt2" else load_ranks(path.with_suffix(".tiktoken"), name=name)
    )
    return corpus, encoding


def default_tokenizer(text: Path) -> str:
    """The tokenizer of a text that was given none: the shipped ranks for the shipped text, else its bytes."""
    return str(DEFAULT_RANKS) if text == DEFAULT_TEXT else "bytes"


def start_run(
    out: str | PathLike,
    *,
    text: str | PathLike = DEFAULT_TEXT,
    tokenizer: str | None = None,
    preset_name: str = "tense",
    overrides: dict | None = None,
    training: dict,
    epochs: float | None = None,
    start: str | PathLike | None = None,
    backend: str = "numpy",
    device: str = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Trainer:
    """Prepare a new run in the folder `out`: its tokens, its model, its trainer.

    text: a UTF-8 text, or a token file that `prepare` wrote, which keeps its own tokenizer
    tokenizer: see `data.tokenizers.open_tokenizer`; None takes `default_tokenizer`
    preset_name, overrides: see `contract.config.preset`
    training: fields of TrainingSettings; epochs: takes the place of its `steps`
    start: a run or checkpoint to take weights, configuration and tokenizer from; `preset_name` counts for
        nothing then, and `overrides` may change the dropout alone

    Raises UserError where anything does not fit; nothing has been written or replaced then.
    """
    out, text, start = Path(out), Path(text), start and Path(start)
    for flag, source in (("--text", text), ("--from", start)):
        if overwrite and source and out.is_dir() and RunFolder(out).holds(source):
            raise ConfigError(
                f"{flag} {source} is of the run that --overwrite replaces; choose another --out"
            )
    base = None if start is None else load_checkpoint(find_checkpoint(start))
    if base and tokenizer is not None:
        raise ConfigError(f"--tokenizer does not go with --from: {start} has the tokenizer it was made with")
    run = RunFolder(out)
    with new_run(run, overwrite=overwrite) as staged:
        corpus, encoding = _training_corpus(text, tokenizer, base, staged.tokens, progress)
        if base:
            config = _overridden(base.config, overrides or {}, start)
        else:
            config = preset(preset_name, vocab_size=encoding.n_vocab, **(overrides or {}))
        if epochs is not None:
            training = training | {"steps": _steps(epochs, corpus.info, config, training)}
        settings = TrainingSettings(**training)
        check_length(text, corpus.info, config, base is not None)
        opened = open_training_backend(backend, device, config, settings, threads, base and base.weights)
        del corpus  # an open file cannot be moved on Windows
    corpus = open_tokens(text if text.suffix == ".bin" else run.tokens)
    record = {"source": text.name} | corpus_record(run, corpus) | _computed_by(opened, device)
    record |= {"from": start.name} if start else {}
    return Trainer(opened, settings, run, corpus, encoding, record=record)


def _training_corpus(
    text: Path, tokenizer: str | None, base: Checkpoint | None, out: Path, progress
) -> tuple[TokenFile, tiktoken.Encoding]:
    """The tokens to train on, prepared in `out` unless `text` is a token file, and what made them."""
    if text.suffix != ".bin":
        if base:
            with tokenizer_is_fixed("omit them, or train a new model without --from"):
                encoding = prepare(text, base.tokenizer, out, progress=progress)
        else:
            encoding = prepare(text, tokenizer or default_tokenizer(text), out, progress=progress)
        return open_tokens(out), encoding
    if tokenizer is not None:
        raise ConfigError(f"{text} is a token file with a tokenizer of its own; omit --tokenizer")
    corpus, encoding = (open_tokens(text), base.tokenizer) if base else open_prepared(text)
    check_tokenizer(corpus, encoding, "give its text itself" if base else "prepare the text again")
    return corpus, encoding


def _steps(epochs: float, info: TokenFileInfo, config: ModelConfig, training: dict) -> int:
    """The steps that so many passes over the text take."""
    if not 0 < epochs < inf:
        raise ConfigError(f"epochs must be a positive number, got {epochs}")
    per_epoch = windows_per_epoch(info.train_tokens, config.context_length)
    batch_size = TrainingSettings(**training | {"steps": 1}).batch_size  # a possible one
    return max(1, ceil(epochs * per_epoch / batch_size))


def resume_run(
    out: str | PathLike,
    *,
    training: dict | None = None,
    overrides: dict | None = None,
    text: Path | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Trainer:
    """Go on with the run in `out` from its latest checkpoint, with its own settings.

    training, overrides: settings given again, as for `start_run`. Those in `CHANGEABLE` take effect, and those in
        `CHANGEABLE_RATES` where the steps grow; another must be what the run has
    text: the token file that the run was started with, where it cannot be found, see `run_corpus`
    backend, device, threads: None takes the run's; another adds up in another order, so the last bits may differ

    Raises UserError where there is nothing to go on with, ConfigError naming a setting that would change the run.
    """
    run = RunFolder(out)
    clear_leftovers(run.path)
    with ExitStack() as undo:
        if checkpoint_exists(run.resumable):
            run.lock()  # before reading: another process may be writing
            undo.callback(run.unlock)
        elif run.holds_a_run():
            raise UserError(
                f"{out} has no checkpoint yet to go on from; start the run again with --overwrite"
            )
        trainer = _resumed(run, training or {}, overrides or {}, text, backend, device, threads)
        undo.pop_all()  # the trainer unlocks it when it has trained
    return trainer


def _latest_checkpoint(run: RunFolder) -> Checkpoint:
    try:
        return load_checkpoint(run.resumable, with_optimizer=True)
    except UserError as error:
        try:
            step = load_checkpoint(run.best, with_optimizer=True).step
        except UserError:
            raise error from None
        raise UserError(
            f"{error}. The best one, of step {step}, is whole: remove {run.latest} to go on from there"
        ) from None


def _resumed(
    run: RunFolder, training: dict, overrides: dict, text: Path | None, backend, device, threads
) -> Trainer:
    checkpoint = _latest_checkpoint(run)
    for place in (run.latest, run.best):
        if os.path.lexists(place) and checkpoint_files(place) is None:
            raise UserError(f"{place} is in the place of a checkpoint, but is none; move it away, then go on")
    if text:
        check_named(text, run, checkpoint)
    kept = checkpoint.training | checkpoint.config.to_dict()
    try:
        require(kept, RESUMABLE)
        if missing := TrainingSettings.__dataclass_fields__.keys() - kept.keys() - {"eval_tokens"}:
            raise ValueError(f"it has no {min(missing)}")
    except ValueError as error:
        raise UserError(
            f"{run.resumable} does not say what its training goes on with ({error}); start a new run with --from"
        ) from None
    settings = _resumed_settings(run, checkpoint, training)
    for name, value in overrides.items():
        if value != kept[name]:
            raise _would_change(run, name, value, kept[name])
    backend = backend or kept["backend"]
    device = device or (kept["device"] if backend == kept["backend"] else "cpu")
    threads = kept["threads"] if threads is None else threads
    opened = open_training_backend(backend, device, checkpoint.config, settings, threads, checkpoint.weights)
    corpus = run_corpus(run, checkpoint, text)
    record = {name: kept[name] for name in ("source", "from") if name in kept}
    record |= corpus_record(run, corpus) | _computed_by(opened, device)
    trainer = Trainer(opened, settings, run, corpus, checkpoint.tokenizer, record=record)
    trainer.resume(checkpoint)
    if trainer.done:
        raise UserError(
            f"{run.path} has done all its {settings.steps} steps; name more with --steps to train further"
        )
    return trainer


def _resumed_settings(run: RunFolder, checkpoint: Checkpoint, given: dict) -> TrainingSettings:
    """The settings of a checkpoint with those given again, or a ConfigError naming one that would change the run."""
    earlier = TrainingSettings.from_dict(checkpoint.training)
    another_rate = given.get("learning_rate", earlier.learning_rate) != earlier.learning_rate
    # A minimum that is not given follows another rate.
    following = {"min_learning_rate": None} if another_rate else {}
    settings = TrainingSettings(**earlier.to_dict() | following | given)
    changeable = CHANGEABLE + (CHANGEABLE_RATES if settings.steps > earlier.steps else ())
    for name in given:
        found, kept = getattr(settings, name), getattr(earlier, name)
        if name not in changeable and found != kept:
            way = ", or give more --steps beside it" if name in CHANGEABLE_RATES else ""
            raise _would_change(run, name, given[name], kept, way)
    return settings


def _would_change(run: RunFolder, name: str, found, kept, way: str = "") -> ConfigError:
    kept = "none" if kept is None else kept
    return ConfigError(
        f"--{name.replace('_', '-')} {found} would change the run in {run.path}, which has {kept}; "
        f"omit it{way}, or start a new run with --from"
    )


def _computed_by(backend: Backend, device: str) -> dict:
    """What a run must go on with to give the same bits."""
    return {"backend": backend.name, "device": device, "threads": backend.threads}


def open_training_backend(
    backend, device, config, settings: TrainingSettings, threads, weights=None
) -> Backend:
    """The backend that `settings` ask for; it takes `weights` over."""
    check_threads(threads)
    check_memory(backend, config, settings, threads)
    return open_backend(
        backend,
        config,
        weights,
        seed=settings.seed,
        dtype=settings.dtype,
        threads=threads,
        device=device,
        beta1=settings.beta1,
        beta2=settings.beta2,
        weight_decay=settings.weight_decay,
        take_weights=True,
    )


def open_model(
    path: Path, *, backend: str = "numpy", device: str = "cpu", threads: int | None = None
) -> tuple[Backend, Checkpoint]:
    """A trained model, ready to generate or evaluate, with the checkpoint that it comes from.

    path: a run's folder, of which the best checkpoint is taken, or a checkpoint's own
    """
    checkpoint = load_checkpoint(find_checkpoint(path))
    return open_backend(
        backend,
        checkpoint.config,
        checkpoint.weights,
        dtype=checkpoint.weights.flat.dtype.name,
        threads=threads,
        device=device,
        take_weights=True,
    ), checkpoint


def _overridden(config: ModelConfig, overrides: dict, start: Path) -> ModelConfig:
    """The configuration of trained weights with another dropout; all else that differs is refused."""
    for name, value in overrides.items():
        if name != "dropout" and value != getattr(config, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} {value} contradicts --from {start}, whose weights are of "
                f"{name} {getattr(config, name)}; omit it"
            )
    return ModelConfig(**config.to_dict() | overrides)
