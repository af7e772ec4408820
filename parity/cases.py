"""What the twins are compared on: configurations, and weights and tokens made once for both."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from contract.components import COMPONENTS
from contract.config import ModelConfig
from contract.randomness import DropoutKey
from contract.targets import NO_TARGET
from contract.weights import Weights, weight_table


class Case(NamedTuple):
    """A configuration with a batch of B sequences of T tokens.

    symbols: how many tokens of the vocabulary occur; fewer than places, so that tokens repeat
    counts: the share of targets that count, about
    """

    title: str
    config: ModelConfig
    B: int = 3
    T: int = 5
    seed: int = 1
    symbols: int = 7
    counts: float = 1.0

    def inputs(self, dtype: str) -> "Inputs":
        """The numbers of this case, always the same ones."""
        random, symbols = np.random.default_rng(self.seed), min(self.symbols, self.config.vocab_size)
        tokens = random.integers(symbols, size=(self.B, self.T + 1))
        # The first sequence stands elsewhere in the whole batch: masks must be keyed by that place.
        dropout = DropoutKey(self.seed, step=4, first_sequence=2) if self.config.dropout else None
        targets = np.where(random.random((self.B, self.T)) < self.counts, tokens[:, 1:], NO_TARGET)
        return Inputs(lively_weights(self.config, self.seed, dtype), tokens[:, :-1], targets, dropout)


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


_GATED = {"feed_forward": "gated", "activation": "silu", "bias": False}
_PLAIN = {"bias": False, "tie_embeddings": False, "activation": "relu", "position": "sinusoidal"}

# What each family computes, on shapes that can see its porters' mistakes: texts longer than the window, H·D ≠ C,
# 1 < K < H, positions past the scaling's knee, several layers of each kind.
_FAMILY = {
    "vocab_size": 19, "context_length": 80, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "d_model": 16, "d_ff": 20,
    "head_size": 6, "activation": "silu", "position": "rotary", "norm": "rms_norm", "feed_forward": "gated",
    "bias": False,
}  # fmt: skip
_GEMMA = {
    "norm": "rms_norm_plus_one", "block": "sandwich", "activation": "gelu_tanh", "norm_eps": 1e-6, "window": 5,
    "embedding_scale": 4.0,
}  # fmt: skip
_LLAMA_3 = {"scaling": "llama3", "theta": 50.0, "factor": 8.0, "original_context_length": 24}
FAMILIES: dict[str, tuple[str, dict]] = {
    "Llama": ("llama", {}),
    "Llama 3": ("llama", {"rotary": _LLAMA_3, "tie_embeddings": False}),
    "Llama, linear scaling": ("llama", {"rotary": {"scaling": "linear", "factor": 4.0}, "norm_eps": 1e-3}),
    "Mistral": ("mistral", {"window": 5, "layer_pattern": ["sliding"], "tie_embeddings": False}),
    "Qwen 2": ("qwen2", {"query_key_value_bias": True, "rotary": {"theta": 100.0}, "head_size": 4}),
    "Qwen 3": ("qwen3", {"query_key_norm": "head", "rotary": {"theta": 100.0}, "d_model": 18}),
    "Gemma 2": (
        "gemma2",
        _GEMMA | {
            "score_cap": 2.0, "logit_cap": 3.0, "attention_scale": 11**-0.5, "layer_pattern": ["sliding", "full"],
        },
    ),
    "Gemma 3": (
        "gemma3",
        _GEMMA | {
            "query_key_norm": "head", "attention_scale": 11**-0.5, "layer_pattern": ["sliding", "sliding", "full"],
            "rotary": {"theta": 300.0, "scaling": "linear", "factor": 2.0}, "local_rotary": {"theta": 30.0},
            "n_layer": 6,
        },
    ),
}  # fmt: skip


def family_case(title: str) -> Case:
    """A batch of texts longer than the window, and past the knee of the scalings."""
    _, changes = FAMILIES[title]
    seed = 6 if title == "Gemma 3" else 1  # six layers of norms: at other seeds float32 alone strays by 1e-5
    return Case(title, ModelConfig(**{**_FAMILY, **changes}), B=2, T=32, seed=seed, symbols=19)


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
    *(family_case(title)._replace(T=9) for title in FAMILIES),
    _case("six layers", L=6, H=4),
    _case("half of the targets count")._replace(counts=0.5),
    _case("low-rank pairs", lora_rank=3, lora_alpha=4.5),
    _case(
        "low-rank pairs, gated, some", lora_rank=2, **_GATED, lora_targets=("query_key_value", "gate", "down")
    ),
]
