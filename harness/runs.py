"""Starting a training run, going on with one, and opening what it made."""

from collections.abc import Callable
from contextlib import ExitStack
from math import ceil, inf
from pathlib import Path

import numpy as np
import tiktoken

from contract.config import ModelConfig, preset
from contract.errors import ConfigError, UserError
from data.batches import windows_per_epoch
from data.prepare import TokenFile, TokenFileInfo, open_tokens, preprocess_sentences
from data.tokenizers import (
    identity,
    is_bytewise,
    load_ranks,
    open_tokenizer,
    save_ranks,
    tokenizer_is_fixed,
)
from harness.backend import (
    Backend,
    available_processors,
    backend_class,
    check_threads,
    open_backend,
    physical_memory,
)
from harness.checkpoint import Checkpoint, checkpoint_exists, load_checkpoint
from harness.run_corpus import check_length, check_named, check_tokenizer, corpus_record, run_corpus
from harness.run_folder import RunFolder, find_checkpoint, new_run
from harness.trainer import Trainer, TrainingSettings, evaluation_due

DEFAULT_TEXT = Path(__file__).parents[1] / "data" / "tense.txt"
DEFAULT_RANKS = DEFAULT_TEXT.with_suffix(".tiktoken")
MOST_PARTS = 1024  # more micro-batches than anybody would wait for
# What may be set anew when a run goes on: how far it goes, and how often it looks at itself.
CHANGEABLE = ("steps", "eval_interval")


def prepare(
    text: Path,
    tokenizer: str | tiktoken.Encoding,
    out: Path,
    *,
    validation_fraction: float = 0.1,
    progress: Callable[[int], None] | None = None,
) -> tiktoken.Encoding:
    """Write a token file, its JSON and, beside them, the ranks of a tokenizer that is not tiktoken's own.

    text: a UTF-8 text; tokenizer: itself, or a name for `data.tokenizers.open_tokenizer`; out: ends in `.bin`
    returns: the tokenizer
    """
    encoding = open_tokenizer(tokenizer, text) if isinstance(tokenizer, str) else tokenizer
    ranks = out.with_suffix(".tiktoken")
    if encoding.name != "gpt2" and ranks.exists() and not _may_replace(ranks, encoding):
        raise UserError(
            f"{ranks}: the tokenizer's ranks belong here, but the file holds something else, which would be "
            "lost; name another token file with --out, or remove it"
        )
    preprocess_sentences(text, encoding, out, validation_fraction=validation_fraction, progress=progress)
    if encoding.name != "gpt2":
        save_ranks(encoding, ranks)
    return encoding


def _may_replace(ranks: Path, encoding: tiktoken.Encoding) -> bool:
    """Whether the file holds the encoding's ranks already, or a text's bytes, which any `prepare` finds again."""
    try:
        found = load_ranks(ranks, name=encoding.name)
    except UserError:
        return False
    return is_bytewise(found) or identity(found) == identity(encoding)


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
    out: Path,
    *,
    text: Path = DEFAULT_TEXT,
    tokenizer: str | None = None,
    preset_name: str = "tense",
    overrides: dict | None = None,
    training: dict,
    epochs: float | None = None,
    start: Path | None = None,
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
            with tokenizer_is_fixed("leave them out, or train a new model without --from"):
                encoding = prepare(text, base.tokenizer, out, progress=progress)
        else:
            encoding = prepare(text, tokenizer or default_tokenizer(text), out, progress=progress)
        return open_tokens(out), encoding
    if tokenizer is not None:
        raise ConfigError(f"{text} is a token file with a tokenizer of its own; leave --tokenizer out")
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
    out: Path,
    *,
    training: dict | None = None,
    overrides: dict | None = None,
    text: Path | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Trainer:
    """Go on with the run in `out` from its latest checkpoint, with its own settings.

    training, overrides: settings given again, as for `start_run`. Those in `CHANGEABLE` take effect; another
        must be what the run has
    text: the token file that the run was started with, where it cannot be found, see `run_corpus`
    backend, device, threads: None takes the run's; another adds up in another order, so the last bits may differ

    Raises UserError where there is nothing to go on with, ConfigError naming a setting that would change the run.
    """
    run = RunFolder(out)
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
    if text:
        check_named(text, run, checkpoint)
    kept = checkpoint.training | checkpoint.config.to_dict()
    for name, value in (training | overrides).items():
        if name not in CHANGEABLE and value != kept[name]:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value} would change the run in {run.path}, which has {kept[name]}; "
                "leave it out, or start a run of its own with --from"
            )
    settings = TrainingSettings.from_dict(checkpoint.training | training)
    due = evaluation_due(checkpoint.step, settings) and kept["evaluated"] != checkpoint.step
    if checkpoint.step > settings.steps or (checkpoint.step == settings.steps and not due):
        raise UserError(
            f"{run.path} has done all its {settings.steps} steps; name more with --steps to train further"
        )
    backend = backend or kept["backend"]
    device = device or (kept["device"] if backend == kept["backend"] else "cpu")
    threads = kept["threads"] if threads is None else threads
    opened = open_training_backend(backend, device, checkpoint.config, settings, threads, checkpoint.weights)
    corpus = run_corpus(run, checkpoint, text)
    record = {name: kept[name] for name in ("source", "from") if name in kept}
    record |= corpus_record(run, corpus) | _computed_by(opened, device)
    trainer = Trainer(opened, settings, run, corpus, checkpoint.tokenizer, record=record)
    trainer.resume(checkpoint)
    return trainer


def _computed_by(backend: Backend, device: str) -> dict:
    """What a run must go on with to give the same bits."""
    return {"backend": backend.name, "device": device, "threads": backend.threads}


def open_training_backend(
    backend, device, config, settings: TrainingSettings, threads, weights=None
) -> Backend:
    """The backend that `settings` ask for; it takes `weights` over."""
    check_threads(threads)
    _check_memory(backend, config, settings, threads)
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
    dtype = checkpoint.training.get("dtype", "float32")
    return open_backend(
        backend,
        checkpoint.config,
        checkpoint.weights,
        dtype=dtype,
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
                f"{name} {getattr(config, name)}; leave it out"
            )
    return ModelConfig(**config.to_dict() | overrides)


def _check_memory(backend: str, config: ModelConfig, settings: TrainingSettings, threads: int | None):
    C, F, itemsize, memory = config.d_model, config.d_ff, np.dtype(settings.dtype).itemsize, physical_memory()
    # The blocks' matrices alone, with gradients and moments: a weight table could be too large to estimate.
    needed = 4 * config.n_layer * C * (4 * C + 2 * F) * itemsize

    def estimate(accumulate: int) -> int:
        return backend_class(backend).estimate_memory(
            config,
            batch_size=settings.batch_size,
            accumulate=accumulate,
            threads=threads or available_processors(),
            dtype=settings.dtype,
        )

    if needed > memory:
        raise UserError(
            f"the model alone takes {needed / 1e9:,.0f} GB of memory to train, and this machine has "
            f"{memory / 1e9:,.1f} GB; choose a smaller one"
        )
    needed = estimate(settings.accumulate)
    if needed > memory:
        raise UserError(
            f"training takes about {needed / 1e9:,.1f} GB of memory, and this machine has {memory / 1e9:,.1f} GB; "
            f"{_what_fits(estimate, settings, memory)}"
        )


def _what_fits(estimate: Callable[[int], int], settings: TrainingSettings, memory: int) -> str:
    """What to change, in words: the fewest micro-batches that bring the estimate below `memory`."""
    if estimate(settings.batch_size) > memory:
        return "choose a smaller model, a shorter --context-length or a smaller vocabulary"
    for parts in range(settings.accumulate + 1, min(settings.batch_size, MOST_PARTS) + 1):
        if settings.batch_size % parts == 0 and estimate(parts) <= memory:
            return f"with --accumulate {parts} it takes {estimate(parts) / 1e9:,.1f} GB and gives the same result"
    return "choose a smaller --batch-size"
