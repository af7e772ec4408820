"""One pass of both twins over a text, forward and back: everything that the page shows is read from it."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

import numpy_llm
import torch_llm
from contract.components import sizes
from contract.config import ModelConfig
from contract.weights import Weights, weight_table
from learn.study.tensors import MOST, View, view
from numpy_llm.threads import PIECE
from operations.dataflow import Dataflow, record
from parity.cases import Inputs
from parity.compare import Row, compare
from parity.passes import allow_rounding, reference_pass, twin_pass

LEARNING_RATE = 1e-3
_ADAM_WEIGHTS = (
    "blocks.0.norm_1.weight", "blocks.0.post_norm_1.weight", "blocks.0.attention.output.weight", "final_norm.weight",
)  # fmt: skip
_FIELDS = {"activation": "activations", "gradient": "gradients", "weight gradient": "weight_gradients"}


class Pass(NamedTuple):
    """Both twins' passes over one text.

    tokens: int (T + 1,); inputs: weights and batch, by precision
    tensors: by precision and kind, what NumPy and what PyTorch computed, each by name
    flow: which operation made which tensor; rows: the comparison of every tensor, by precision
    views: what is shown, by kind and name: in float32, but for Adam's step
    layers: the blocks whose tensors are shown; most: how many heads, rows and columns of each
    """

    config: ModelConfig
    tokens: np.ndarray
    inputs: dict[str, Inputs]
    tensors: dict[str, dict[str, tuple[Mapping, Mapping]]]
    flow: Dataflow
    rows: dict[str, list[Row]]
    views: dict[tuple[str, str], View]
    layers: tuple[int, ...]
    most: tuple[int, int, int] = MOST

    def showing(self, layers: tuple[int, ...], most: tuple[int, int, int]) -> "Pass":
        """The same pass with the tensors of these blocks shown alone, and so much of each."""
        return self._replace(layers=layers, most=most, views=_views(self, layers, most))

    def shows(self, name: str) -> bool:
        """Whether a tensor is of a block that is shown, or of none; Adam's are always shown."""
        block = re.match(r"blocks\.(\d+)\.", name)
        return block is None or int(block[1]) in self.layers

    def by_hand(self, kind: str) -> Mapping[str, np.ndarray]:
        """The tensors of a kind in float64, as NumPy computed them."""
        return self.tensors["float64"][kind][0]

    @property
    def sizes(self) -> dict[str, int]:
        """This pass's number for each dimension letter, as they occur in shapes."""
        T, decaying = len(self.tokens) - 1, self.inputs["float64"].weights.decaying
        own = {"B T": T, "1": 1, "N": min(PIECE, decaying), "D/2": self.config.head_size // 2}
        return sizes(self.config, T=T) | own

    def fails(self, view: View) -> list[str]:
        """The precisions in which a tensor of the twins differs by more than its limit."""
        return [
            dtype
            for dtype, rows in self.rows.items()
            if any(row[:2] == (view.kind, view.name) and not row.holds for row in rows)
        ]


def run_pass(config: ModelConfig, weights: Mapping[str, np.ndarray], tokens: np.ndarray) -> Pass:
    """Send a text through both twins, forward and back, in both precisions.

    weights: by name, in any precision; tokens: int (T + 1,), each of which but the first is predicted
    """
    inputs, tensors = {}, {}
    for dtype in ("float64", "float32"):
        inputs[dtype] = Inputs(_cast(config, weights, dtype), tokens[None, :-1], tokens[None, 1:], None)
        both = (
            reference_pass(numpy_llm, config, inputs[dtype]),
            twin_pass(torch_llm, config, inputs[dtype], traced=True),
        )
        tensors[dtype] = {
            kind: tuple(getattr(each, field) for each in both) for kind, field in _FIELDS.items()
        }
    gradients = tensors["float64"]["weight gradient"][0]
    tensors["float64"]["optimizer"] = adam_step(config, inputs["float64"].weights, gradients)
    rows = {
        dtype: [row for kind, pair in pairs.items() for row in compare(kind, *pair, dtype)]
        for dtype, pairs in tensors.items()
    }
    rows["float32"] = allow_rounding(rows["float32"], config, inputs["float32"])
    activations = tensors["float64"]["activation"][0]
    flow = Dataflow(record(config).nodes, activations.__contains__, activations.get)
    layers = tuple(range(config.n_layer))
    return Pass(config, tokens, inputs, tensors, flow, rows, {}, layers).showing(layers, MOST)


def _views(run: Pass, layers: tuple[int, ...], most: tuple[int, int, int]) -> dict[tuple[str, str], View]:
    shown = run._replace(layers=layers)
    return {
        row[:2]: view(
            run.config, row, *(each[row.name] for each in run.tensors[dtype][row.quantity]), run.tokens, most
        )
        for dtype, compared in run.rows.items()
        for row in compared
        if (row.quantity == "optimizer") == (dtype == "float64") and shown.shows(row.name)
    }


def _cast(config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: str) -> Weights:
    cast = Weights.zeros(config, dtype)
    for name, weight in cast.items():
        weight[...] = weights[name]
    return cast


def _adam_table(config: ModelConfig) -> dict:
    return {name: spec for name, spec in weight_table(config).items() if name in _ADAM_WEIGHTS}


def adam_weights(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> Weights:
    """A copy of the few weights that Adam's step is shown on: each number is updated by itself."""
    table = _adam_table(config)
    dtype = weights[next(iter(table))].dtype
    copy = Weights(table, np.empty(sum(int(np.prod(spec.shape)) for spec in table.values()), dtype))
    for name, weight in copy.items():
        weight[...] = weights[name]
    return copy


def adam_step(
    config: ModelConfig, weights: Weights, gradients: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What two steps of Adam leave behind in either twin, for a few weights, by "mean NAME" and so on.

    The second step finds running means that are not 0, and gradients half as large, so that every term counts.
    """
    changed, total = adam_weights(config, weights), adam_weights(config, gradients)
    by_hand = numpy_llm.Adam(changed)
    parameters = {name: torch.nn.Parameter(torch.tensor(weights[name])) for name in changed}
    twin = torch_llm.Adam(parameters)
    for _ in range(2):
        by_hand.update(total, LEARNING_RATE)
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(total[name])
        twin.update(LEARNING_RATE)
        total.flat[...] /= 2
    table = _adam_table(config)
    found = (
        {"mean": Weights(table, by_hand.m), "mean square": Weights(table, by_hand.v), "weight": changed},
        {"mean": twin.m, "mean square": twin.v, "weight": parameters},
    )
    return tuple(
        {
            f"{kind} {name}": torch.as_tensor(tensors[name]).detach().numpy().copy()
            for name in table
            for kind, tensors in each.items()
        }
        for each in found
    )
