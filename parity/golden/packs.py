"""Golden packs: a small model's every tensor in float64, to hold a port of the model against.

A pack is two files: NAME.safetensors with the tensors and NAME.json, the manifest, which says of each tensor
what it is, what made it and how far another program may be from it. Neither needs PyTorch.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from contract.config import ModelConfig
from contract.errors import UserError
from contract.files import open_regular, replaceable_items, write_into
from contract.schema import checksum, pop_checksum, read_json, require, shown
from contract.weights import weight_table
from parity.golden.dumps import read_raw
from parity.golden.manifest import FORMAT, digest
from parity.golden.origins import CONTINUATIONS, given_names, pass_origins

GOLDEN = Path(__file__).parent


class Pack(NamedTuple):
    """manifest: see `parity.golden.manifest.manifest`; tensors: by name, float64 but for token ids, which are int64"""

    manifest: dict
    config: ModelConfig
    tensors: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.manifest["name"]


def save_pack(pack: Pack, folder: Path, *, overwrite: bool = False):
    """Write NAME.safetensors and NAME.json, both or neither, the same bytes for the same pack.

    Raises UserError where they cannot be written, or would replace anything but a pack with `overwrite`.
    """
    # `ascontiguousarray` would make an array of one number of a scalar.
    tensors = {name: np.array(tensor, order="C") for name, tensor in pack.tensors.items()}
    text = manifest_text(pack.manifest | {"checksum": checksum(pack.manifest)})
    place = folder / f"{pack.name}.json"
    with write_into(folder, lambda: replaceable_pack(pack.name, folder, overwrite), shown=place) as new:
        (new / f"{pack.name}.safetensors").write_bytes(save(tensors))
        (new / f"{pack.name}.json").write_bytes(text)


def replaceable_pack(name: str, folder: Path, overwrite: bool) -> list[str]:
    """The names of the two files of an earlier pack NAME in `folder`.

    Raises UserError where they are there and `overwrite` is not given, or where they are no pack's.
    """

    def foreign(path: Path) -> Path | None:
        with suppress(OSError, ValueError):
            _verified(read_json(folder / f"{name}.json"))
            return None if path.is_file() and not path.is_symlink() else path
        return path

    paths, choose = [folder / f"{name}.json", folder / f"{name}.safetensors"], "choose another NAME or --out"
    return replaceable_items(paths, foreign, overwrite, kind="golden pack", choose=choose)


def manifest_text(record: dict) -> bytes:
    """The manifest as JSON, a line for each tensor."""
    head = json.dumps({name: value for name, value in record.items() if name != "tensors"}, allow_nan=False)
    rows = ",\n".join(json.dumps(row, allow_nan=False, separators=(",", ":")) for row in record["tensors"])
    return f'{head[:-1]},\n"tensors": [\n{rows}\n]}}\n'.encode()


def find_pack(name: str) -> Path:
    """The manifest of a committed pack by name, or of any by the path of either file, with or without its ending,
    or by the folder of its raw export.

    Raises UserError where there is none.
    """
    path = Path(name)
    path = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    for place in (GOLDEN / name, path, path / "manifest"):
        manifest_path = place.parent / f"{place.name}.json"
        if manifest_path.is_file():
            return manifest_path
    raise UserError(
        f"there is no golden pack {name!r}; choose {', '.join(pack_names())}, or name a pack's file"
    )


def pack_names() -> list[str]:
    """The committed packs."""
    return sorted(path.stem for path in GOLDEN.glob("*.json"))


class Recipe(NamedTuple):
    """What a pack is made of by `make_pack`: its model, the shape of its batch, its seed, its steps of AdamW."""

    config: ModelConfig
    B: int
    T: int
    seed: int
    steps: int


def committed() -> dict[str, Recipe]:
    """The recipe of each committed pack, by name, as its manifest has it.

    The seeds are such that no input of ReLU is near its kink, no two logits of a greedy choice are near each other,
    tokens repeat, texts vary, and of steps some are clipped and some are not.
    """
    return {name: _recipe(read_json(GOLDEN / f"{name}.json", _MANIFEST)) for name in pack_names()}


def _recipe(manifest: dict) -> Recipe:
    B, T = next(row["shape"] for row in manifest["tensors"] if row["name"] == "tokens")
    return Recipe(_config_of(manifest), B, T, manifest["seed"], manifest["adamw"]["steps"])


def load_pack(name: str) -> Pack:
    """Read and verify a pack or a raw export. Raises UserError where a file is missing, damaged or of another version.

    An export in float32 has float32's limits in either precision.
    """
    path = find_pack(name)
    try:
        record = read_json(path)
        exported = _is_export(record)
        config = _config_of(_verified(record, sealed=not exported))
        if exported:
            tensors = {row["name"]: read_raw(path.parent, row) for row in record["tensors"]}
        else:
            with open_regular(path.with_suffix(".safetensors")) as file:
                stored = load(file.read())
            tensors = {row["name"]: stored[row["name"]] for row in record["tensors"]}
        for row in record["tensors"]:
            _require_described(tensors[row["name"]], row, exported)
        _require_complete(config, record["adamw"], tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a golden pack or is damaged ({error}); make it again") from None
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); make it again") from None
    rows = [r | {"float64": r["float32"]} if r["dtype"] == "float32" else r for r in record["tensors"]]
    types = {"f": np.float64, "i": np.int64}
    tensors = {name: np.array(tensor, types[tensor.dtype.kind]) for name, tensor in tensors.items()}
    return Pack(record | {"tensors": rows}, config, tensors)


_COUNT = range(2**63)
_ROW = {
    "name": str,
    "shape": [_COUNT],
    "dtype": str,
    "layout": str,
    "operation": str,
    "inputs": [str],
    "float32": float,
    "float64": float,
    # Steps of AdamW, texts and packs of earlier versions have no limits in 16 bits.
    "float16": (float, None),
    "bfloat16": (float, None),
    "scale": float,
    "sha256": (str, None),  # raw exports of earlier versions have none
}
_REAL = dict.fromkeys(("beta1", "beta2", "eps", "weight_decay", "max_norm"), float)
_MANIFEST = {
    "format": str,
    "name": str,
    "config": dict,
    "seed": _COUNT,
    "adamw": {"steps": _COUNT, **_REAL},
    # Packs of earlier versions have no top_p.
    "sampling": {"temperature": float, "top_k": _COUNT, "top_p": (float, None), "seed": _COUNT},
    "operations": {str: str},
    "tensors": [_ROW],
}


def _verified(record: dict, sealed: bool = True) -> dict:
    """The manifest without its checksum. Raises ValueError unless it has every field that is read, no number is
    below 0 and, if `sealed`, its checksum fits.
    """
    if record.get("format") != FORMAT:
        raise ValueError(f"it is of format {shown(record.get('format'))}, expected {FORMAT!r}")
    if sealed and not pop_checksum(record):
        raise ValueError("its manifest was changed: it does not match its checksum")
    require(record, _MANIFEST)
    if not is_plain(record["name"]):
        raise ValueError(f"its name {record['name']!r} is no plain name")
    for values in (record["adamw"], record["sampling"], *record["tensors"]):
        for name, value in values.items():
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{name} is {value}, expected at least 0")
    return record


def is_plain(name: str) -> bool:
    """Whether a pack may be called so: a file name without a folder."""
    return Path(name).name == name and bool(name.strip(". "))


def _config_of(record: dict) -> ModelConfig:
    """The configuration, once it is known not to claim more layers than there are tensors."""
    layers = record["config"].get("n_layer")
    if isinstance(layers, int) and layers > len(record["tensors"]):
        raise ValueError(f"n_layer is {layers:,}, but there are {len(record['tensors'])} tensors")
    return ModelConfig.from_dict(record["config"])


def _require_complete(config: ModelConfig, adamw: dict, tensors: dict[str, np.ndarray]):
    """Raise ValueError unless the tensors are those of a pack with this configuration and so many steps."""
    table, steps = weight_table(config), adamw["steps"]
    wanted = {*given_names(config), *pass_origins(config)[1], *CONTINUATIONS}
    wanted |= {"greedy.prompt", "sampled.prompt", "sampled.draws"}
    if steps:
        wanted |= {f"adamw.{name}" for name in ("learning_rate", "loss", "gradient_norm")}
        wanted |= {f"adamw.{kind}.{name}" for kind in ("m", "v", "weights") for name in table}
    if odd := sorted(wanted ^ tensors.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in wanted else 'none of its tensors'}")
    for name, tensor in tensors.items():
        shape = table[name].shape if name in table else tensor.shape
        if tensor.shape != shape or (name.startswith("adamw.") and tensor.shape[:1] != (steps,)):
            raise ValueError(f"{name} has shape {list(tensor.shape)}")


def _is_export(record: dict) -> bool:
    rows = record.get("tensors")
    return isinstance(rows, list) and bool(rows) and all(isinstance(r, dict) and "file" in r for r in rows)


def _require_described(tensor: np.ndarray, row: dict, exported: bool):
    found = list(tensor.shape), tensor.dtype.name, digest(tensor)
    described = row["shape"], row["dtype"], row.get("sha256", found[-1] if exported else None)
    if found != described:
        told = "what was exported" if exported else "what the manifest says"
        raise ValueError(f"{row.get('file', row['name'])} is not {told}")
