"""A tensor of both twins, cut to what a page can carry."""

import base64
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from parity.compare import Row

MAX_ROWS, MAX_COLUMNS, MAX_PANELS = 32, 128, 16
_SHAPES = {
    "query": "B, H, T, D", "key": "B, H, T, D", "value": "B, H, T, D", "heads": "B, H, T, D",
    "scores": "B, H, T, T", "probabilities": "B, H, T, T", "probabilities_dropout": "B, H, T, T",
    "up": "B, T, F", "activation": "B, T, F", "logits": "B, T, V", "loss": "",
    "query_key_value.weight": "3 C, C", "query_key_value.bias": "3 C", "up.weight": "F, C", "up.bias": "F",
    "down.weight": "C, F", "down.bias": "C", "attention.output.weight": "C, C", "attention.output.bias": "C",
    "token_embedding.weight": "V, C", "position_embedding.weight": "context_length, C",
    "output.weight": "V, C", "norm_1.weight": "C", "norm_2.weight": "C", "final_norm.weight": "C",
    "norm_1.bias": "C", "norm_2.bias": "C", "final_norm.bias": "C",
}  # fmt: skip


class View(NamedTuple):
    """A tensor of both twins, as the page shows it.

    name: as traced; kind: "activation", "gradient", "weight gradient" or "optimizer"
    shape: the whole tensor's
    panels, rows, columns: which indices of its last three axes are shown, all or a sample; one panel and one
        row where it has fewer axes
    manual, autograd: dtype (panels, rows, columns), the numbers of NumPy and of PyTorch
    row: the comparison of the whole tensor
    statistics: least, largest, mean and root mean square of the whole tensor
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    panels: list[int]
    rows: list[int]
    columns: list[int]
    manual: np.ndarray
    autograd: np.ndarray
    row: Row
    statistics: tuple[float, float, float, float]

    @property
    def key(self) -> str:
        """Its kind and name, as the page's links and script call it."""
        return f"{self.kind} {self.name}"

    def as_json(self) -> dict:
        """For the page's script: numbers as base64 of little-endian bytes, so that they stay exact."""
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": self.shape,
            "panels": self.panels,
            "rows": self.rows,
            "columns": self.columns,
            "dtype": str(self.manual.dtype),
            "manual": _base64(self.manual),
            "autograd": _base64(self.autograd),
            "worst": self.row.index,
            "axes": axis_names(self.name),
        }


def view(row: Row, manual: np.ndarray, autograd: np.ndarray, *, keep: Iterable[int]) -> View:
    """A tensor cut to `MAX_ROWS` and so on.

    row: its comparison; keep: ids of the text's tokens, kept where an axis is the vocabulary
    """
    shape = manual.shape
    axes = (1, 1, 1, *shape)[-3:]
    if len(shape) == 4:  # (B, H, T, D), of which B is 1
        manual, autograd = manual[0], autograd[0]
    index = (0, 0, 0, *row.index)[-3:]
    places = [[each] for each in index]
    for at, axis in enumerate(axis_names(row.name), 1):
        if axis == "V":
            places[at].extend(keep)
    most = MAX_PANELS, MAX_ROWS, MAX_COLUMNS
    chosen = [sample(*each) for each in zip(axes, most, places, strict=True)]
    numbers = (manual.reshape(axes)[np.ix_(*chosen)], autograd.reshape(axes)[np.ix_(*chosen)])
    statistics = manual.min(), manual.max(), manual.mean(), np.sqrt(np.mean(np.square(manual, dtype=float)))
    return View(row.name, row.quantity, shape, *chosen, *numbers, row, tuple(map(float, statistics)))


def sample(size: int, most: int, keep: Iterable[int]) -> list[int]:
    """Indices of an axis: all of them, or `most` evenly spaced ones and those to keep, in order."""
    if size <= most:
        return list(range(size))
    spaced = np.linspace(0, size - 1, most).round().astype(int)
    return sorted({*spaced.tolist(), *(int(each) for each in keep)})


def shape_letters(name: str) -> str:
    """The shape of a traced tensor or weight in dimension letters, such as "B, T, C"."""
    parts = name.rpartition(" ")[2].split(".")
    return next(
        (_SHAPES[".".join(parts[-n:])] for n in (3, 2, 1) if ".".join(parts[-n:]) in _SHAPES), "B, T, C"
    )


def axis_names(name: str) -> list[str]:
    """What the rows and columns of a tensor count: dimension letters, "" where there is none."""
    return ["", "", *shape_letters(name).split(", ")][-2:]


def _base64(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")
