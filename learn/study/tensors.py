"""A tensor of both twins, cut to what a page can carry."""

import base64
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from contract.components import letters
from contract.config import ModelConfig
from parity.compare import Row

MOST = 16, 32, 128  # panels, rows and columns of a tensor that are shown


class View(NamedTuple):
    """A tensor of both twins, as the page shows it.

    name: as traced; kind: "activation", "gradient", "weight gradient" or "optimizer"
    shape: the whole tensor's, its axes named in `letters`
    panels, rows, columns: which indices of its last three axes are shown, all or a sample; one panel and one
        row where it has fewer axes
    manual, autograd: dtype (panels, rows, columns), the numbers of NumPy and of PyTorch
    row: the comparison of the whole tensor
    statistics: least, largest, mean and root mean square of the whole tensor
    means: in words, of a variable of the code, of the kind "inner": it has no autograd, row or statistics
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    letters: list[str]
    panels: list[int]
    rows: list[int]
    columns: list[int]
    manual: np.ndarray
    autograd: np.ndarray | None
    row: Row | None
    statistics: tuple[float, float, float, float] | None
    means: str = ""

    @property
    def key(self) -> str:
        """Its kind and name, as the page's links and script call it."""
        return f"{self.kind} {self.name}"

    @property
    def axes(self) -> list[str]:
        """What its rows and columns count: dimension letters, "" where there is none."""
        return ["", "", *self.letters][-2:]

    @property
    def shown(self) -> str:
        """How much of it is shown."""
        sampled = [
            f"{len(indices)} of {size} {name}"
            for indices, size, name in zip(
                (self.panels, self.rows, self.columns),
                (1, 1, 1, *self.shape)[-3:],
                ("heads", "rows", "columns"),
                strict=True,
            )
            if len(indices) < size
        ]
        return ", ".join(sampled) or "all"

    def as_json(self) -> dict:
        """For the page's script: numbers as base64 of little-endian bytes, so that they stay exact.

        steps: of autograd's float32 numbers from those by hand, in the order of all floats; half as many bytes, where
            none is far away. Otherwise autograd is written as it is.
        """
        steps = None if self.autograd is None else _steps(self.manual, self.autograd)
        shown = {
            name: value
            for name, value in self._asdict().items()
            if name not in ("letters", "row", "statistics")
        }
        return shown | {
            "dtype": str(self.manual.dtype),
            "manual": _base64(self.manual),
            "autograd": None if self.autograd is None or steps is not None else _base64(self.autograd),
            "steps": None if steps is None else _base64(steps),
            "worst": self.row.index if self.row else [0] * len(self.shape),
            "axes": self.axes,
        }


def view(
    config: ModelConfig, row: Row, manual: np.ndarray, autograd: np.ndarray, tokens: np.ndarray, most=MOST
) -> View:
    """A tensor cut to a sample.

    row: its comparison; tokens: of the text, kept where an axis is the vocabulary
    most: how many heads, rows and columns are shown
    """
    shape = manual.shape
    named = letters(config, row.name.rpartition(" ")[2])
    named = ["T" if each == "S" else each for each in named]  # a token attends to those of the text alone
    axes = (1, 1, 1, *shape)[-3:]
    if len(shape) == 4:  # (B, H, T, D), of which B is 1
        manual, autograd = manual[0], autograd[0]
    index = (0, 0, 0, *row.index)[-3:]
    places = [[each] for each in index]
    for at in (-2, -1):
        if ["", "", *named][at] == "V":
            places[at].extend(tokens)
    chosen = [sample(*each) for each in zip(axes, most, places, strict=True)]
    numbers = (manual.reshape(axes)[np.ix_(*chosen)], autograd.reshape(axes)[np.ix_(*chosen)])
    statistics = manual.min(), manual.max(), manual.mean(), np.sqrt(np.mean(np.square(manual, dtype=float)))
    return View(row.name, row.quantity, shape, named, *chosen, *numbers, row, tuple(map(float, statistics)))


def inner_view(name: str, means: str, value: np.ndarray, axes: str, run) -> View:
    """A variable of the code cut to a sample; autograd has none.

    name: chapter and symbol; means: in words; axes: its dimension letters, such as "B, T, C"
    run: the pass, with how much is shown
    """
    shape = value.shape
    named = axes.split(", ")[-len(shape) :] if shape else []
    sizes, value = (1, 1, 1, *shape)[-3:], value[0] if len(shape) == 4 else value
    keep = [run.tokens if ["", *named][-2:][at : at + 1] == ["V"] else () for at in (0, 1)]
    chosen = [sample(*each) for each in zip(sizes, run.most, ((), *keep), strict=True)]
    numbers = value.reshape(sizes)[np.ix_(*chosen)].astype(np.float32)
    return View(name, "inner", shape, named, *chosen, numbers, None, None, None, means)


def sample(size: int, most: int, keep: Iterable[int]) -> list[int]:
    """Indices of an axis: all of them, or `most` evenly spaced ones and those to keep, in order."""
    if size <= most:
        return list(range(size))
    spaced = np.linspace(0, size - 1, most).round().astype(int)
    return sorted({*spaced.tolist(), *(int(each) for each in keep)})


def _steps(manual: np.ndarray, autograd: np.ndarray) -> np.ndarray | None:
    """How many floats lie between each pair of float32 numbers, as int16; None where one is too far away."""
    if manual.dtype != np.float32 or autograd.dtype != np.float32:
        return None
    bits = (np.ascontiguousarray(each).view(np.int32).astype(np.int64) for each in (manual, autograd))
    first, second = (np.where(each < 0, -(each & 0x7FFFFFFF), each) for each in bits)
    apart = second - first
    return apart.astype(np.int16) if np.abs(apart).max(initial=0) < 1 << 15 else None


def _base64(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")
