"""The tokens that a run trains on: recorded at its start, found again to resume or evaluate it."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath

from contract.errors import ConfigError, UserError, command_line
from contract.files import scratch_folder
from data.held_out import HeldOut
from data.prepare import TokenFile, TokenFileInfo, open_tokens, prepare
from data.sources import Texts
from data.tokenizers import Tokenizer, identity, tokenizer_is_fixed
from harness.training.checkpoint import Checkpoint
from harness.training.run_folder import RunFolder


def corpus_record(run: RunFolder, corpus: TokenFile) -> dict:
    """What a run's checkpoints record about its tokens; `tokens`, their path, is None for the run's own."""
    record = {"tokens_sha256": corpus.info.tokens_sha256, "train_tokens": corpus.info.train_tokens}
    record |= {"conversations": True} if corpus.info.form.masked else {}
    path, folder = corpus.path.resolve(), run.path.resolve()
    if path == run.tokens.resolve():
        return {"tokens": None} | record
    with suppress(ValueError):  # no way leads from one drive of Windows to another
        record["tokens_relative"] = Path(os.path.relpath(path, folder)).as_posix()
    return {"tokens": str(path)} | record


def run_corpus(
    run: RunFolder,
    checkpoint: Checkpoint,
    named: Path | None = None,
    *,
    otherwise: str = "start a run of its own with --from",
) -> TokenFile:
    """The tokens that a run was trained on, identified by their hash, in one of `_places`.

    named: look only there; otherwise: what else to advise
    Raises UserError naming all places tried.
    """
    problems = []
    for path in [named] if named else _places(run, checkpoint.training):
        try:
            return _open_own(path, run, checkpoint)
        except UserError as error:
            problems.append(str(error))
    advice = "bring it back" if named or not checkpoint.training.get("tokens") else "name it with --text"
    raise UserError(
        f"{'; '.join(problems)}: the text of {run.path} cannot be found; {advice}, or {otherwise}"
    )


def check_named(text: Path, run: RunFolder, checkpoint: Checkpoint):
    """Raise ConfigError if `text` cannot be the tokens of a resumed run."""
    if not checkpoint.training.get("tokens"):
        raise ConfigError(
            f"--text does not go with --resume: {run.path} has its own tokens, in {run.tokens.name}; omit it"
        )
    if text.suffix != ".bin":
        raise ConfigError(
            f"{text} is no token file, and {run.path} was started with one; name that with --text, or omit it"
        )


def check_tokenizer(corpus: TokenFile, tokenizer: Tokenizer, advice: str = ""):
    """Raise UserError, with `advice`, if a token file was made by another tokenizer than the model's."""
    found, wanted = corpus.info.tokenizer, identity(tokenizer)
    if (found["sha256"], found["vocab_size"]) != (wanted["sha256"], wanted["vocab_size"]):
        problem = f"{corpus.path} was made by another tokenizer than the model's"
        raise UserError(f"{problem}; {advice}" if advice else problem)


def token_file(texts: Texts) -> Path | None:
    """The token file that was named instead of a text, if one was."""
    found = [path for path in texts.named if path.suffix == ".bin"]
    if found and texts != Texts((found[0],)):
        raise ConfigError(
            f"{found[0]} is a token file, which is read alone and as it was prepared; omit what else says how "
            "texts are read, or name the texts themselves"
        )
    return found[0] if found else None


@contextmanager
def evaluation_tokens(run: Path, checkpoint: Checkpoint, text: Texts | Path | None):
    """The tokens to evaluate a model on, int (N,): of texts, or for None or a .bin the run's held-out split.

    run: the folder that the user named
    """
    texts = text and Texts.of(text)
    named = texts and token_file(texts)
    if texts is None or named:
        folder = RunFolder(run if RunFolder(run).holds_a_run() else run.parent)
        corpus = run_corpus(folder, checkpoint, named, otherwise="give a UTF-8 text with --text")
        yield corpus.validation
        corpus.verify()
        return
    with scratch_folder() as folder:
        path = folder / "tokens.bin"
        with tokenizer_is_fixed("omit them"):
            prepare(texts, checkpoint.tokenizer, path, held_out=HeldOut(0))
        corpus = open_tokens(path)
        yield corpus.train
        del corpus  # Windows removes no file that is still open


def check_length(text: Path, info: TokenFileInfo, T: int):
    """Raise UserError for too few tokens; T: of a sequence."""
    wanted = T + 1
    if info.train_tokens < wanted:
        shorter = "" if info.train_tokens < 2 else " or a smaller --sequence-length"
        raise UserError(
            f"{info.source} has {info.train_tokens:,} tokens to train on, but one sequence takes {wanted:,}; "
            f"give a longer text{shorter}"
        )
    if info.form.masked and not (info.train_targets and info.validation_targets):
        raise UserError(
            f"{info.source} has {info.train_targets:,} tokens of replies to train on and {info.validation_targets:,} "
            "to validate on, and both parts need some; give more conversations"
        )
    if info.validation_tokens < 2:
        raise UserError(
            f"{info.source} leaves {info.validation_tokens} tokens to validate on, and at least 2 are needed; "
            f"{_way_to_validate(text, info, wanted)}"
        )


def _way_to_validate(text: Path, info: TokenFileInfo, wanted: int) -> str:
    """What to do about a text without a held-out part."""
    # With 0.1 asked for, the held-out part has up to 0.11 of the tokens.
    if text.suffix != ".bin" or info.tokens < 20 or 0.89 * info.tokens < wanted:
        return "give a longer text"
    source = text.with_name(info.source)
    source = source if source.exists() else Path(info.source)
    names = {"gpt2": ["gpt2"], "ranks": [text.with_suffix(".tiktoken")]}.get(info.tokenizer["name"])
    tokenizer = ["--tokenizer", *names] if names else []
    held_out = ["--validation-fraction", 0.1, "--out", text.with_stem(f"{text.stem}-split")]
    return f"prepare it with a part held out: {command_line('prepare', source, *tokenizer, *held_out)}"


def _places(run: RunFolder, kept: dict) -> list[Path]:
    """Where the tokens of a run may be, likeliest first: its own in its folder, the user's where they were or near."""
    if not kept.get("tokens"):
        return [run.tokens]
    folder = run.path.resolve()
    places = [Path(kept["tokens"])]
    if kept.get("tokens_relative"):
        places.append(Path(os.path.normpath(folder / kept["tokens_relative"])))
    name = PureWindowsPath(kept["tokens"]).name  # that of a path of either system
    return list(dict.fromkeys([*places, *(place / name for place in (folder, folder.parent, Path.cwd()))]))


def _open_own(path: Path, run: RunFolder, checkpoint: Checkpoint) -> TokenFile:
    """The token file at `path`, if it is the run's."""
    if not os.path.lexists(path):
        raise UserError(f"{path} is missing")
    corpus, kept = open_tokens(path), checkpoint.training
    check_tokenizer(corpus, checkpoint.tokenizer)
    if corpus.info.tokens_sha256 != kept.get("tokens_sha256"):
        raise UserError(f"{path} holds another text than the one that {run.path} was trained on")
    found = corpus.info.train_tokens
    wanted = kept.get("train_tokens") or found  # earlier versions do not record it
    if found != wanted:
        raise UserError(f"{path} holds {found:,} tokens to train on, where {run.path} had {wanted:,} of them")
    return corpus
