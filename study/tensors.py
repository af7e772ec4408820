"""The tensors of one run of both twins, held against each other and cut to what a page can carry."""

import base64
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch

import numpy_llm
import torch_llm
from contract.config import ModelConfig
from contract.weights import Weights, weight_table
from parity.cases import Inputs
from parity.compare import Row, compare
from parity.passes import Record, allow_rounding, reference_pass, twin_pass

MOST_ROWS, MOST_COLUMNS, MOST_PANELS = 32, 128, 16
LEARNING_RATE = 1e-3
ADAM_WEIGHTS = ("blocks.0.norm_1.weight", "blocks.0.attention.output.weight", "final_norm.weight")


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
    def sampled(self) -> bool:
        """Whether numbers were left out."""
        return self.manual.size < int(np.prod(self.shape))

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
        }


class Run(NamedTuple):
    """Both twins' passes over one text.

    rows: the comparison of every tensor, by precision; views: what is shown, in float32, by kind and name
    loss: nats per token, float64, by hand
    """

    rows: dict[str, list[Row]]
    views: dict[tuple[str, str], View]
    loss: float


def run_twins(config: ModelConfig, weights: Mapping[str, np.ndarray], tokens: np.ndarray) -> Run:
    """Send a text through both twins, forward and back, in both precisions.

    weights: by name, in any precision; tokens: int (T + 1,), each of which but the first is predicted
    """
    rows, views, loss = {}, {}, 0.0
    for dtype in ("float64", "float32"):
        inputs = Inputs(_cast(config, weights, dtype), tokens[None, :-1], tokens[None, 1:], None)
        reference = reference_pass(numpy_llm, config, inputs)
        twin = twin_pass(torch_llm, config, inputs, traced=True)
        pairs = _pairs(reference, twin)
        rows[dtype] = [row for kind, pair in pairs.items() for row in compare(kind, *pair, dtype)]
        if dtype == "float32":
            rows[dtype] = allow_rounding(rows[dtype], config, inputs)
        if dtype == "float64":
            loss = float(reference.activations["loss"])
            pairs = {"optimizer": adam_step(config, inputs.weights, reference.weight_gradients)}
            rows[dtype] += compare("optimizer", *pairs["optimizer"], dtype)
        keep = np.unique(tokens)
        for row in rows[dtype]:
            if row.quantity in pairs and (dtype == "float32" or row.quantity == "optimizer"):
                pair = pairs[row.quantity]
                views[row.quantity, row.name] = _view(row, *(each[row.name] for each in pair), keep)
    return Run(rows, views, loss)


def _pairs(reference: Record, twin: Record) -> dict[str, tuple[dict, dict]]:
    kinds = {"activation": "activations", "gradient": "gradients", "weight gradient": "weight_gradients"}
    return {kind: (getattr(reference, field), getattr(twin, field)) for kind, field in kinds.items()}


def _cast(config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: str) -> Weights:
    cast = Weights.zeros(config, dtype)
    for name, weight in cast.items():
        weight[...] = weights[name]
    return cast


def adam_step(
    config: ModelConfig, weights: Weights, gradients: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What two steps of Adam leave behind in either twin, for a few weights, by "mean NAME" and so on.

    The second step finds running means that are not 0, and gradients half as large, so that every term counts.
    """
    changed = _cast(config, weights, "float64")
    total = Weights(weight_table(config), np.empty_like(changed.flat))
    for name, gradient in gradients.items():
        total[name][...] = gradient
    by_hand = numpy_llm.Adam(changed)
    by_hand.update(total, LEARNING_RATE)
    total.flat[...] /= 2
    by_hand.update(total, LEARNING_RATE)
    table = weight_table(config)
    kinds = {
        "mean": Weights(table, by_hand.m), "mean square": Weights(table, by_hand.v), "weight": changed,
    }  # fmt: skip

    parameters = {name: torch.nn.Parameter(torch.tensor(weight)) for name, weight in weights.items()}
    for name, parameter in parameters.items():
        parameter.grad = 2 * torch.tensor(total[name])
    twin = torch_llm.Adam(parameters)
    twin.update(LEARNING_RATE)
    for parameter in parameters.values():
        parameter.grad /= 2
    twin.update(LEARNING_RATE)
    twin_kinds = {"mean": twin.m, "mean square": twin.v, "weight": parameters}
    return tuple(
        {
            f"{kind} {name}": np.array(_array(tensors[name]))
            for name in ADAM_WEIGHTS
            for kind, tensors in each.items()
        }
        for each in (kinds, twin_kinds)
    )


def _array(tensor) -> np.ndarray:
    return tensor.detach().numpy() if torch.is_tensor(tensor) else tensor


def _view(row: Row, manual: np.ndarray, autograd: np.ndarray, tokens: Iterable[int]) -> View:
    """The tensor cut to `MOST_ROWS` and so on; tokens: ids of the text, kept where an axis is the vocabulary."""
    shape = manual.shape
    axes = (1, 1, 1, *shape)[-3:]
    if len(shape) == 4:  # (B, H, T, D), of which B is 1
        manual, autograd = manual[0], autograd[0]
    index = (0, 0, 0, *row.index)[-3:]
    vocabulary = row.name.removesuffix(".weight") in ("token_embedding", "output"), row.name == "logits"
    keep = [[place] for place in index]
    if row.quantity == "weight gradient" and vocabulary[0]:
        keep[1] += list(tokens)
    if vocabulary[1]:
        keep[2] += list(tokens)
    most = MOST_PANELS, MOST_ROWS, MOST_COLUMNS
    chosen = [sample(*each) for each in zip(axes, most, keep, strict=True)]
    numbers = (manual.reshape(axes)[np.ix_(*chosen)], autograd.reshape(axes)[np.ix_(*chosen)])
    statistics = manual.min(), manual.max(), manual.mean(), np.sqrt(np.mean(np.square(manual, dtype=float)))
    return View(row.name, row.quantity, shape, *chosen, *numbers, row, tuple(map(float, statistics)))


def sample(size: int, most: int, keep: Iterable[int]) -> list[int]:
    """Indices of an axis: all of them, or `most` evenly spaced ones and those to keep, in order."""
    if size <= most:
        return list(range(size))
    spaced = np.linspace(0, size - 1, most).round().astype(int)
    return sorted({*spaced.tolist(), *(int(each) for each in keep)})


def _base64(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")
