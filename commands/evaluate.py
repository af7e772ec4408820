"""Measure how well a trained model predicts a text: `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from commands import options
from commands.model import print_record
from commands.options import (
    READING,
    BackendOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    ThreadsOption,
    option,
)
from contract.errors import ConfigError


def evaluate(
    context: typer.Context,
    run: RunArgument,
    text: Annotated[
        list[Path] | None,
        option(
            "Text, folder or JSONL as for `train`, may be repeated; or the .bin that the run was trained on. "
            "[default: the run's held-out split]"
        ),
    ] = None,
    sequence_length: Annotated[
        int | None, option("Tokens of a window. [default: the context length]")
    ] = None,
    batch_size: Annotated[
        int | None, option("Windows per batch. [default: 32, or fewer if their logits would fill memory]")
    ] = None,
    stride: Annotated[
        int | None,
        option("Tokens between windows: fewer give each token more context. [default: a window's]"),
    ] = None,
    pattern: options.PatternOption = None,
    field: options.FieldOption = None,
    separator: options.SeparatorOption = None,
    newlines: options.NewlinesOption = "keep",
    per_token: Annotated[
        bool, option("Also give each token's log-probability, in nats.", "--per-token")
    ] = False,
    per_document: Annotated[
        bool, option("Also give each document's loss; an end token ends one.", "--per-document")
    ] = False,
    page: Annotated[
        Path | None, option("HTML file to write: the text, coloured where the model is surprised.")
    ] = None,
    overwrite: Annotated[bool, option("Replace the file in --page.", "--overwrite")] = False,
    as_json: JsonOption = False,
    backend: BackendOption = "numpy",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
):
    """Measure how well a trained model predicts a text.

    bits_per_byte and word_perplexity compare models of different tokenizers; a
    word is what stands between spaces or line breaks.
    """
    from contract.files import require_free
    from data.tokenizers import text_bytes
    from harness.training.evaluation import evaluate, evaluation_of, log_probabilities, of_text
    from harness.training.generation import ends
    from harness.training.run_corpus import evaluation_tokens, token_file
    from harness.training.runs import open_model

    each = per_token or per_document or page is not None
    if each and batch_size is not None:
        raise ConfigError(
            "--batch-size does not go with --per-token, --per-document or --page, which take one window at a time; "
            "omit it"
        )
    texts = _texts(text, options.given_options(context))
    if page is not None:
        require_free(page, overwrite)
    model, checkpoint = open_model(run, backend=backend, device=device, threads=threads)
    tokenizer, windows, more = (
        checkpoint.tokenizer,
        {"sequence_length": sequence_length, "stride": stride},
        {},
    )
    if per_document and not ends(tokenizer):
        raise ConfigError(
            "--per-document needs a tokenizer with an end token, which ends a document; omit it"
        )
    with evaluation_tokens(run, checkpoint, texts) as tokens:
        if each:
            found = log_probabilities(model, tokens, **windows)
            result = evaluation_of(found, tokens)
        else:
            result = evaluate(model, tokens, batch_size, **windows)
        record = {
            "text": texts.name if texts and not token_file(texts) else "held-out split",
            "tokens": result.tokens,
            "nats_per_token": result.loss,
            "perplexity": result.perplexity,
            **of_text(result, tokens, text_bytes(tokenizer)),
        }
        if per_token:
            more["per_token"] = _token_rows(tokenizer, tokens, found.tolist())
        if per_document:
            more["per_document"] = _document_rows(tokenizer, tokens, found)
        if page is not None:
            _write_page(page, record, tokenizer, tokens, found, overwrite)
    print_record(record | (more if as_json else {}), as_json)
    if not as_json:
        _print_rows(**more)


def _texts(named: list[Path] | None, given: dict):
    """The texts to evaluate on, None for the run's held-out split; given: the options of the command line"""
    if named:
        return options.named_texts(named, given)
    for name in READING:
        if name in given:
            raise ConfigError(
                f"--{name} is of a text in --text; name one, or omit it: the held-out split has its tokens already"
            )
    return None


def _token_rows(tokenizer, tokens, log_probabilities: list[float]) -> list[dict]:
    """Id, text and log-probability of each token; the first has none, nothing stands before it."""
    from data.tokenizers import token_bytes

    texts = token_bytes(tokenizer)
    return [
        {"id": int(id), "text": texts[id].decode(errors="replace"), "log_probability": value}
        for id, value in zip(tokens[:], [None, *log_probabilities], strict=True)
    ]


def _document_rows(tokenizer, tokens, log_probabilities) -> list[dict]:
    """Each document's tokens, loss and beginning."""
    from data.tokenizers import text_bytes
    from harness.training.evaluation import document_losses
    from harness.training.generation import ends

    texts, rows = text_bytes(tokenizer), []
    for start, result in document_losses(log_probabilities, tokens, ends(tokenizer)):
        first = tokens[
            start : start + min(20, result.tokens + (start == 0))
        ]  # nothing predicts the very first
        begins = b"".join(texts[id] for id in first).decode(errors="ignore")
        rows.append({"tokens": result.tokens, "nats_per_token": result.loss, "begins": begins[:40]})
    return rows


def _write_page(path: Path, record: dict, tokenizer, tokens, log_probabilities, overwrite: bool):
    from contract.files import write_file
    from data.tokenizers import token_bytes
    from learn.surprise import surprise_page

    content = surprise_page(record, token_bytes(tokenizer), tokens, log_probabilities)
    with write_file(path, overwrite=overwrite) as file:
        file.write(content.encode())


def _print_rows(per_token=(), per_document=()):
    from commands.console import show

    for row in per_token:
        value = row["log_probability"]
        shown = " " * 9 if value is None else f"{value:9.4f}"
        show(f"{shown}  {row['id']:>6}  {row['text']!r}")
    for number, row in enumerate(per_document, 1):
        show(f"{number:>6}  {row['tokens']:>8,} tokens  {row['nats_per_token']:9.4f}  {row['begins']!r}")
