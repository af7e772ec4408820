"""One pass of both twins over a text, forward and back: everything that the page shows is read from it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

import numpy_llm
import torch_llm
from contract.components import sizes
from contract.config import ModelConfig
from contract.weights import Weights, weight_table
from numpy_llm.adam import CHUNK
from operations.dataflow import Dataflow, record
from parity.cases import Inputs
from parity.compare import Row, compare
from parity.passes import Record, allow_rounding, reference_pass, twin_pass
from study.tensors import View, view

LEARNING_RATE = 1e-3
ADAM_WEIGHTS = ("blocks.0.norm_1.weight", "blocks.0.attention.output.weight", "final_norm.weight")
_FIELDS = {"activation": "activations", "gradient": "gradients", "weight gradient": "weight_gradients"}


class Pass(NamedTuple):
    """Both twins' passes over one text.

    tokens: int (T + 1,); inputs: weights and batch, by precision
    by_hand, autograd: what NumPy and PyTorch computed, by precision; flow: which operation made which tensor
    rows: the comparison of every tensor, by precision; views: what is shown, in float32, by kind and name
    """

    config: ModelConfig
    tokens: np.ndarray
    inputs: dict[str, Inputs]
    by_hand: dict[str, Record]
    autograd: dict[str, Record]
    flow: Dataflow
    rows: dict[str, list[Row]]
    views: dict[tuple[str, str], View]

    @property
    def loss(self) -> float:
        """Nats per token, in float64, by hand."""
        return float(self.by_hand["float64"].activations["loss"])

    @property
    def sizes(self) -> dict[str, int]:
        """This pass's number for each dimension letter, as they occur in shapes."""
        T, decaying = len(self.tokens) - 1, self.inputs["float64"].weights.decaying
        return sizes(self.config, T=T) | {"B T": T, "1": 1, "N": min(CHUNK, decaying)}


def run_pass(config: ModelConfig, weights: Mapping[str, np.ndarray], tokens: np.ndarray) -> Pass:
    """Send a text through both twins, forward and back, in both precisions.

    weights: by name, in any precision; tokens: int (T + 1,), each of which but the first is predicted
    """
    inputs, by_hand, autograd, rows = {}, {}, {}, {}
    for dtype in ("float64", "float32"):
        inputs[dtype] = Inputs(_cast(config, weights, dtype), tokens[None, :-1], tokens[None, 1:], None)
        by_hand[dtype] = reference_pass(numpy_llm, config, inputs[dtype])
        autograd[dtype] = twin_pass(torch_llm, config, inputs[dtype], traced=True)
        rows[dtype] = []
        for kind, field in _FIELDS.items():
            pair = getattr(by_hand[dtype], field), getattr(autograd[dtype], field)
            rows[dtype] += compare(kind, *pair, dtype)
    rows["float32"] = allow_rounding(rows["float32"], config, inputs["float32"])

    shown = {
        kind: [getattr(each["float32"], _FIELDS[kind]) for each in (by_hand, autograd)] for kind in _FIELDS
    }
    shown["optimizer"] = adam_step(config, inputs["float64"].weights, by_hand["float64"].weight_gradients)
    rows["float64"] += compare("optimizer", *shown["optimizer"], "float64")
    of_views = rows["float32"] + [row for row in rows["float64"] if row.quantity == "optimizer"]
    views = {
        row[:2]: view(config, row, *(each[row.name] for each in shown[row.quantity]), np.unique(tokens))
        for row in of_views
    }
    activations = by_hand["float64"].activations
    flow = Dataflow(record(config).nodes, activations.__contains__, activations.get)
    return Pass(config, tokens, inputs, by_hand, autograd, flow, rows, views)


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
    changed, total = _cast(config, weights, "float64"), _cast(config, gradients, "float64")
    by_hand = numpy_llm.Adam(changed)
    parameters = {name: torch.nn.Parameter(torch.tensor(weight)) for name, weight in weights.items()}
    twin = torch_llm.Adam(parameters)
    for _ in range(2):
        by_hand.update(total, LEARNING_RATE)
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(total[name])
        twin.update(LEARNING_RATE)
        total.flat[...] /= 2
    table = weight_table(config)
    found = (
        {"mean": Weights(table, by_hand.m), "mean square": Weights(table, by_hand.v), "weight": changed},
        {"mean": twin.m, "mean square": twin.v, "weight": parameters},
    )
    return tuple(
        {
            f"{kind} {name}": torch.as_tensor(tensors[name]).detach().numpy().copy()
            for name in ADAM_WEIGHTS
            for kind, tensors in each.items()
        }
        for each in found
    )
