"""Starting a training run, going on with one, and opening what it made."""

from collections.abc import Callable
from contextlib import contextmanager
from math import ceil, inf
from pathlib import Path
from tempfile import TemporaryDirectory

import tiktoken

from contract.config import ModelConfig, preset
from contract.errors import ConfigError, UserError
from data.batches import windows_per_epoch
from data.prepare import TokenFile, TokenFileInfo, open_tokens, preprocess_sentences
from data.tokenizers import identity, load_ranks, open_tokenizer, save_ranks
from harness.backend import Backend, open_backend
from harness.checkpoint import Checkpoint, load_checkpoint
from harness.run_folder import RunFolder, find_checkpoint, new_run
from harness.trainer import Trainer, TrainingSettings

DEFAULT_TEXT = Path(__file__).parents[1] / "data" / "tense.txt"
DEFAULT_RANKS = DEFAULT_TEXT.with_suffix(".tiktoken")


def prepare(
    text: Path,
    tokenizer: str,
    out: Path,
    *,
    validation_fraction: float = 0.1,
    progress: Callable[[int], None] | None = None,
) -> tiktoken.Encoding:
    """Write a token file, its JSON and, beside them, the ranks of a tokenizer that is not tiktoken's own.

    text: a UTF-8 text; tokenizer: see `data.tokenizers.open_tokenizer`; out: ends in `.bin`
    returns: the tokenizer
    """
    encoding = open_tokenizer(tokenizer, text)
    preprocess_sentences(text, encoding, out, validation_fraction=validation_fraction, progress=progress)
    if encoding.name != "gpt2":
        save_ranks(encoding, out.with_suffix(".tiktoken"))
    return encoding


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
    backend: str = "numpy",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Trainer:
    """Prepare a new run in the folder `out`: its tokens, its model, its trainer.

    text: a UTF-8 text, or a token file that `prepare` wrote, which keeps its own tokenizer
    tokenizer: see `data.tokenizers.open_tokenizer`; None takes `default_tokenizer`
    preset_name, overrides: see `contract.config.preset`
    training: fields of TrainingSettings; epochs: takes the place of its `steps`

    Raises UserError where anything does not fit; nothing has been written or replaced then.
    """
    with new_run(out, overwrite=overwrite) as staged:
        if text.suffix == ".bin":
            if tokenizer is not None:
                raise ConfigError(
                    f"{text} is a token file with a tokenizer of its own; leave --tokenizer out"
                )
            corpus, encoding = open_prepared(text)
            tokens = text.resolve()
        else:
            encoding = prepare(
                text,
                tokenizer or default_tokenizer(text),
                staged.tokens,
                progress=progress,
            )
            corpus, tokens = open_tokens(staged.tokens), None
        config = preset(preset_name, vocab_size=encoding.n_vocab, **(overrides or {}))
        if epochs is not None:
            if not 0 < epochs < inf:
                raise ConfigError(f"epochs must be a positive number, got {epochs}")
            per_epoch = windows_per_epoch(corpus.info.train_tokens, config.context_length)
            training = training | {"steps": max(1, ceil(epochs * per_epoch / training["batch_size"]))}
        settings = TrainingSettings(**training)
        _check_length(corpus.info, config)
        opened = open_training_backend(backend, config, settings, threads)
        del corpus  # a mapped file cannot be moved on Windows
    record = {"source": text.name, "tokens": tokens and str(tokens)}
    run = RunFolder(out)
    return Trainer(opened, settings, run, open_tokens(tokens or run.tokens), encoding, record=record)


def resume_run(
    out: Path, *, steps: int | None = None, backend: str = "numpy", threads: int | None = None
) -> Trainer:
    """Go on with the run in `out` from its latest checkpoint, with its own settings.

    steps: a new number of steps in all; None keeps the run's
    """
    run = RunFolder(out)
    checkpoint = load_checkpoint(run.latest, with_optimizer=True)
    settings = TrainingSettings.from_dict(checkpoint.training | ({"steps": steps} if steps else {}))
    if checkpoint.step >= settings.steps:
        raise UserError(
            f"{out} has done all its {settings.steps} steps; name more with --steps to train further"
        )
    opened = open_training_backend(backend, checkpoint.config, settings, threads, checkpoint.weights)
    record = {name: checkpoint.training[name] for name in ("source", "tokens")}
    corpus = run_corpus(run, checkpoint)
    trainer = Trainer(opened, settings, run, corpus, checkpoint.tokenizer, record=record)
    trainer.resume(checkpoint)
    return trainer


def open_training_backend(backend, config, settings: TrainingSettings, threads, weights=None) -> Backend:
    """The backend that `settings` ask for."""
    return open_backend(
        backend,
        config,
        weights,
        seed=settings.seed,
        dtype=settings.dtype,
        threads=threads,
        beta1=settings.beta1,
        beta2=settings.beta2,
        weight_decay=settings.weight_decay,
    )


def open_model(
    path: Path, *, backend: str = "numpy", threads: int | None = None
) -> tuple[Backend, Checkpoint]:
    """A trained model, ready to generate or evaluate, with the checkpoint that it comes from.

    path: a run's folder, of which the best checkpoint is taken, or a checkpoint's own
    """
    checkpoint = load_checkpoint(find_checkpoint(path))
    dtype = checkpoint.training.get("dtype", "float32")
    return open_backend(
        backend, checkpoint.config, checkpoint.weights, dtype=dtype, threads=threads
    ), checkpoint


def run_corpus(run: RunFolder, checkpoint: Checkpoint) -> TokenFile:
    """The tokens that a run was trained on.

    Raises UserError where they are gone or are no longer those of the checkpoint's tokenizer.
    """
    tokens = checkpoint.training.get("tokens")
    path = Path(tokens) if tokens else run.tokens
    if not path.exists():
        raise UserError(f"{path} is missing, so the run's own text is not at hand; name a text with --text")
    corpus = open_tokens(path)
    if corpus.info.tokenizer["sha256"] != identity(checkpoint.tokenizer)["sha256"]:
        raise UserError(f"{path} was made by another tokenizer than the model's; prepare the text again")
    return corpus


@contextmanager
def evaluation_tokens(run: Path, checkpoint: Checkpoint, text: Path | None):
    """The tokens to evaluate a model on, int (N,), there as long as the block lasts.

    run: the folder that the user named; text: a UTF-8 text, None for the run's own held-out split
    """
    if text is None:
        folder = RunFolder(run if RunFolder(run).holds_a_run() else run.parent)
        yield run_corpus(folder, checkpoint).validation
        return
    with TemporaryDirectory(prefix="twin-gpt-") as folder:
        path = Path(folder) / "tokens.bin"
        preprocess_sentences(text, checkpoint.tokenizer, path, validation_fraction=0)
        corpus = open_tokens(path)
        yield corpus.train
        del corpus  # Windows removes no file that is still mapped


def _check_length(info: TokenFileInfo, config: ModelConfig):
    wanted = config.context_length + 1
    if info.train_tokens < wanted:
        raise UserError(
            f"{info.source} has {info.train_tokens:,} tokens to train on, but one context takes {wanted:,}; "
            "give a longer text or a smaller --context-length"
        )
    if info.validation_tokens < 2:
        raise UserError(
            f"{info.source} leaves {info.validation_tokens} tokens to validate on, and at least 2 are "
            "needed; give a longer text"
        )
