"""Reading a dump: somebody's tensors by name, in any of the forms that a program writes easily.

Everything in a dump is taken for damaged or hostile until shown otherwise: no pickle is read, no file outside
the folder, and nothing larger than what the pack has under the name.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from lzma import LZMAError
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from contract.errors import UserError
from contract.files import open_regular
from contract.numbers import SIXTEEN_BITS
from contract.schema import read_json, require
from harness.training.tensor_file import stored_tensors

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32")
# bfloat16, which NumPy has not, is the upper half of a float32. Files from JAX have it as two bytes of no type.
_BFLOAT16 = np.dtype("V2")
_WEIGHTS = (".weight", ".bias")
_UNREADABLE = (
    SafetensorError, ValueError, KeyError, TypeError, EOFError, OverflowError, MemoryError, TokenError,
    OSError, zipfile.BadZipFile, zlib.error, LZMAError,
    RuntimeError,  # an encrypted member, an unknown compression, JSON too deep
)  # fmt: skip


class Dump(NamedTuple):
    """tensors: those that the pack has too, by name; unknown: the names of the others
    unread: files and folders in the dump's folder that hold no tensor that can be read
    coarse: "bfloat16" or "float16" where a tensor is in it that a program made, and no weight: a program in 16 bits
    """

    tensors: dict[str, np.ndarray]
    unknown: Sequence[str] = ()
    unread: Sequence[str] = ()
    coarse: str | None = None


def read_dump(path: Path, golden: Mapping[str, np.ndarray], precision: str | None = None) -> Dump:
    """What a dump holds.

    path: a .safetensors or .npz file; a folder of NAME.npy and NAME.bin, little-endian in C order, with a JSON that
        lists name, shape and dtype as the manifest of `golden export` does, or without one; or such a JSON, for what it
        lists alone
    golden: the pack's tensors by name
    precision: that was computed in, where it is known: what two bytes a number are where no JSON tells

    Numbers in 16 bits become float32.

    Raises UserError for whatever cannot be read, for a name that comes twice, and where nothing can be compared: no
    name is the pack's, or only what the pack asks with.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist; name a .safetensors, an .npz, or a folder of .npy or .bin files"
        )
    found: dict[str, np.ndarray] = {}
    stored: dict[str, str] = {}
    unknown: list[str] = []
    part = str(path)
    try:
        for name, read in _entries(path, golden, precision):
            part = f"{name} in {path}"
            if name not in golden:
                unknown.append(name)
                continue
            if name in found:
                raise UserError(f"{path} has {name} twice; leave the one to compare")
            tensor = read()
            native = tensor.dtype.newbyteorder("=")
            dtype = "bfloat16" if native == _BFLOAT16 else str(native)
            if dtype not in DTYPES:
                raise UserError(f"{path}: {name} has dtype {tensor.dtype}; write one of {', '.join(DTYPES)}")
            found[name], stored[name] = _widened(np.array(tensor, native)), dtype
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{part} cannot be read ({reason}); write it again") from None
    if not found:
        seen = f"; it has {', '.join(unknown[:3])}" if unknown else ""
        raise UserError(f"{path} has no tensor under a name of the pack, such as {next(iter(golden))}{seen}")
    if all(map(_is_asked, found)):
        raise UserError(
            f"{path} has only {', '.join(found)} of the pack, which it gives; dump what your program makes of them"
        )
    made = {stored[name] for name in found if name.startswith("gradient.") or not name.endswith(_WEIGHTS)}
    coarse = next((each for each in SIXTEEN_BITS if each in made), None)
    return Dump(found, unknown, _unread(path) if path.is_dir() else (), coarse)


def _widened(tensor: np.ndarray) -> np.ndarray:
    """Numbers in 16 bits as float32."""
    if tensor.dtype == _BFLOAT16:
        return (tensor.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor


def _is_asked(name: str) -> bool:
    """Whether a tensor is what a pack asks with, and tells nothing of the program that it comes back from."""
    return name in ("tokens", "targets", "adamw.learning_rate") or name.endswith((".prompt", ".draws"))


def _unread(folder: Path) -> list[str]:
    """What stands in the folder of a dump and is none of its forms; hidden files are nobody's tensors."""
    places = [place for place in sorted(folder.iterdir()) if not place.name.startswith(".")]
    return [place.name for place in places if place.is_dir() or place.suffix not in (".npy", ".bin", ".json")]


def _entries(path: Path, golden, precision: str | None) -> Iterator[tuple]:
    """Name and reader of each tensor, by what `path` is."""
    if path.is_dir():
        listings, listed = sorted(path.glob("*.json")), set()
        if len(listings) > 1:
            raise UserError(f"{path} has {len(listings)} JSON files; leave the one that lists the tensors")
        for row in _rows(listings[0]) if listings else ():
            listed.add(row.get("file", f"{row['name']}.bin"))
            yield str(row["name"]), lambda row=row: read_raw(path, row)
        for file in sorted([*path.glob("*.npy"), *path.glob("*.bin")]):
            if file.name not in listed:
                yield (
                    file.stem,
                    lambda file=file: (
                        _array(file) if file.suffix == ".npy" else _sized(file, golden, precision)
                    ),
                )
    elif path.suffix == ".json":
        for row in _rows(path):
            yield str(row["name"]), lambda row=row: read_raw(path.parent, row)
    elif path.suffix == ".npz":
        # Opened here: NumPy leaves a file open that turns out to be no archive.
        with open_regular(path) as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is no archive")
            for name in archive.files:
                yield name, lambda name=name: _member(archive, name, golden)
    else:
        with open_regular(path), safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, lambda name=name: _stored(path, file, name)


def _array(file: Path) -> np.ndarray:
    with open_regular(file):  # a pipe would be waited for
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("it is an .npz archive under another name")
    return array


def _member(archive, name: str, golden) -> np.ndarray:
    """A member of an .npz, once its declared size has been found plausible: it may claim terabytes."""
    info = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
    if info.file_size > 16 * golden[name].size + 4096:
        raise ValueError(f"{name} has {info.file_size} bytes, too many for shape {golden[name].shape}")
    return archive[name]


def _stored(path: Path, file, name: str) -> np.ndarray:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in ("F64", "F32", "F16", "BF16", "I64", "I32"):
        raise ValueError(f"{name} has dtype {dtype}; write {', '.join(DTYPES)}")
    if dtype != "BF16":
        return file.get_tensor(name)
    place = stored_tensors(path)[name]
    return np.fromfile(path, _BFLOAT16, prod(place.shape), offset=place.offset).reshape(place.shape)


def _rows(path: Path) -> list[dict]:
    """What a JSON says of each tensor."""
    listing = read_json(path, (dict, list))
    try:
        require(listing, {"tensors": (list, dict)})
        rows = listing["tensors"]
        require(rows, {str: dict} if isinstance(rows, dict) else [{"name": str}], "tensors")
    except ValueError as error:
        form = '{"tensors": {"NAME": {"shape": [2, 3], "dtype": "float32"}}}'
        raise UserError(f"{path} lists no tensors ({error}); write {form}") from None
    return [{"name": name, **row} for name, row in rows.items()] if isinstance(rows, dict) else rows


def read_raw(folder: Path, row: Mapping) -> np.ndarray:
    """The numbers of a .bin file that `row` describes: name, shape, dtype. Raises ValueError where they are others."""
    file, shape, dtype = row.get("file", f"{row['name']}.bin"), row["shape"], row["dtype"]
    if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
        raise ValueError(f"{file!r} is not the name of a file beside the JSON")
    if not all(isinstance(size, int) and size >= 0 for size in shape) or dtype not in DTYPES:
        raise ValueError(f"{row['name']} has shape {shape} and dtype {dtype}; write {', '.join(DTYPES)}")
    kind = _BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
    wanted, size = kind.itemsize * prod(shape), (folder / file).stat().st_size
    if size != wanted:
        raise ValueError(f"{file} has {size} bytes where shape {shape} in {dtype} needs {wanted}")
    with open_regular(folder / file) as numbers:
        return np.fromfile(numbers, kind).reshape(shape)


def _sized(file: Path, golden, precision: str | None) -> np.ndarray:
    """A .bin file that no JSON lists: its shape is the pack's, its size tells the precision."""
    wanted, size = golden[file.stem], file.stat().st_size
    if size == 2 * wanted.size:
        if precision not in SIXTEEN_BITS:
            raise ValueError(f"{file.name} has 2 bytes a number; add --precision bfloat16 or float16")
        return read_raw(file.parent, {"name": file.stem, "shape": wanted.shape, "dtype": precision})
    if size not in (4 * wanted.size, 8 * wanted.size):
        raise ValueError(
            f"{file.name} has {size} bytes where shape {wanted.shape} needs {4 * wanted.size} or {8 * wanted.size}"
        )
    kind = "int" if wanted.dtype.kind == "i" else "float"
    dtype = f"{kind}{32 if size == 4 * wanted.size else 64}"
    return read_raw(file.parent, {"name": file.stem, "shape": wanted.shape, "dtype": dtype})
