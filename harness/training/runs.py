"""Starting a training run, resuming one, and opening its model."""

from collections.abc import Callable
from math import ceil, inf
from os import PathLike
from pathlib import Path

from contract.config import ModelConfig, read_config
from contract.errors import ConfigError, UserError
from contract.presets import preset
from contract.staging import clear_leftovers
from data.batches import windows_per_epoch
from data.held_out import HeldOut
from data.prepare import DEFAULT_TEXT, TokenFile, TokenFileInfo, open_prepared, open_tokens, prepare
from data.sources import Texts
from data.tokenizers import Tokenizer, tokenizer_is_fixed
from harness.training.backend import Backend, check_backend, open_backend, thread_count
from harness.training.checkpoint import Checkpoint, checkpoint_exists, load_checkpoint
from harness.training.fine_tuning import grown_tokenizer, overridden, starting_weights, with_length
from harness.training.lora import FIELDS as LORA
from harness.training.lora import with_pairs
from harness.training.memory import check_memory
from harness.training.ranks import ALONE, Ranks, check_ranks
from harness.training.resuming import latest_checkpoint, resumed_machine, resumed_settings, training_record
from harness.training.run_corpus import (
    check_length,
    check_named,
    check_tokenizer,
    corpus_record,
    run_corpus,
    token_file,
)
from harness.training.run_folder import RunFolder, find_checkpoint, new_run
from harness.training.settings import FINE_TUNING, Machine, TrainingSettings
from harness.training.trainer import Trainer

ORIGIN = ("source", "from", "new_tokens", "model_type")  # what a run's checkpoints say of where it comes from


def start_run(
    out: str | PathLike,
    *,
    text: Texts | str | PathLike = DEFAULT_TEXT,
    held_out: HeldOut | None = None,
    tokenizer: str | None = None,
    start: str | PathLike | None = None,
    grow_vocabulary: int | None = None,
    preset_name: str = "tense",
    config: str | PathLike | None = None,
    overrides: dict | None = None,
    training: dict | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
    **machine,
) -> Trainer:
    """Prepare a new run in the folder `out`: its tokens, its model, its trainer.

    text, held_out, tokenizer: see `data.prepare.prepare`; a token file keeps its own split and tokenizer
    start: run or checkpoint to take weights, configuration and tokenizer from; `overrides` may only change the dropout,
        shorten the context and begin low-rank pairs, see `harness.training.lora`
    grow_vocabulary: with `start`, give what its tokenizer lacks for the text tokens of their own, and so many more that
        are learned on the text; see `data.growing.grown`
    preset_name, overrides: see `contract.config.preset`; config: see `contract.config.read_config`
    training: fields of TrainingSettings, or `epochs` instead of `steps`; with `start` over `FINE_TUNING`
    ranks: the processes that train together, which make as many micro-batches of a step unless `accumulate` is given
    machine: fields of Machine
    Raises UserError if anything does not fit; nothing has been written or replaced then.
    """
    run, texts, start, machine = RunFolder(out), Texts.of(text), start and Path(start), Machine(**machine)
    training, overrides = (FINE_TUNING if start else {}) | (training or {}), overrides or {}
    training = ({"accumulate": ranks.size} if ranks else {}) | training
    if overwrite:
        _keep_sources(run, texts, start)
    seed = training.get("seed", TrainingSettings.seed)
    base, model_for = _model_source(start, tokenizer, preset_name, config, overrides, seed)
    if grow_vocabulary is not None:
        _check_growing(texts, start)
    with new_run(run, overwrite=overwrite) as staged:
        corpus, encoding = _training_corpus(
            texts, held_out, tokenizer, base, staged.tokens, progress, grow_vocabulary
        )
        model = model_for(encoding.n_vocab)
        if start:
            training = with_length(training, machine, model, corpus.info)
        settings = _settings(training, corpus.info, model)
        check_length(texts.named[0], corpus.info, settings.tokens_per_sequence(model))
        weights = starting_weights(base, model, encoding, settings.seed)
        backend = _training_backend(machine, model, settings, weights, ranks)
        del corpus  # an open file cannot be moved on Windows
    tokens = token_file(texts) or run.tokens
    origin = {"source": texts.name} | ({"from": start.name} if start else {})
    if grow_vocabulary is not None:
        origin["new_tokens"] = encoding.n_vocab - base.tokenizer.n_vocab
    if base and base.training.get("model_type"):
        origin["model_type"] = base.training["model_type"]
    return _trainer(backend, settings, run, open_tokens(tokens), encoding, origin)


def _check_growing(texts: Texts, start: Path | None):
    """Raise ConfigError if no vocabulary can grow."""
    if not start:
        raise ConfigError("--grow-vocabulary is of a trained model; name its run with --from, or omit it")
    if path := token_file(texts):
        raise ConfigError(
            f"{path} is a token file, whose text has its tokens already; give its text itself with --grow-vocabulary"
        )


def _keep_sources(run: RunFolder, texts: Texts, start: Path | None):
    """Raise ConfigError if the new run would replace what it is made from."""
    for flag, source in (*(("--text", text) for text in texts.named), ("--from", start)):
        if source and run.path.is_dir() and run.holds(source):
            raise ConfigError(
                f"{flag} {source} is of the run that --overwrite replaces; choose another --out"
            )


def _model_source(
    start: Path | None,
    tokenizer: str | None,
    preset_name: str,
    config: Path | None,
    overrides: dict,
    seed: int,
) -> tuple[Checkpoint | None, Callable[[int], ModelConfig]]:
    """The checkpoint that a run starts from, if any, and its model for a size of the vocabulary."""
    pairs = {name: overrides[name] for name in LORA if overrides.get(name) is not None}
    if start:
        base = with_pairs(load_checkpoint(find_checkpoint(start)), pairs, seed)
        overrides = {name: value for name, value in overrides.items() if name not in LORA}
        if tokenizer is not None:
            raise ConfigError(
                f"--tokenizer does not go with --from: {start} has the tokenizer it was made with"
            )
        return base, lambda vocab_size: overridden(base.config, overrides, start, vocab_size)
    if pairs:
        name = next(iter(pairs)).replace("_", "-")
        raise ConfigError(f"--{name} adapts trained weights; name the run that has them with --from")
    if config:
        values = read_config(config, **overrides)
        return None, lambda vocab_size: _fitted(values, vocab_size, config)
    return None, lambda vocab_size: preset(preset_name, vocab_size=vocab_size, **overrides)


def _training_corpus(
    texts: Texts,
    held_out: HeldOut | None,
    tokenizer: str | None,
    base: Checkpoint | None,
    out: Path,
    progress,
    grow_vocabulary: int | None = None,
) -> tuple[TokenFile, Tokenizer]:
    """The tokens to train on, prepared in `out` unless a token file is named, and what made them."""
    path, preparing = token_file(texts), {"held_out": held_out or HeldOut(), "progress": progress}
    if not path and base:
        encoding = grown_tokenizer(base.tokenizer, texts, held_out, grow_vocabulary, progress)
        with tokenizer_is_fixed("omit them, or give them tokens with --grow-vocabulary 0"):
            prepare(texts, encoding, out, **preparing)
        return open_tokens(out), encoding
    if not path:
        prepare(texts, tokenizer, out, **preparing)
        return open_prepared(out)
    if tokenizer is not None:
        raise ConfigError(f"{path} is a token file with a tokenizer of its own; omit --tokenizer")
    if held_out is not None:
        raise ConfigError(f"{path} is a token file, which says what is held out; omit the options of that")
    corpus, encoding = (open_tokens(path), base.tokenizer) if base else open_prepared(path)
    check_tokenizer(corpus, encoding, "give its text itself" if base else "prepare the text again")
    return corpus, encoding


def _fitted(values: dict, vocab_size: int, config: Path) -> ModelConfig:
    """The configuration of a file's fields, with the tokenizer's vocabulary."""
    if values.get("vocab_size", vocab_size) != vocab_size:
        raise ConfigError(
            f"vocab_size in {config} must be the tokenizer's {vocab_size}, got {values['vocab_size']}; omit it"
        )
    return ModelConfig.from_dict(values | {"vocab_size": vocab_size})


def _settings(training: dict, info: TokenFileInfo, config: ModelConfig) -> TrainingSettings:
    """The settings, with the steps that `epochs` passes over the text take."""
    training = dict(training)
    epochs = training.pop("epochs", None)
    if epochs is None:
        return TrainingSettings(**training)
    if "steps" in training:
        raise ConfigError("--steps and --epochs both say how long to train; give one of them")
    if not 0 < epochs < inf:
        raise ConfigError(f"epochs must be a positive number, got {epochs}")
    possible = TrainingSettings(**training | {"steps": 1})
    per_epoch = windows_per_epoch(info.train_tokens, possible.tokens_per_sequence(config))
    return TrainingSettings(**training, steps=max(1, ceil(epochs * per_epoch / possible.batch_size)))


def resume_run(
    out: str | PathLike,
    *,
    training: dict | None = None,
    overrides: dict | None = None,
    text: Path | None = None,
    ranks: Ranks | None = None,
    **machine,
) -> Trainer:
    """Continue the run in `out` from its latest checkpoint, with its own settings.

    training, overrides: as for `start_run`; they must be the run's, but for those in `CHANGEABLE` and, if the steps
        grow, in `CHANGEABLE_RATES`
    text: the token file that the run was started with, if `run_corpus` cannot find it
    ranks: the processes that train together, which may be others than before
    machine: fields of Machine, by default the run's; another sums in another order, so the last bits may differ
    Raises UserError if there is nothing to continue, ConfigError naming a setting that would change the run.
    """
    run = RunFolder(out)
    clear_leftovers(run.path)
    with run.unlocked_on_failure():
        if checkpoint_exists(run.resumable):
            run.lock()  # before reading: another process may be writing
        checkpoint = latest_checkpoint(run)
        if text:
            check_named(text, run, checkpoint)
        kept = training_record(run, checkpoint)
        settings = resumed_settings(run, checkpoint, training or {}, overrides or {})
        machine = resumed_machine(kept, machine)
        backend = _training_backend(machine, checkpoint.config, settings, checkpoint.weights, ranks)
        corpus = run_corpus(run, checkpoint, text)
        origin = {name: kept[name] for name in ORIGIN if name in kept}
        trainer = _trainer(backend, settings, run, corpus, checkpoint.tokenizer, origin)
        trainer.resume(checkpoint)
        if trainer.done and trainer.evaluations.out_of_patience:
            raise UserError(
                f"{run.path} stopped early, out of --patience {settings.patience}; "
                "name a larger --patience, or 0 for any, to train further"
            )
        if trainer.done:
            raise UserError(
                f"{run.path} has done all its {settings.steps} steps; name more with --steps to train further"
            )
    return trainer


def _trainer(
    backend: Backend, settings, run: RunFolder, corpus: TokenFile, tokenizer, origin: dict
) -> Trainer:
    """The trainer, whose checkpoints keep what gives the same bits again: the run's tokens and machine."""
    machine = Machine(backend.name, backend.device, backend.threads, backend.compile)._asdict()
    return Trainer(backend, settings, run, corpus, tokenizer, origin | corpus_record(run, corpus) | machine)


def _training_backend(
    machine: Machine, config: ModelConfig, settings: TrainingSettings, weights, ranks: Ranks | None
) -> Backend:
    """The backend that the settings ask for; it takes `weights` over."""
    check_backend(machine.backend)
    if ranks:
        check_ranks(ranks, machine, settings.accumulate)
    sharing = ranks.sharing(machine.device) if ranks else ALONE
    check_memory(machine.backend, config, settings, thread_count(machine.threads), sharing)
    names = ("seed", "dtype", "beta1", "beta2", "weight_decay", "freeze")
    own = {name: getattr(settings, name) for name in names}
    return open_backend(
        config=config, weights=weights, ranks=ranks, take_weights=True, **machine._asdict(), **own
    )


def open_model(path: Path, **machine) -> tuple[Backend, Checkpoint]:
    """A trained model, ready to generate or evaluate, with the checkpoint that it comes from.

    path: a run's folder, of which the best checkpoint is taken, or a checkpoint's own; machine: fields of Machine
    """
    checkpoint = load_checkpoint(find_checkpoint(path))
    weights = checkpoint.weights
    how = {"dtype": weights.flat.dtype.name, "take_weights": True, **Machine(**machine)._asdict()}
    return open_backend(config=checkpoint.config, weights=weights, **how), checkpoint
