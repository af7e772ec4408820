"""Golden packs for other programs: raw numbers, a plain index and a page that explains them; or as models come."""

import json
from pathlib import Path

import numpy as np

from contract.errors import ConfigError
from contract.files import exported_files, write_file, write_into, write_sums
from harness.exchange.export import STORED
from parity.golden.manifest import digest
from parity.golden.packs import GOLDEN, Pack, manifest_text
from parity.golden.published import write_folder

FORMATS = ("raw", "npz", "npy", "huggingface")
INDEX, PAGE = "index.txt", "README.txt"


def export_pack(pack: Pack, format: str, out: Path, *, dtype: str | None = None, overwrite: bool = False):
    """Write a pack for other programs.

    format: "raw", a folder of .bin; "npz", one file for NumPy; "npy", a folder; "huggingface", a folder of the weights
        alone, with the tokens, as its family publishes models
    out: what to make; dtype: "float64" or "float32", of the real numbers; a huggingface export's may be narrower. None
        for float64, and for float32 in a huggingface export, which holds the same weights

    Raises ConfigError for another format or dtype, UserError where `out` is taken or cannot be written, or no family
    can say what the model is.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; choose {', '.join(FORMATS)}")
    published = format == "huggingface"
    dtype = dtype or ("float32" if published else "float64")
    dtypes = tuple(STORED) if published else ("float64", "float32")
    if dtype not in dtypes:
        raise ConfigError(f"--dtype of {format} must be one of {', '.join(dtypes)}, got {dtype}")
    if format == "npz":
        if out.suffix != ".npz":
            raise ConfigError(f"--out {out} must end in .npz, by which `check` knows what it is")
        with write_file(out, overwrite=overwrite) as file:
            np.savez(file, **_in(pack, dtype))
        return
    exported_files(out, overwrite)
    with write_into(out, lambda: exported_files(out, overwrite)) as new:
        _FOLDERS[format](pack, dtype, new)
        write_sums(new)


def _in(pack: Pack, dtype: str) -> dict[str, np.ndarray]:
    """The pack's tensors, the real ones in this type, little-endian."""
    real = np.dtype(dtype).newbyteorder("<")
    return {name: x.astype("<i8" if x.dtype.kind == "i" else real) for name, x in pack.tensors.items()}


def _write_npy(pack: Pack, dtype: str, folder: Path):
    for name, tensor in _in(pack, dtype).items():
        np.save(folder / f"{name}.npy", tensor, allow_pickle=False)


def _write_raw(pack: Pack, dtype: str, folder: Path):
    tensors = _in(pack, dtype)
    for name, tensor in tensors.items():
        (folder / f"{name}.bin").write_bytes(tensor.tobytes())
    _write_descriptions(pack, tensors, dtype, folder)


_FOLDERS = {"raw": _write_raw, "npy": _write_npy, "huggingface": write_folder}


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
