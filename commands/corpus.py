"""From text to tokens: `prepare`, `tokenizer train`, and the default corpus: `corpus write`, `judge`, `validation`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from commands.options import TOKENIZER_HELP, TextArgument, option
from contract.errors import ConfigError, UserError, quoted


def prepare(
    text: TextArgument,
    tokenizer: Annotated[str, option(TOKENIZER_HELP)] = "bytes",
    out: Annotated[Path | None, option("Token file to write. [default: TEXT with .bin]")] = None,
    validation_fraction: Annotated[
        float, option("Fraction of the tokens, from the end, held out for validation.")
    ] = 0.1,
    separator: Annotated[
        str | None,
        option("Text between two documents, which the end token replaces. [default: one document]"),
    ] = None,
    overwrite: Annotated[bool, option("Replace an earlier token file in --out.", "--overwrite")] = False,
):
    """Turn a text into a token file, which `train --text` can use for several runs."""
    from commands.console import reading_progress, say
    from data.prepare import open_tokens, prepare

    out = out or _beside(text, ".bin")
    with reading_progress(text, "tokenising") as progress:
        options = {"validation_fraction": validation_fraction, "separator": separator}
        prepare(text, tokenizer, out, **options, overwrite=overwrite, progress=progress)
    info = open_tokens(out).info
    say(
        f"{out}: {info.tokens:,} tokens, vocabulary {info.tokenizer['vocab_size']:,}, from {info.text_bytes:,} bytes: "
        f"{info.train_tokens:,} for training and {info.validation_tokens:,} for validation"
    )


def train_tokenizer(
    text: TextArgument,
    vocab_size: Annotated[int, option("Tokens in the vocabulary, at least 256.")],
    out: Annotated[Path | None, option("Ranks file to write. [default: TEXT-VOCAB_SIZE.tiktoken]")] = None,
    overwrite: Annotated[bool, option("Replace the file in --out.", "--overwrite")] = False,
):
    """Train byte-pair ranks on a text, for `--tokenizer`."""
    from commands.console import reading_progress, say
    from contract.files import require_free
    from data.tokenizer_training import train_tokenizer
    from data.tokenizers import save_ranks

    out = out or _beside(text, f"-{vocab_size}.tiktoken")
    if out.resolve() == text.resolve():
        raise ConfigError(f"{out}: this is the text, which would be lost; name another ranks file with --out")
    require_free(out, overwrite)
    with reading_progress(text, "counting") as progress:
        encoding = train_tokenizer(text, vocab_size, progress)
    save_ranks(encoding, out, overwrite=overwrite)
    say(f"{out}: {encoding.n_vocab:,} tokens; use it with {quoted('--tokenizer', out)}")


def write_corpus(
    out: Annotated[Path, typer.Argument(help="File to write.")],
    overwrite: Annotated[bool, option("Replace the file in OUT.", "--overwrite")] = False,
):
    """Write the default corpus, a sentence per line."""
    from contract.files import write_file
    from data.grammar import corpus

    with write_file(out, overwrite=overwrite) as file:
        file.write("".join(f"{sentence}\n" for sentence in corpus()).encode("ascii"))


def judge(limit: Annotated[int | None, option("Judge only the first N lines. [default: all]")] = None):
    """Judge the sentences on standard input, one per line: print the wrong ones and the share of right ones.

    Blank lines, and a last line without its end, do not count.
    """
    from commands.console import show
    from data.grammar import judge

    wrong, count = judge(_ascii(sys.stdin.buffer.read()), limit)
    right = count - len(wrong)
    for line in (*wrong, f"{right} of {count} sentences grammatical ({100 * right / count:.1f} %)"):
        show(line)


def validation(
    kind: Annotated[str, typer.Argument(help="seen or held-out.")],
    corpus: Annotated[Path, typer.Argument(help="Corpus that `corpus write` wrote.")],
):
    """Print the validation sentences of seen, or of held-out, combinations of subject, verb and tense."""
    from commands.console import show
    from contract.files import open_regular
    from data.grammar import validation

    if kind not in ("seen", "held-out"):
        raise ConfigError(f"unknown kind {kind!r}; choose seen or held-out")
    with open_regular(corpus) as file:
        lines = _ascii(file.read()).splitlines()
    for line in validation(lines, kind == "held-out"):
        show(line)


def _ascii(text: bytes) -> str:
    """The grammar is ASCII: any other byte becomes an escape, which makes its sentence wrong."""
    return text.decode("ascii", "backslashreplace")


def _beside(text: Path, ending: str) -> Path:
    """The default file to write, named after a text. Raises ConfigError for a pipe, UserError for a folder."""
    from data.text import is_pipe

    if is_pipe(text):
        raise ConfigError(
            f"{text} is a pipe, which gives the output no name; name the file to write with --out"
        )
    if text.is_dir():
        raise UserError(f"{text}: this is a folder; give the path of a UTF-8 text file")
    return text.with_name(f"{text.stem}{ending}")
