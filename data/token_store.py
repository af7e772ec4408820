"""The tokens of a token file, read on demand from a file that must not change."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contract.errors import UserError, explaining
from contract.files import open_regular
from contract.targets import NO_TARGET

AGAIN = "prepare the text again with --overwrite"
SCAN_BYTES = 1 << 20  # read at a time when a file is hashed; a multiple of every token's size


class TokenForm(NamedTuple):
    """How a file holds a token: its id, and its top bit set if it is masked, which means that it does not count as a
    target.

    dtype: uint16 or uint32, little endian; masked: whether tokens can be masked, or else the top bit is of the id
    """

    dtype: np.dtype
    masked: bool = False

    @property
    def mask(self) -> int:
        """What a masked token has besides its id."""
        return 1 << (8 * self.dtype.itemsize - 1) if self.masked else 0

    def ids(self, stored: np.ndarray) -> np.ndarray:
        """The ids of stored tokens."""
        return stored & self.dtype.type(self.mask - 1) if self.masked else stored

    def counts(self, stored: np.ndarray) -> np.ndarray:
        """Which of the stored tokens count as targets: bool."""
        return stored < self.mask if self.masked else np.ones(len(stored), bool)


class TokenStore:
    """An open token file whose bytes must stay what its JSON describes. Not thread-safe.

    form: of a token; tokens: their number; sha256: of the file; largest: the largest id in it
    Raises UserError if the bytes differ, OSError if they cannot be read.
    """

    _file = None  # until it is open

    def __init__(self, path: Path, form: TokenForm, tokens: int, sha256: str):
        self.path, self.form, self._sha256 = path, form, sha256
        self._file = open_regular(path, buffering=0)  # what another process writes is seen at once
        self._stamp = self._find_stamp()
        size = tokens * form.dtype.itemsize
        if self._stamp[0] != size:
            raise UserError(f"{path}: {self._stamp[0]:,} bytes, but its JSON says {size:,}; {AGAIN}")
        found, self.largest = self._scan()
        if found != sha256:
            raise UserError(
                f"{path}: its contents are not those that its JSON describes "
                f"(SHA-256 {found[:12]}…, expected {sha256[:12]}…); {AGAIN}"
            )

    def read(self, start: int, stop: int) -> np.ndarray:
        """The stored tokens `start` to `stop`, read-only. Raises UserError if the file has changed."""
        itemsize = self.form.dtype.itemsize
        size, pieces = max(0, stop - start) * itemsize, []
        with self._naming_changes():
            if self._find_stamp() != self._stamp:
                self.verify()
            self._file.seek(start * itemsize)
            while size > 0 and (piece := self._file.read(size)):  # no more than 2 GB come at once
                pieces.append(piece)
                size -= len(piece)
            if size > 0:
                raise OSError("it is shorter now")
        return np.frombuffer(b"".join(pieces), self.form.dtype)

    def verify(self):
        """Raise UserError if the hash has changed since opening."""
        with self._naming_changes():
            stamp = self._find_stamp()  # before hashing, so that a later change is found by the next reading
            found, _ = self._scan()
            if found != self._sha256:
                raise OSError(f"SHA-256 {found[:12]}…, expected {self._sha256[:12]}…")
        self._stamp = stamp

    def _naming_changes(self):
        return explaining(
            f"{self.path}: the token file has changed while it was in use",
            "put it back as it was, or prepare the same text again with --overwrite, then go on",
        )

    def _find_stamp(self) -> tuple[int, int, int]:
        """Size and times of the file, which change with its contents (the last by a rename or chmod, too)."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _scan(self) -> tuple[str, int]:
        """The SHA-256 of the file and the largest id in it."""
        digest, largest = hashlib.sha256(), 0
        self._file.seek(0)
        while block := self._file.read(SCAN_BYTES):
            digest.update(block)
            tokens = np.frombuffer(block, self.form.dtype, len(block) // self.form.dtype.itemsize)
            largest = max(largest, int(self.form.ids(tokens).max(initial=0)))
        return digest.hexdigest(), largest

    def __del__(self):
        if self._file is not None:
            self._file.close()


class StoredTokens:
    """A part of a token file, read on demand: `tokens[a:b]` and `np.array(tokens)` are arrays of ids.

    The pages of a memory map would count as the process's memory, on some kernels 2 MB for each window.
    """

    def __init__(self, store: TokenStore, start: int, stop: int):
        self.store, self._start, self._len = store, start, stop - start

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, places: slice) -> np.ndarray:
        return self.store.form.ids(self._read(places))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.store.form.dtype, copy=bool(copy))

    def targets(self, start: int, stop: int) -> np.ndarray:
        """The ids of these tokens, `NO_TARGET` for a masked one: int64 (stop - start,)."""
        form, stored = self.store.form, self._read(slice(start, stop))
        return np.where(form.counts(stored), form.ids(stored).astype(np.int64), NO_TARGET)

    def _read(self, places: slice) -> np.ndarray:
        start, stop, _ = places.indices(self._len)
        return self.store.read(self._start + start, self._start + stop)
