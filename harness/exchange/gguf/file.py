"""Reading GGUF files, llama.cpp's format: the header with the metadata, and the tensors.

A tensor is mapped from the file and dequantised, by the `gguf` package, only when it is read.

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

import struct
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import UserError, needs, readable
from contract.files import open_regular

MAGIC, LFS = b"GGUF", b"version https://git-lfs."  # of a pointer's first line
VERSIONS = (2, 3)
_UNQUANTISED = ("F64", "F32", "F16", "BF16")
_DEQUANTISED_AT_ONCE = 1 << 20  # numbers

# The types of values in the metadata, by number; text is 8, a list 9.
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_FLOAT32, _TEXT, _LIST = 6, 8, 9


class GGUFTensor(NamedTuple):
    """The place of a tensor in a GGUF file, and what its converter did to it.

    kind: as GGUF names it, such as "Q4_1"; shape: the file's; offset: of its first byte in the file
    undo: takes what the file holds to what the model's author published; None where that is the same
    transposed: whether `undo` exchanges the two dimensions
    """

    path: Path
    kind: str
    stored_shape: tuple[int, ...]
    offset: int
    undo: Callable[[np.ndarray], np.ndarray] | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what `read` returns."""
        return self.stored_shape[:: -1 if self.transposed else 1]

    @property
    def dtype(self) -> str:
        """As safetensors names it; that of the dequantised numbers where they are quantised."""
        return self.kind if self.kind in _UNQUANTISED else "F32"

    @property
    def float_dtype(self) -> np.dtype:
        """What `read` returns."""
        return np.dtype("float64" if self.kind == "F64" else "float32")

    @property
    def row_bytes(self) -> int:
        """Of the numbers along the last dimension."""
        per_block, block_bytes = block_sizes(self.kind)
        return self.stored_shape[-1] // per_block * block_bytes

    def stored(self) -> np.ndarray:
        """The bytes in the file, uint8 (rows, bytes per row): a read-only map."""
        rows = prod(self.stored_shape[:-1])
        if rows * self.row_bytes == 0:
            return np.zeros((rows, self.row_bytes), np.uint8)  # nothing can be mapped
        return np.memmap(self.path, np.uint8, "r", self.offset, (rows, self.row_bytes))

    def read(self) -> np.ndarray:
        """The numbers, float (shape)."""
        from gguf import GGMLQuantizationType, dequantize

        stored = self.stored()
        if self.kind in ("F64", "F32"):
            values = stored.view(self.float_dtype)
        else:  # in pieces: `dequantize` holds its result twice
            values = np.empty((len(stored), self.stored_shape[-1]), np.float32)
            step = max(1, _DEQUANTISED_AT_ONCE // max(1, self.stored_shape[-1]))
            for start in range(0, len(stored), step):
                piece = np.ascontiguousarray(stored[start : start + step])
                values[start : start + step] = dequantize(piece, GGMLQuantizationType[self.kind])
        values = values.reshape(self.stored_shape)
        return self.undo(values) if self.undo else values


class GGUF(NamedTuple):
    """A GGUF file's header: metadata by key, tensors by GGUF's names."""

    path: Path
    metadata: dict[str, object]
    tensors: dict[str, GGUFTensor]


def open_gguf(path: Path) -> GGUF:
    """The header of a GGUF file. Raises UserError if it is missing, damaged, or nothing that can be read."""
    with needs(f"{path} is a GGUF file, and reading it", "models", ["gguf"]):
        import gguf  # noqa: F401, the first use says what is missing
    with readable(path, "get it again", damaged="cannot be read as GGUF: it was cut short or damaged"):
        with open_regular(path) as file:
            start, size = file.read(24), path.stat().st_size
        _check_start(path, start)
        header = _Header(np.memmap(path, np.uint8, "r") if size else b"", 24)
        n_tensors, n_values = struct.unpack("<QQ", start[8:])
        metadata = dict(header.item() for _ in range(n_values))
        _check_whole(path, metadata)
        places = [header.tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        data = -(-header.at // alignment) * alignment
        tensors = {name: _tensor(path, data, *place) for name, *place in places}
        if len(tensors) < n_tensors or len(metadata) < n_values:
            raise ValueError("a name occurs twice")
        for name, tensor in tensors.items():
            end = tensor.offset + prod(tensor.stored_shape[:-1]) * tensor.row_bytes
            if end > size:
                raise ValueError(f"{name} ends at byte {end:,} of {size:,}")
    return GGUF(path, metadata, tensors)


def quantisation(file: GGUF) -> str | None:
    """A line for the user about how the weights were quantised; None if they were not."""
    counts = Counter(tensor.kind for tensor in file.tensors.values())
    quantised = [kind for kind in counts if kind not in _UNQUANTISED]
    if not quantised:
        return None
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return (
        f"the weights were quantised, which lost precision: of {len(file.tensors)} tensors, {listed}; they become "
        "float32"
    )


def block_sizes(kind: str) -> tuple[int, int]:
    """The numbers and the bytes in a block of a kind of tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]]


def _check_start(path: Path, start: bytes):
    """Refuse what is no GGUF file of this machine's byte order and a known version."""
    if start == LFS:
        raise UserError(f"{path} is a Git LFS pointer, not the file that it stands for; run: git lfs pull")
    if not start.startswith(MAGIC):
        raise UserError(f"{path} is no GGUF file: it begins with {start[:4]!r}, expected {MAGIC!r}")
    if len(start) < 24:
        raise ValueError(f"it has {len(start)} bytes")
    version = int.from_bytes(start[4:8], "little")
    if version & 0xFFFF == 0:
        raise UserError(f"{path} is a GGUF file for big-endian machines; get the little-endian one")
    if version not in VERSIONS:
        raise UserError(
            f"{path} is of version {version} of GGUF, and versions {' and '.join(map(str, VERSIONS))} can be read; "
            "get or convert one of these"
        )


def _check_whole(path: Path, metadata: dict):
    """Refuse files that do not hold a whole model."""
    kind, parts = metadata.get("general.type", "model"), metadata.get("split.count", 1)
    if kind != "model":
        raise UserError(f"{path}: general.type is {kind!r}, and only a model can be imported")
    if parts not in (0, 1):
        raise UserError(
            f"{path} is one of {parts} parts (split.count); join them first: llama-gguf-split --merge FIRST JOINED"
        )


def _tensor(path: Path, data: int, shape: tuple[int, ...], kind: int, offset: int) -> GGUFTensor:
    """The tensor of a row of the header. Raises UserError for a kind that `gguf` does not dequantise."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        kind = GGMLQuantizationType(kind).name
        if kind != "F64":
            dequantize(np.zeros((1, block_bytes), np.uint8), GGMLQuantizationType[kind])
    except (ValueError, KeyError, NotImplementedError):
        raise UserError(
            f"{path} holds tensors of type {kind}, which the gguf package does not dequantise; get another "
            "quantisation of the model, such as Q8_0"
        ) from None
    if shape[-1] % per_block:
        raise ValueError(f"rows of {shape[-1]} numbers, which blocks of {per_block} do not fill")
    return GGUFTensor(path, kind, shape, data + offset)


class _Header:
    """Reads values one after the other. Raises ValueError where the file ends before the value does."""

    def __init__(self, data: np.ndarray, at: int):
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > len(self.data) - self.at:
            raise ValueError(f"a value ends beyond byte {len(self.data):,}, the last one")
        self.at += size
        return self.data[self.at - size : self.at].tobytes()

    def numbers(self, letters: str) -> tuple:
        """The next numbers, of the types that `struct` has letters for."""
        return struct.unpack(f"<{letters}", self.take(struct.calcsize(f"<{letters}")))

    def text(self) -> str:
        return self.take(*self.numbers("Q")).decode()

    def item(self) -> tuple[str, object]:
        """A key of the metadata and its value."""
        return self.text(), self.value(*self.numbers("I"))

    def value(self, kind: int):
        """A value of a numbered type; a float32 as the shortest decimal that it stands for."""
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            kind, count = self.numbers("IQ")
            if kind in _SCALARS:
                size = struct.calcsize(_SCALARS[kind])
                return np.frombuffer(self.take(count * size), f"<{_SCALARS[kind]}").tolist()
            if kind == _TEXT:
                return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"a value of the unknown type {kind}")
        number = self.numbers(_SCALARS[kind])[0]
        return float(str(np.float32(number))) if kind == _FLOAT32 else number

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, kind and offset of a tensor."""
        name, n_dims = self.text(), *self.numbers("I")
        if not 1 <= n_dims <= 4:
            raise ValueError(f"{name} has {n_dims} dimensions")
        return name, self.numbers(f"{n_dims}Q")[::-1], *self.numbers("IQ")
