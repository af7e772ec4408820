"""Golden packs for languages without safetensors: raw numbers, a plain index and a page that explains them."""

import json
from pathlib import Path

import numpy as np

from contract.errors import ConfigError
from contract.files import exported_files, write_file, write_into, write_sums
from parity.golden.manifest import digest
from parity.golden.packs import Pack, manifest_text

FORMATS = ("raw", "npz", "npy")
INDEX, PAGE = "index.txt", "README.txt"

_PAGE = """Golden pack {name}: every tensor of a small GPT, forward, backward and {steps} steps of AdamW.

Files
  NAME.bin       the numbers of the tensor NAME and nothing else: little-endian, in C order (the last axis
                 varies fastest); {dtype} for real numbers, int64 for token ids
  index.txt      the same as the manifest for programs without a JSON reader; a line is either
                   config KEY VALUE
                   adamw KEY VALUE
                   tensor NAME DTYPE SHAPE TOLERANCE_FLOAT32 TOLERANCE_FLOAT64 SCALE
                 where SHAPE is sizes joined by x, or "scalar"
  manifest.json  configuration, settings of AdamW and of sampling, and of each tensor its name, shape, dtype,
                 layout (what its axes mean), operation, inputs, tolerances, scale and the first 16 digits of
                 the SHA-256 of its numbers, in dataflow order
  SHA256SUMS     of every file; sha256sum -c SHA256SUMS tells whether this copy is whole

Names
  tokens, targets             the batch; everything below follows from it and from the weights
  X.weight, X.bias            weights; a linear layer's is (out, in): y = x weight^T + bias
  blocks.0.norm_1, logits ... activations, by the place that made them
  gradient.NAME               gradient of the loss with respect to the activation or weight NAME
  adamw.m.NAME, adamw.v.NAME, adamw.weights.NAME
                              moments and weight after each step, a row for each; all steps see the same batch
  adamw.loss, adamw.gradient_norm, adamw.learning_rate
                              of each step; the norm is the one before clipping
  greedy.*, sampled.*         a prompt, the logits of each new token, the tokens chosen from them

Layouts (axes from the outermost; the last varies fastest)
{layouts}

Equations (of each operation in manifest.json; a backward one names dNAME the gradient of NAME)
{equations}

  split_heads turns (B, T, C) into (B, H, T, D): reshape to (B, T, H, D), swap T and H; head h has channels h*D to
  (h+1)*D. merge_heads is the inverse. The 3*C rows of a query_key_value weight are C of the queries, then C of the
  keys, then C of the values, and each C is head after head. B batch, T time, C d_model, H n_head, D = C / H.

Checking
  The error of a tensor is the largest |yours - golden| divided by its SCALE, which is the largest magnitude of
  the golden tensor (or, where that is all zeros, of what it was made from). At most the TOLERANCE of your
  precision is right. Go in the manifest's order: the first tensor that is off has its fault in the operation
  that made it. Or write your tensors to a folder as NAME.bin, as many of them as you have, in float32 or
  float64, and let the checker look:

      python cli.py check FOLDER --golden {name}

  (or with the path of this folder, which works for a pack of your own, too).

Configuration
{config}

AdamW
{adamw}
"""


def export_pack(pack: Pack, format: str, out: Path, *, dtype: str = "float64", overwrite: bool = False):
    """Write a pack for other programs.

    format: "raw", a folder of .bin; "npz", one file for NumPy; "npy", a folder
    out: what to make; dtype: "float64" or "float32", of the real numbers

    Raises ConfigError for another format or dtype, UserError where `out` is taken or cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; choose {', '.join(FORMATS)}")
    if dtype not in ("float64", "float32"):
        raise ConfigError(f"--dtype must be float64 or float32, got {dtype}")
    tensors = {
        name: tensor.astype("<i8" if tensor.dtype.kind == "i" else np.dtype(dtype).newbyteorder("<"))
        for name, tensor in pack.tensors.items()
    }
    if format == "npz":
        if out.suffix != ".npz":
            raise ConfigError(f"--out {out} must end in .npz, by which `check` knows what it is")
        with write_file(out, overwrite=overwrite) as file:
            np.savez(file, **tensors)
        return
    exported_files(out, overwrite)
    with write_into(out, lambda: exported_files(out, overwrite)) as new:
        for name, tensor in tensors.items():
            if format == "raw":
                (new / f"{name}.bin").write_bytes(tensor.tobytes())
            else:
                np.save(new / f"{name}.npy", tensor, allow_pickle=False)
        if format == "raw":
            _write_descriptions(pack, tensors, dtype, new)
        write_sums(new)


def _write_descriptions(pack: Pack, tensors: dict[str, np.ndarray], dtype: str, out: Path):
    rows = [
        {
            **row,
            "dtype": dtype if row["dtype"] == "float64" else row["dtype"],
            "file": f"{row['name']}.bin",
            "sha256": digest(tensors[row["name"]]),
        }
        for row in pack.manifest["tensors"]
    ]
    record = pack.manifest | {"tensors": rows}
    lines = [f"config {name} {_plain(value)}" for name, value in pack.manifest["config"].items()]
    lines += [f"adamw {name} {_plain(value)}" for name, value in pack.manifest["adamw"].items()]
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        limits = f"{row['float32']:g} {row['float64']:g} {row['scale']:.17g}"
        lines.append(f"tensor {row['name']} {row['dtype']} {shape} {limits}")
    steps = pack.manifest["adamw"]["steps"]
    settings = {group: _settings(pack.manifest[group]) for group in ("config", "adamw")}
    equations = [f"  {name}: {text}" for name, text in pack.manifest["operations"].items()]
    texts = {"layouts": "\n".join(_layouts(rows)), "equations": "\n".join(equations)}
    page = _PAGE.format(name=pack.name, steps=steps, dtype=dtype, **settings, **texts)
    texts = {
        "manifest.json": manifest_text(record),
        INDEX: "\n".join([*lines, ""]).encode(),
        PAGE: page.encode(),
    }
    for name, text in texts.items():
        (out / name).write_bytes(text)


def _layouts(rows: list[dict]) -> list[str]:
    """A line for each layout, with the names that have it; a block and the step of a moment stand for all."""
    named: dict[str, dict] = {}
    for row in rows:
        name = row["name"].replace("blocks.0.", "blocks.*.")
        if not name.startswith(("gradient.", "adamw.", "blocks.")) or name.startswith("blocks.*."):
            named.setdefault(row["layout"], {})[name] = None
    return [f"  ({layout})\n      {', '.join(names)}" for layout, names in named.items()]


def _settings(values: dict) -> str:
    return "\n".join(f"  {name} = {_plain(value)}" for name, value in values.items())


def _plain(value) -> str:
    """A value without JSON's quotes: `relu`, `true`, `1e-05`."""
    return value if isinstance(value, str) else json.dumps(value)
