"""Safetensors files, read tensor by tensor, so that memory never holds a second copy of a model.

The `safetensors` package validates the header. The numbers are then mapped from the file, one tensor at a time.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from contract.errors import UserError, readable
from contract.files import open_regular

# bfloat16, which NumPy lacks, is the upper half of a float32.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class StoredTensor(NamedTuple):
    """The place of a tensor in a file.

    dtype: as safetensors names it, such as "F32"; shape: the tensor's; offset: of its first byte in the file
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def float_dtype(self) -> np.dtype:
        """What `read` returns: float64 for float64, float32 for float32 and for the two half precisions."""
        return np.dtype("float64" if self.dtype == "F64" else "float32")

    def read(self, file: BinaryIO | None = None) -> np.ndarray:
        """The numbers, float (shape): a read-only map of the file, or a converted copy.

        file: that at `path`, if it is open
        """
        if 0 in self.shape:
            return np.zeros(self.shape, self.float_dtype)  # nothing can be mapped
        stored = np.memmap(file or self.path, DTYPES[self.dtype], "r", self.offset, self.shape)
        if self.dtype == "BF16":
            wide = stored.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return stored.astype(np.float32) if self.dtype == "F16" else stored


class StoredTensors(Mapping[str, np.ndarray]):
    """Tensors that are read each time they are asked for, so that memory holds no more of them than are in use.

    The file is kept open: they are this file's, even when another has taken its place.
    """

    def __init__(self, path: Path, tensors: Mapping[str, StoredTensor]):
        self._file, self._tensors = path.open("rb"), tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read(self._file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __del__(self):
        with suppress(AttributeError):  # it could not be opened
            self._file.close()


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises UserError if the file is missing, truncated, or not safetensors.
    """
    with readable(path, "get it again", damaged="cannot be read as safetensors: it was cut short or damaged"):
        try:
            with open_regular(path), safe_open(path, framework="numpy") as file:
                names = set(file.keys())
        except SafetensorError as error:
            raise ValueError(error) from None
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    return {
        name: StoredTensor(path, row["dtype"], tuple(row["shape"]), 8 + size + row["data_offsets"][0])
        for name, row in header.items()
        if name in names
    }


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]):
    """Write a new safetensors file of float32 or float64 tensors, which are asked for one by one, as `shapes` has them.

    Raises OSError if it cannot be written.
    """
    dtype = "F64" if next(iter(tensors.values())).dtype == np.float64 else "F32"
    stream_tensors(path, shapes, (tensors[name] for name in shapes), dtype, {})


def stream_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Iterable[np.ndarray],
    dtype: str,
    metadata: dict,
):
    """Write a new safetensors file tensor by tensor, in the order of `shapes`.

    values: what each tensor holds, one after the other; dtype: "F64", "F32", "F16" or "BF16", rounded to nearest even
    Raises UserError naming a tensor that does not fit a narrower dtype, OSError if the file cannot be written.
    """
    stored, place = np.dtype(DTYPES[dtype]), 0
    header: dict[str, dict] = {"__metadata__": metadata} if metadata else {}
    for name, shape in shapes.items():
        end = place + math.prod(shape) * stored.itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    try:
        with path.open("xb") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            for name, value in zip(shapes, values, strict=True):
                file.write(np.ascontiguousarray(_narrowed(name, value, dtype), stored).data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _narrowed(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers as they are stored."""
    if dtype == "BF16":
        bits = np.asarray(value, np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16  # a tie goes to the even one
        finite = (rounded & 0x7F80) != 0x7F80
    else:
        with np.errstate(over="ignore"):
            rounded = value.astype(DTYPES[dtype], copy=False)
        finite = np.isfinite(rounded)
    if not finite.all():
        raise UserError(
            f"{name} holds {value[~finite][0]}, too large for {dtype}; export with --dtype float32"
        )
    return rounded
