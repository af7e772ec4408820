"""What `python cli.py parity` does: both twins on a model of the user's, as a table or as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.files import write_file
from contract.presets import preset
from contract.weights import Weights
from harness.training.checkpoint import load_checkpoint
from harness.training.compiled import compiler_problem
from harness.training.machine import versions
from harness.training.run_folder import find_checkpoint
from harness.training.torch_backend import open_device
from parity.cases import Case, cast_weights
from parity.compare import Comparison
from parity.passes import Twins, allow_rounding, compare_passes, reference_pass, twin_pass

SEQUENCES, MOST_TOKENS = 2, 128
PRESETS = {"tense": 512, "nano": 65}  # and how many tokens the vocabulary of its usual corpus has

# In float32 a sum that cancels, or an input of ReLU next to its kink, can differ in two correct programs.
NOTES = {"float32": "--dtype float64 or another --seed tells a mistake from rounding", "float64": ""}


def compare_models(
    run: Path | None, *, dtype: str = "float32", device: str = "cpu", compiled: bool = False, seed: int = 0
) -> Iterator[Comparison]:
    """Compare the twins on a run's checkpoint, or on `PRESETS` with lively random weights.

    The batch is random: 2 sequences of the context's length, at most 128 tokens. Where the model was trained
    with dropout, masks are drawn, the same for both.

    dtype: "float32" or "float64"; device: of the twin; seed: of tokens, masks and random weights
    compiled: compare the twin as `torch.compile` makes it, which has no traced path

    Raises UserError where the run, the device or the compiler is not there.
    """
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"--dtype must be float32 or float64, got {dtype}")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed must be from 0 to 2^63 - 1, got {seed}")
    place, twins = open_device(device, dtype), Twins()
    for title, config, weights in _models(run):
        T = min(config.context_length, MOST_TOKENS)
        inputs = Case(title, config, SEQUENCES, T, seed, config.vocab_size).inputs(dtype)
        if weights is not None:
            inputs = inputs._replace(weights=cast_weights(config, weights, dtype))
        traced = None if compiled else twin_pass(twins.twin, config, inputs, traced=True, device=place)
        untraced = _untraced_pass(config, inputs, place, compiled)
        reference = reference_pass(twins.reference, config, inputs)
        rows = compare_passes(reference, dtype, traced=traced, untraced=untraced)
        if dtype == "float32":
            rows = allow_rounding(rows, config, inputs)
        yield Comparison(title, dtype, seed, rows, NOTES[dtype])


def _models(run: Path | None) -> Iterator[tuple[str, ModelConfig, Weights | None]]:
    if run is None:
        for name, vocab_size in PRESETS.items():
            yield f"preset {name}", preset(name, vocab_size=vocab_size), None
    else:
        folder = find_checkpoint(run)
        checkpoint = load_checkpoint(folder)
        yield str(folder), checkpoint.config, checkpoint.weights


def _untraced_pass(config, inputs, place, compiled: bool):
    try:
        return twin_pass(Twins().twin, config, inputs, traced=False, device=place, compiled=compiled)
    except RuntimeError as error:  # what every error of the compiler is
        if not compiled:
            raise
        raise compiler_problem(error) from error


def table(comparison: Comparison) -> Iterator[str]:
    """The lines of a comparison: tensor, shape, worst error, limit and verdict, by quantity."""
    width = max(len(row.name) for row in comparison.rows) + 2
    quantity = None
    yield f"{'tensor':<{width}}  {'shape':<12}  {'error':>7}  {'limit':>6}  verdict"
    for row in comparison.rows:
        if row.quantity != quantity:
            quantity = row.quantity
            yield f"{quantity}s"
        shape = "x".join(map(str, row.shape)) or "scalar"
        verdict = "DIFFERS" if not row.holds else "ok, rounding" if row.rounding else "ok"
        yield f"  {row.name:<{width - 2}}  {shape:<12}  {row.error:7.1e}  {row.limit:6.0e}  {verdict}"
        if not row.holds:
            yield f"    {row.problem or f'at {list(row.index)}: NumPy {row.reference!r}, PyTorch {row.twin!r}'}"


def summary(comparison: Comparison) -> str:
    """The verdict in a line: the worst error for its limit, or the first diverging tensor in dataflow order."""
    count, diverging = len(comparison.rows), comparison.diverging
    which = f"{comparison.title} in {comparison.dtype}"
    if diverging:
        note = f"; {comparison.note}" if comparison.note else ""
        first = diverging[0].describe()
        return f"{which}: {len(diverging)} of {count} tensors differ, first in dataflow order {first}{note}"
    worst = max(comparison.rows, key=lambda row: row.error / row.limit)
    agree = f"all {count} tensors agree"
    if widened := [row for row in comparison.rows if row.rounding]:
        most = max(widened, key=lambda row: row.error)
        agree += (
            f", {len(widened)} of them only as far as float32 determines them (up to {most.error:.1e}; PyTorch's own "
            f"rounding there is {most.rounding:.1e})"
        )
    where = f"{worst.quantity} {worst.name}"
    return f"{which}: {agree}; worst error {worst.error:.1e}, limit {worst.limit:.0e}, in {where}"


def write_json(
    path: Path, comparisons: list[Comparison], *, device: str, compiled: bool, overwrite: bool = False
):
    """Write everything compared, and on what, in place of the file at `path` at once."""
    accelerator = {"accelerator": torch.cuda.get_device_name()} if device == "cuda" else {}
    record = {
        "holds": not any(comparison.diverging for comparison in comparisons),
        "device": device,
        "compiled": compiled,
        "versions": versions() | accelerator,
        "comparisons": [
            {
                "model": comparison.title,
                "dtype": comparison.dtype,
                "seed": comparison.seed,
                "tensors": [row.as_record() | {"holds": row.holds} for row in comparison.rows],
            }
            for comparison in comparisons
        ],
    }
    with write_file(path, overwrite=overwrite) as file:
        file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
