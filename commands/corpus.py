"""From text to tokens: `prepare`, `tokenizer train`, and the default corpus: `corpus write`, `judge`, `validation`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from commands import options
from commands.options import TOKENIZER_HELP, TextsArgument, option
from contract.errors import ConfigError, quoted


def prepare(
    context: typer.Context,
    text: TextsArgument,
    tokenizer: Annotated[str, option(TOKENIZER_HELP)] = "bytes",
    out: Annotated[Path | None, option("Token file to write. [default: TEXT with .bin]")] = None,
    overwrite: Annotated[bool, option("Replace an earlier token file in --out.", "--overwrite")] = False,
    pattern: options.PatternOption = None,
    field: options.FieldOption = None,
    separator: options.SeparatorOption = None,
    newlines: options.NewlinesOption = "keep",
    validation: options.ValidationOption = None,
    validation_fraction: options.FractionOption = 0.1,
    held_out: options.HeldOutOption = None,
    held_out_seed: options.HeldOutSeedOption = 0,
):
    """Turn texts into a token file, which `train --text` can use for several runs."""
    from commands.console import reading_progress, say
    from data.held_out import HeldOut
    from data.prepare import open_tokens, prepare

    given = options.given_options(context)
    texts, held_out = options.named_texts(text, given), options.named_held_out(given) or HeldOut()
    out = out or _beside(text, ".bin")
    with reading_progress(texts.size, "tokenising") as progress:
        prepare(texts, tokenizer, out, held_out=held_out, overwrite=overwrite, progress=progress)
    info = open_tokens(out).info
    say(
        f"{out}: {info.tokens:,} tokens, vocabulary {info.tokenizer['vocab_size']:,}, from {info.text_bytes:,} bytes: "
        f"{info.train_tokens:,} for training and {info.validation_tokens:,} for validation"
    )
    for topic, line in described(info):
        say(f"{topic}: {line}")


def train_tokenizer(
    context: typer.Context,
    text: TextsArgument,
    vocab_size: Annotated[int, option("Tokens in the vocabulary, at least 256.")],
    out: Annotated[Path | None, option("Ranks file to write. [default: TEXT-VOCAB_SIZE.tiktoken]")] = None,
    overwrite: Annotated[bool, option("Replace the file in --out.", "--overwrite")] = False,
    pattern: options.PatternOption = None,
    field: options.FieldOption = None,
    separator: options.SeparatorOption = None,
    newlines: options.NewlinesOption = "keep",
):
    """Train byte-pair ranks on texts, for `--tokenizer`; on several documents with a token that ends each."""
    from commands.console import reading_progress, say
    from contract.files import require_free
    from data.tokenizer_training import train_tokenizer
    from data.tokenizers import save_ranks

    texts = options.named_texts(text, options.given_options(context))
    out = out or _beside(text, f"-{vocab_size}.tiktoken")
    if out.resolve() in [file.resolve() for file in texts.files]:
        raise ConfigError(f"{out}: this is the text, which would be lost; name another ranks file with --out")
    require_free(out, overwrite)
    with reading_progress(texts.size, "counting") as progress:
        encoding = train_tokenizer(texts, vocab_size, progress)
    save_ranks(encoding, out, overwrite=overwrite)
    say(f"{out}: {encoding.n_vocab:,} tokens; use it with {quoted('--tokenizer', out)}")


def described(info):
    """Topic and line of what a token file's texts are worth saying of."""
    from data.likeness import UNLIKE
    from data.overlap import MUCH, PASSAGE_BYTES

    if (info.documents or 1) > 1:
        yield "documents", f"{info.documents:,}, from {info.files:,} file{'s' * (info.files > 1)}"
    if info.train_targets is not None:
        share = (info.train_targets + info.validation_targets) / info.tokens
        yield "replies", f"{100 * share:.0f} % of the tokens, and only they are learnt"
    if info.held_out_parts:
        yield "held out", f"{info.held_out_parts:,} {info.held_out}, drawn by seed {info.held_out_seed}"
    if info.overlap and info.overlap >= MUCH:
        yield (
            "warning",
            f"{100 * info.overlap:.0f} % of the held-out text stands word for word in the training text (passages of "
            f"some {PASSAGE_BYTES} bytes), so its loss also tells what was learnt by heart; remove what is there "
            "twice, or name another text with --validation",
        )
    if info.end_surprise and info.end_surprise >= UNLIKE:
        ways = "documents or blocks" if (info.documents or 1) > 1 else "blocks"
        yield (
            "warning",
            f"the end of the text, which is held out, is {info.end_surprise:.1f} times as hard to predict as parts of "
            "the rest, by counts of which tokens follow each other: is the text sorted? Then the loss there says "
            f"little of such text; hold out parts from all over it with --held-out {ways}",
        )


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


def _beside(texts: list[Path], ending: str) -> Path:
    """The default file to write, named after a text. Raises ConfigError if none can be."""
    from data.sources import unpacked_name
    from data.text import is_pipe

    if len(texts) > 1:
        raise ConfigError("several texts give the output no name; name the file to write with --out")
    text = texts[0]
    if is_pipe(text):
        raise ConfigError(
            f"{text} is a pipe, which gives the output no name; name the file to write with --out"
        )
    if text.is_dir():
        return text.resolve().with_name(f"{text.resolve().name}{ending}")
    return text.with_name(f"{unpacked_name(text).stem}{ending}")
