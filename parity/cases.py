"""What the twins are compared on: configurations, and weights and tokens made once for both."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from contract.components import COMPONENTS
from contract.config import ModelConfig
from contract.randomness import DropoutKey
from contract.weights import Weights, weight_table
from parity.families import FAMILIES, family_config


class Case(NamedTuple):
    """A configuration with a batch of B sequences of T tokens.

    symbols: how many tokens of the vocabulary occur; fewer than places, so that tokens repeat
    """

    title: str
    config: ModelConfig
    B: int = 3
    T: int = 5
    seed: int = 1
    symbols: int = 7

    def inputs(self, dtype: str) -> "Inputs":
        """The numbers of this case, always the same ones."""
        random, symbols = np.random.default_rng(self.seed), min(self.symbols, self.config.vocab_size)
        tokens = random.integers(symbols, size=(self.B, self.T + 1))
        # The first sequence stands elsewhere in the whole batch: masks must be keyed by that place.
        dropout = DropoutKey(self.seed, step=4, first_sequence=2) if self.config.dropout else None
        return Inputs(lively_weights(self.config, self.seed, dtype), tokens[:, :-1], tokens[:, 1:], dropout)


class Inputs(NamedTuple):
    """weights: by name; tokens, targets: int64 (B, T); dropout: key of the masks, None without dropout"""

    weights: Weights
    tokens: np.ndarray
    targets: np.ndarray
    dropout: DropoutKey | None


def lively_weights(config: ModelConfig, seed: int, dtype: str) -> Weights:
    """Weights so large that every term of every gradient matters.

    At their initial values biases are 0, attention is nearly even and GELU nearly linear: a mistake there
    would not show. Here each layer keeps the size of what passes through it, as training leaves it.
    """
    weights, random = Weights.zeros(config, dtype), np.random.default_rng(seed)
    for name, spec in weight_table(config).items():
        gain = 2.0 if name.endswith("embedding.weight") else 1.0  # tied, it gives logits of deviation 2
        deviation = gain * spec.shape[-1] ** -0.5 if spec.decays else 0.3
        mean = 1.0 if spec.init == "ones" else 0.0
        weights[name][...] = random.normal(mean, deviation, spec.shape)
    return weights


def cast_weights(config: ModelConfig, values: Mapping[str, np.ndarray], dtype: str) -> Weights:
    """A copy of the weights that are given by name, in another precision."""
    weights = Weights.zeros(config, dtype)
    for name, weight in weights.items():
        weight[...] = values[name]
    return weights


def small(V: int, context: int, L: int, H: int, C: int, F: int, **changes) -> ModelConfig:
    """A configuration by its sizes: GELU and learned positions, unless `changes` say otherwise."""
    sizes = {"vocab_size": V, "context_length": context, "n_layer": L, "n_head": H, "d_model": C, "d_ff": F}
    return ModelConfig(**{**sizes, "activation": "gelu_tanh", "position": "learned", **changes})


def _case(title: str, B: int = 3, T: int = 5, symbols: int = 7, **changes) -> Case:
    sizes = {"V": 11, "L": 2, "H": 2, "C": 8, "F": 12, **changes}
    return Case(title, small(context=6, **sizes), B, T, symbols=symbols)


_PLAIN = {"bias": False, "tie_embeddings": False, "activation": "relu", "position": "sinusoidal"}

CASES = [
    _case("gelu, learned, tied, bias"),
    _case("relu", activation="relu"),
    _case("sinusoidal", position="sinusoidal"),
    _case("untied", tie_embeddings=False),
    _case("no bias", bias=False),
    _case("relu, sinusoidal, untied, no bias", **_PLAIN),
    _case("dropout", dropout=0.2),
    _case("dropout, relu, sinusoidal, untied, no bias", dropout=0.5, **_PLAIN),
    _case("one head", H=1),
    _case("eight heads of size 1", H=8),
    _case("heads wider than the stream", head_size=7),
    _case("heads of odd size", head_size=3),
    _case("odd widths", V=13, H=3, C=15, F=7),
    _case("T of 1", T=1),
    _case("T of 1, dropout, sinusoidal", T=1, dropout=0.3, position="sinusoidal"),
    _case("the full context", T=6),
    _case("batch 1", B=1),
    _case("batch 1, T of 1", B=1, T=1, tie_embeddings=False),
    _case("one token repeated", symbols=1),
    _case("large norm_eps", norm_eps=0.5),
    *(_case(norm, norm=norm) for norm in COMPONENTS["norm"]),
    *(Case(f"family: {title}", family_config(title), T=9) for title in FAMILIES),
    _case("six layers", L=6, H=4),
]
