"""From text to tokens: `prepare` and `tokenizer train`."""

from pathlib import Path
from typing import Annotated

from commands.options import TOKENIZER_HELP, TextArgument, option
from contract.errors import ConfigError, UserError, quoted


def prepare(
    text: TextArgument,
    tokenizer: Annotated[str, option(TOKENIZER_HELP)] = "bytes",
    out: Annotated[Path | None, option("Token file to write. [default: TEXT with .bin]")] = None,
    validation_fraction: Annotated[
        float, option("Fraction of the tokens, from the end, held out for validation.")
    ] = 0.1,
    overwrite: Annotated[bool, option("Replace an earlier token file in --out.", "--overwrite")] = False,
):
    """Turn a text into a token file, which `train --text` can use for several runs."""
    from commands.console import reading_progress, say
    from data.prepare import open_tokens, prepare

    out = out or _beside(text, ".bin")
    with reading_progress(text, "tokenising") as progress:
        prepare(
            text,
            tokenizer,
            out,
            validation_fraction=validation_fraction,
            overwrite=overwrite,
            progress=progress,
        )
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
    from data.tokenizers import save_ranks, train_tokenizer

    out = out or _beside(text, f"-{vocab_size}.tiktoken")
    if out.resolve() == text.resolve():
        raise ConfigError(f"{out}: this is the text, which would be lost; name another ranks file with --out")
    require_free(out, overwrite)
    with reading_progress(text, "counting") as progress:
        encoding = train_tokenizer(text, vocab_size, progress)
    save_ranks(encoding, out, overwrite=overwrite)
    say(f"{out}: {encoding.n_vocab:,} tokens; use it with {quoted('--tokenizer', out)}")


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
