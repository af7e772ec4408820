"""The weight table: the one list that says which weights a model has, in dataflow order.

It is made from `contract/components.py`; allocation, initial values, Adam's decay, checkpoints and parity read it.
Its names are the keys of the PyTorch twin's `state_dict()`; a linear weight is (out, in) as in PyTorch, so weights
pass between the twins without a transpose.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Literal, NamedTuple

import numpy as np

from contract.components import Weight, sizes, weight_rows
from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.randomness import generator

DTYPES = (np.dtype("float32"), np.dtype("float64"))


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
    A of a low-rank pair starts at 1/√(3·in) like that of its authors' program, and B at 0: the pair adds nothing yet.
    """
    std, size = 0.02, sizes(config)
    embedding_std = size["C"] ** -0.5 if config.position == "sinusoidal" else std
    normal = {"normal": std, "residual": std / (2 * size["L"]) ** 0.5, "embedding": embedding_std}

    def spec(row: Weight) -> WeightSpec:
        shape = tuple(size[letter] for letter in row.letters.split())
        deviation = (3 * shape[-1]) ** -0.5 if row.init == "low_rank" else normal.get(row.init, 0.0)
        return WeightSpec(shape, "normal" if deviation else row.init, deviation)

    return {name: spec(row) for name, row in weight_rows(config).items()}


def parameter_count(config: ModelConfig) -> int:
    """The number of trained numbers, tied weights counted once."""
    return sum(int(np.prod(spec.shape)) for spec in weight_table(config).values())


class Weights(Mapping[str, np.ndarray]):
    """Named views of one flat buffer, in table order; gradients and Adam's moments use the same layout.

    flat: dtype (parameter count,), the matrices first and the vectors after them, so that the part which
        weight decay shrinks is one slice, `flat[:decaying]`
    decaying: how many of the flat buffer's numbers decay
    layout: see `flat_layout`

    Raises ConfigError for a flat buffer of another size than the table's.
    """

    def __init__(self, table: Mapping[str, WeightSpec], flat: np.ndarray):
        self.flat, self.layout = flat, flat_layout(table)
        self._views: dict[str, np.ndarray] = {}
        size = sum(int(np.prod(shape)) for _, shape in self.layout)
        if np.shape(flat) != (size,):
            raise ConfigError(
                f"the flat buffer of weights must have the shape {(size,)}, got {np.shape(flat)}"
            )
        start = 0
        for name, shape in self.layout:
            stop = start + int(np.prod(shape))
            self._views[name] = flat[start:stop].reshape(shape)
            start = stop
        self._views = {name: self._views[name] for name in table}
        self.decaying = sum(self._views[name].size for name, spec in table.items() if spec.decays)

    @classmethod
    def zeros(cls, config: ModelConfig, dtype, without: Iterable[str] = ()) -> "Weights":
        """A zero for every weight of `config` but those named in `without`: what gradients and moments start from.

        Raises ConfigError unless dtype is "float32" or "float64".
        """
        check_dtype(dtype)
        without = set(without)
        table = {name: spec for name, spec in weight_table(config).items() if name not in without}
        return cls(table, np.zeros(sum(int(np.prod(spec.shape)) for spec in table.values()), dtype))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def get(self, name: str, default=None) -> np.ndarray | None:
        # A Mapping's own raises a KeyError, and catches it, for every bias that is absent.
        return self._views.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def is_low_rank(name: str) -> bool:
    """Whether the weight of this name is one of a low-rank pair."""
    return name.endswith((".lora_a", ".lora_b"))


def frozen_names(names: Iterable[str], patterns: str) -> list[str]:
    """The weights that training leaves as they are: those of the patterns, and beside low-rank pairs all others.

    patterns: as in a file's name, separated by spaces: "blocks.[0-3] token_embedding" is four blocks and the embedding
    Raises ConfigError for a pattern that fits no weight, or where none is left to train.
    """
    names = list(names)
    adapted = any(map(is_low_rank, names))
    frozen = {name for name in names if adapted and not is_low_rank(name)}
    for pattern in patterns.split():
        found = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not found:
            raise ConfigError(
                f"--freeze {pattern} fits no weight; they are called {', '.join(names[:3])} and so on"
            )
        frozen.update(found)
    if len(frozen) == len(names):
        raise ConfigError(f"--freeze {patterns} leaves no weight to train; name fewer")
    return [name for name in names if name in frozen]


def flat_layout(table: Mapping[str, WeightSpec]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of each weight in the order in which a flat buffer holds them, matrices first."""
    rows = sorted(table.items(), key=lambda row: not row[1].decays)
    return tuple((name, spec.shape) for name, spec in rows)


def check_dtype(dtype):
    """Raise ConfigError unless weights may have this dtype: float32 or float64, a name or NumPy's object."""
    try:
        fits = dtype is not None and np.dtype(dtype) in DTYPES  # NumPy takes None for float64
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(f"dtype must be float32 or float64, got {dtype!r}")


def check_weights(weights: Mapping[str, np.ndarray], config: ModelConfig):
    """Raise ConfigError, naming the first that is odd, unless `weights` are those of `config` and finite.

    They have the names and shapes of `weight_table(config)`, in any order, and float32 or float64 in all.
    """
    check_tensors("weights", weights, {name: spec.shape for name, spec in weight_table(config).items()})


def check_tensors(what: str, tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]):
    """The same for any tensors by name, whose shapes are `expected`; what: what they are, for the message"""
    if not isinstance(tensors, Mapping):
        raise ConfigError(f"{what} must be arrays by name, got {type(tensors).__name__}")
    found = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    for name in [*expected, *found]:
        wanted, got = expected.get(name, "none"), found[name].shape if name in found else "none"
        if wanted != got:
            raise ConfigError(f"{what} of another model: {name}: expected {wanted}, got {got}")
    dtype = next(iter(found.values())).dtype
    check_dtype(dtype)
    for name, tensor in found.items():
        if tensor.dtype != dtype:
            raise ConfigError(f"{what} of two dtypes: expected {name} in {dtype}, got {tensor.dtype}")
        # Two reductions, as nan passes through both and neither makes a temporary array.
        if not (np.isfinite(tensor.min()) and np.isfinite(tensor.max())):
            place = tuple(map(int, np.argwhere(~np.isfinite(tensor))[0]))
            raise ConfigError(f"{what} must be finite, but {name}{list(place)} is {tensor[place]}")


def check_buffer(what: str, values):
    """Raise ConfigError unless `values` are `Weights`."""
    if not isinstance(values, Weights):
        raise ConfigError(f"{what} must be contract.weights.Weights, one buffer, got {type(values).__name__}")


def check_layout(what: str, values: Weights, layout: tuple):
    """Raise ConfigError, naming the first that differs, unless `values` are `Weights` of this layout."""
    check_buffer(what, values)
    if values.layout == layout:
        return
    for wanted, got in zip_longest(layout, values.layout, fillvalue=("nothing", "more")):
        if wanted != got:
            raise ConfigError(
                f"{what} of another layout than the model's: expected {wanted[0]} {wanted[1]}, "
                f"got {got[0]} {got[1]}"
            )


def initial_weights(config: ModelConfig, seed: int, dtype) -> Weights:
    """The weights that training starts from, bit-identical for both twins.

    Each weight draws from its own stream, in float32 whatever `dtype` is: a float64 run starts from the
    very numbers of the float32 run, and adding a layer changes no other layer's start.
    Raises ConfigError for a seed that is not from 0 to 2^63 - 1 or another dtype than float32 and float64.
    """
    weights = Weights.zeros(config, dtype)
    for name, spec in weight_table(config).items():
        fill_initial(weights[name], name, spec, seed)
    return weights


def fill_initial(weight: np.ndarray, name: str, spec: WeightSpec, seed: int):
    """Write the initial values of the weight called `name`, a row of the table."""
    if spec.init == "normal":
        draws = generator(seed, f"weights.{name}").standard_normal(spec.shape, dtype=np.float32)
        np.multiply(draws, np.float32(spec.std), out=weight, casting="same_kind")
    else:
        weight[...] = {"zeros": 0, "ones": 1}[spec.init]
