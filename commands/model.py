"""Describe a trained model: `info`."""

import json
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Annotated

from commands.options import JsonOption, RunArgument, option
from contract.errors import ConfigError, UserError

# Shown beside a checkpoint's validation loss: its number of tokens, and the final evaluation.
EVALUATIONS = ("validation_tokens", "final_validation_loss", "final_validation_tokens")


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
    print_record(record, as_json)


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


def print_record(record: dict, as_json: bool):
    """Print names and values: dotted names in a column, or JSON."""
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
