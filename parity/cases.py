"""What the twins are compared on: configurations, and weights and tokens made once for both."""

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
        shape = self.B, self.T + 1
        tokens = np.random.default_rng(self.seed).integers(
            min(self.symbols, self.config.vocab_size), size=shape
        )
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


def _config(**changes) -> ModelConfig:
    fields = {
        "vocab_size": 11, "context_length": 6, "n_layer": 2, "n_head": 2, "d_model": 8, "d_ff": 12,
        "activation": "gelu_tanh", "position": "learned",
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


_PLAIN = {"bias": False, "tie_embeddings": False, "activation": "relu", "position": "sinusoidal"}

CASES = [
    Case("gelu, learned, tied, bias", _config()),
    Case("relu", _config(activation="relu")),
    Case("sinusoidal", _config(position="sinusoidal")),
    Case("untied", _config(tie_embeddings=False)),
    Case("no bias", _config(bias=False)),
    Case("relu, sinusoidal, untied, no bias", _config(**_PLAIN)),
    Case("dropout", _config(dropout=0.2)),
    Case("dropout, relu, sinusoidal, untied, no bias", _config(dropout=0.5, **_PLAIN)),
    Case("one head", _config(n_head=1)),
    Case("eight heads of size 1", _config(n_head=8)),
    Case("heads wider than the stream", _config(head_size=7)),
    Case("heads of odd size", _config(head_size=3)),
    Case("odd widths", _config(vocab_size=13, n_head=3, d_model=15, d_ff=7)),
    Case("T of 1", _config(), T=1),
    Case("T of 1, dropout, sinusoidal", _config(dropout=0.3, position="sinusoidal"), T=1),
    Case("the full context", _config(), T=6),
    Case("batch 1", _config(), B=1),
    Case("batch 1, T of 1", _config(tie_embeddings=False), B=1, T=1),
    Case("one token repeated", _config(), symbols=1),
    Case("large norm_eps", _config(norm_eps=0.5)),
    *(Case(norm, _config(norm=norm)) for norm in COMPONENTS["norm"]),
    *(Case(f"family: {title}", family_config(title), T=9) for title in FAMILIES),
    Case("six layers", _config(n_layer=6, n_head=4)),
]  # fmt: skip
