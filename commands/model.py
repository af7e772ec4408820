"""Look at a trained model: `evaluate` and `info`."""

import json
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Annotated

from commands.options import (
    BackendOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    ThreadsOption,
    option,
)
from contract.errors import ConfigError, UserError

# Shown beside a checkpoint's validation loss: its number of tokens, and the final evaluation.
EVALUATIONS = ("validation_tokens", "final_validation_loss", "final_validation_tokens")


def evaluate(
    run: RunArgument,
    text: Annotated[
        Path | None,
        option("UTF-8 text, or the .bin that the run was trained on. [default: the run's held-out split]"),
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
    separator: Annotated[
        str | None, option("With --text: what stands between two documents. [default: one document]")
    ] = None,
    per_token: Annotated[
        bool, option("Also give each token's log-probability, in nats.", "--per-token")
    ] = False,
    as_json: JsonOption = False,
    backend: BackendOption = "numpy",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
):
    """Measure how well a trained model predicts a text."""
    from data.tokenizers import token_lengths
    from harness.training.evaluation import Evaluation, bits_per_byte, evaluate, log_probabilities
    from harness.training.run_corpus import evaluation_tokens
    from harness.training.runs import open_model

    if per_token and batch_size is not None:
        raise ConfigError(
            "--batch-size does not go with --per-token, which takes one window at a time; omit it"
        )
    model, checkpoint = open_model(run, backend=backend, device=device, threads=threads)
    windows = {"sequence_length": sequence_length, "stride": stride}
    with evaluation_tokens(run, checkpoint, text, separator) as tokens:
        rows = []
        if per_token:
            found = log_probabilities(model, tokens, **windows)
            result = Evaluation(-float(found.mean()), len(found))
            rows = _token_rows(checkpoint.tokenizer, tokens, found.tolist())
        else:
            result = evaluate(model, tokens, batch_size, **windows)
        record = {
            "text": text.name if text and text.suffix != ".bin" else "held-out split",
            "tokens": result.tokens,
            "nats_per_token": result.loss,
            "perplexity": result.perplexity,
            "bits_per_byte": bits_per_byte(result, tokens, token_lengths(checkpoint.tokenizer)),
        }
    _print_record(record | ({"per_token": rows} if per_token and as_json else {}), as_json)
    if not as_json:
        _print_tokens(rows)


def _token_rows(tokenizer, tokens, log_probabilities: list[float]) -> list[dict]:
    """Id, text and log-probability of each token; the first has none, nothing stands before it."""
    from data.tokenizers import token_bytes

    texts = token_bytes(tokenizer)
    return [
        {"id": int(id), "text": texts[id].decode(errors="replace"), "log_probability": value}
        for id, value in zip(tokens[:], [None, *log_probabilities], strict=True)
    ]


def _print_tokens(rows: list[dict]):
    from commands.console import show

    for row in rows:
        value = row["log_probability"]
        shown = " " * 9 if value is None else f"{value:9.4f}"
        show(f"{shown}  {row['id']:>6}  {row['text']!r}")


def info(
    run: RunArgument,
    as_json: JsonOption = False,
    as_csv: Annotated[
        bool, option("Print the metrics of the run's training as CSV instead.", "--csv")
    ] = False,
):
    """Describe a checkpoint: model, tokenizer, training so far."""
    if as_csv and as_json:
        raise ConfigError("--csv does not go with --json; give one of them")
    if as_csv:
        _print_metrics(run)
        return
    _print_checkpoint(run, as_json)


def _print_metrics(run: Path):
    from commands.console import write
    from harness.training.metrics import metrics_csv, read_metrics
    from harness.training.run_folder import RunFolder

    path = RunFolder(run).metrics
    rows = list(read_metrics(path))
    if not rows:
        raise UserError(f"no metrics at {path}; name the --out folder of a training run")
    write(metrics_csv(rows))


def _print_checkpoint(run: Path, as_json: bool):
    from contract.decoding import kv_cache_numbers
    from contract.weights import parameter_count
    from data.tokenizers import identity
    from harness.training.checkpoint import load_checkpoint
    from harness.training.run_folder import find_checkpoint

    folder = find_checkpoint(run)
    checkpoint = load_checkpoint(folder)
    config, dtype = checkpoint.config, next(iter(checkpoint.weights.values())).dtype
    training = dict(checkpoint.training)
    evaluations = {name: training.pop(name, None) for name in EVALUATIONS}
    record = {
        "checkpoint": str(folder),
        "parameters": parameter_count(config),
        "layers": _layers(config),
        "attention": _attention(config),
        "kv_cache_bytes": kv_cache_numbers(config, config.context_length) * dtype.itemsize,
        "step": checkpoint.step,
        "validation_loss": checkpoint.validation_loss,
        **evaluations,
        "model": config.to_dict(),
        "tokenizer": identity(checkpoint.tokenizer),
        "training": training,
    }
    _print_record(record, as_json)


def _attention(config) -> str:
    """How NumPy computes it: it depends on the length of the text."""
    from numpy_llm.attend_in_blocks import BLOCKS_FROM

    if config.context_length < BLOCKS_FROM:
        return "written out"
    dropping = ", except in training with dropout" if config.dropout else ""
    return f"in blocks from {BLOCKS_FROM} tokens on{dropping}"


def _layers(config) -> str | None:
    """Window and theta of each layer, such as "0-4 window 512 theta 10,000; 5 full theta 1,000,000"."""
    if config.window is None and config.rotary is None:
        return None
    words = []
    for layer, places in groupby(range(config.n_layer), config.layer):
        first, *others = places
        theta = f" theta {layer.rotary.theta:,.10g}" if layer.rotary else ""
        window = "full" if layer.window is None else f"window {layer.window:,}"
        words.append(f"{first}-{others[-1]} {window}{theta}" if others else f"{first} {window}{theta}")
    return "; ".join(words)


def _print_record(record: dict, as_json: bool):
    from commands.console import show

    if as_json:
        show(json.dumps(_finite(record), allow_nan=False))
        return
    rows = dict(_rows(record))
    width = max(map(len, rows))
    for name, value in rows.items():
        if value is not None:
            show(f"{name:<{width}}  {_shown(value)}")


def _rows(record: dict, prefix: str = ""):
    """Dotted names and values."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _finite(value):
    """The same with None for every number that is not finite, since JSON has none."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _shown(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
