"""Golden packs for languages without safetensors: raw numbers, a plain index and a page that explains them."""

import json
from pathlib import Path

import numpy as np

from contract.errors import ConfigError
from contract.files import exported_files, write_file, write_into, write_sums
from parity.golden.manifest import digest
from parity.golden.packs import GOLDEN, Pack, manifest_text

FORMATS = ("raw", "npz", "npy")
INDEX, PAGE = "index.txt", "README.txt"


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
    real = np.dtype(dtype).newbyteorder("<")
    tensors = {n: t.astype("<i8" if t.dtype.kind == "i" else real) for n, t in pack.tensors.items()}
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
    manifest, rows = pack.manifest, []
    for row in manifest["tensors"]:
        kind = dtype if row["dtype"] == "float64" else row["dtype"]
        name = row["name"]
        rows.append(row | {"dtype": kind, "file": f"{name}.bin", "sha256": digest(tensors[name])})
    lines = [
        f"{group} {name} {value}" for group in ("config", "adamw") for name, value in _plain(manifest[group])
    ]
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        limits = f"{row['float32']:g} {row['float64']:g} {row['scale']:.17g}"
        lines.append(f"tensor {row['name']} {row['dtype']} {shape} {limits}")
    page = (GOLDEN / "export.txt").read_text(encoding="utf-8")
    groups = {
        group: "\n".join(f"  {name} = {value}" for name, value in _plain(manifest[group]))
        for group in ("config", "adamw")
    }
    equations = "\n".join(f"  {name}: {text}" for name, text in manifest["operations"].items())
    page = page.format(
        name=pack.name, steps=manifest["adamw"]["steps"], dtype=dtype, layouts=_layouts(rows), equations=equations,
        **groups,
    )  # fmt: skip
    (out / "manifest.json").write_bytes(manifest_text(manifest | {"tensors": rows}))
    (out / INDEX).write_bytes("\n".join([*lines, ""]).encode())
    (out / PAGE).write_bytes(page.encode())


def _layouts(rows: list[dict]) -> str:
    """A line for each layout, with the names that have it; a block and the step of a moment stand for all."""
    named: dict[str, dict] = {}
    for row in rows:
        name = row["name"].replace("blocks.0.", "blocks.*.")
        if not name.startswith(("gradient.", "adamw.", "blocks.")) or name.startswith("blocks.*."):
            named.setdefault(row["layout"], {})[name] = None
    return "\n".join(f"  ({layout})\n      {', '.join(names)}" for layout, names in named.items())


def _plain(values: dict) -> list[tuple[str, str]]:
    """Names and values, these without JSON's quotes: `relu`, `true`, `1e-05`."""
    return [(name, each if isinstance(each, str) else json.dumps(each)) for name, each in values.items()]
