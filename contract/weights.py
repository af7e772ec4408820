"""The weight table: the one list that says which weights a model has, in dataflow order.

Allocation, initial values, Adam's decay, checkpoints and parity all read it. Its names are the keys of the
PyTorch twin's `state_dict()`; a linear weight is (out, in) as in PyTorch, so weights pass between the twins
without a transpose.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.randomness import generator


class WeightSpec(NamedTuple):
    """One row of the table.

    shape: the weight's shape
    init: "normal" (mean 0, deviation `std`), "zeros" or "ones"
    std: standard deviation of a normal initial value, else 0
    decays: whether weight decay shrinks it: matrices do, vectors (biases, norms) do not
    """

    shape: tuple[int, ...]
    init: Literal["normal", "zeros", "ones"]
    std: float = 0.0

    @property
    def decays(self) -> bool:
        return len(self.shape) > 1


def weight_table(config: ModelConfig) -> dict[str, WeightSpec]:
    """Every weight of the model by its dotted name, in the order in which the forward pass meets them.

    Everything starts at deviation 0.02 but for two. Projections that write into the residual stream start
    smaller by 1/√(2L), so that its variance does not grow with depth (Radford et al. 2019, section 2.3). Token
    embeddings beside sinusoids, whose deviation is 0.7, start at 1/√C: at 0.02 the tokens drown among the
    positions, and the default run ends at 2.4 nats per token where it otherwise ends at 1.35.
    """
    V, C, F = config.vocab_size, config.d_model, config.d_ff
    std, residual_std = 0.02, 0.02 / (2 * config.n_layer) ** 0.5
    embedding_std = C**-0.5 if config.position == "sinusoidal" else std
    table: dict[str, WeightSpec] = {}

    def matrix(name: str, rows: int, columns: int, std: float):
        table[f"{name}.weight"] = WeightSpec((rows, columns), "normal", std)

    def linear(name: str, rows: int, columns: int, std: float):
        matrix(name, rows, columns, std)
        if config.bias:
            table[f"{name}.bias"] = WeightSpec((rows,), "zeros")

    def norm(name: str):
        table[f"{name}.weight"] = WeightSpec((C,), "ones")
        if config.bias:
            table[f"{name}.bias"] = WeightSpec((C,), "zeros")

    matrix("token_embedding", V, C, embedding_std)
    if config.position == "learned":
        matrix("position_embedding", config.context_length, C, std)
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        norm(f"{block}.norm_1")
        linear(f"{block}.attention.query_key_value", 3 * C, C, std)
        linear(f"{block}.attention.output", C, C, residual_std)
        norm(f"{block}.norm_2")
        linear(f"{block}.feed_forward.up", F, C, std)
        linear(f"{block}.feed_forward.down", C, F, residual_std)
    norm("final_norm")
    if not config.tie_embeddings:
        matrix("output", V, C, std)
    return table


def parameter_count(config: ModelConfig) -> int:
    """The number of trained numbers, tied weights counted once."""
    return sum(int(np.prod(spec.shape)) for spec in weight_table(config).values())


class Weights(Mapping[str, np.ndarray]):
    """Named views of one flat buffer, in table order; gradients and Adam's moments use the same layout.

    flat: dtype (parameter count,), the matrices first and the vectors after them, so that the part which
        weight decay shrinks is one slice, `flat[:decaying]`
    decaying: how many of the flat buffer's numbers decay
    """

    def __init__(self, table: Mapping[str, WeightSpec], flat: np.ndarray):
        self.flat = flat
        self._views: dict[str, np.ndarray] = {}
        start = 0
        for name, spec in sorted(table.items(), key=lambda row: not row[1].decays):
            stop = start + int(np.prod(spec.shape))
            self._views[name] = flat[start:stop].reshape(spec.shape)
            start = stop
        self._views = {name: self._views[name] for name in table}
        self.decaying = sum(self._views[name].size for name, spec in table.items() if spec.decays)

    @classmethod
    def zeros(cls, config: ModelConfig, dtype) -> "Weights":
        """A zero for every weight of `config`: what gradients and moments start from."""
        return cls(weight_table(config), np.zeros(parameter_count(config), dtype))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def initial_weights(config: ModelConfig, seed: int, dtype) -> Weights:
    """The weights that training starts from, bit-identical for both twins.

    Each weight draws from its own stream, in float32 whatever `dtype` is: a float64 run starts from the
    very numbers of the float32 run, and adding a layer changes no other layer's start.
    """
    weights = Weights.zeros(config, dtype)
    for name, spec in weight_table(config).items():
        if spec.init == "normal":
            draws = generator(seed, f"weights.{name}").standard_normal(spec.shape, dtype=np.float32)
            np.multiply(draws, np.float32(spec.std), out=weights[name], casting="same_kind")
        elif spec.init == "ones":
            weights[name][...] = 1
    return weights
