"""What the model is made of: for each slot and choice, its weights and traced tensors in dimension letters.

A choice lists its rows in dataflow order. Shapes, initial values, counts of weights and operations, sizes of packs and
the words that describe a tensor are all read from here; a name that is not here is an error. To add a choice, add it
here, and under the same name in the twins' dispatch tables. The letters are explained in `contract/config.py`; S is
the number of tokens attended to, P the context length.
"""

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from contract.errors import ConfigError

if TYPE_CHECKING:  # the configuration takes its choices from here
    from contract.config import ModelConfig


class Tensor(NamedTuple):
    """A traced tensor; an empty name stands for the component's own output."""

    name: str
    letters: str


class Weight(NamedTuple):
    """A weight. Matrices decay, vectors do not.

    linear: whether it is a linear layer's, a matrix (out, in) or a bias
    init: "zeros", "ones", or a normal distribution: "normal", "residual" for a matrix that writes into the residual
        stream, "embedding" for the tokens'; see `contract.weights.weight_table`
    """

    name: str
    letters: str
    init: str
    linear: bool = False


class Part(NamedTuple):
    """A component in a slot; an empty name adds its rows without a prefix, `each_layer` repeats it under numbers."""

    name: str
    slot: str
    each_layer: bool = False


def _linear(name: str, rows: str, columns: str, init: str = "normal") -> tuple[Weight, Weight]:
    matrix = Weight(f"{name}.weight", f"{rows} {columns}", init, linear=True)
    return matrix, Weight(f"{name}.bias", rows, "zeros", linear=True)


# Rows called "bias" are there only if the configuration says so.
COMPONENTS: dict[str, dict[str, tuple[Tensor | Weight | Part, ...]]] = {
    "model": {
        "gpt": (
            Weight("token_embedding.weight", "V C", "embedding"),
            Tensor("token_embedding", "B T C"),
            Part("", "position"),
            Tensor("embedding_dropout", "B T C"),
            Part("blocks", "block", each_layer=True),
            Part("final_norm", "norm"),
            Part("", "output"),
            Tensor("loss", ""),
        ),
    },
    "position": {
        "sinusoidal": (Tensor("embedding", "B T C"),),
        "learned": (Weight("position_embedding.weight", "P C", "normal"), Tensor("embedding", "B T C")),
    },
    "block": {
        "pre_norm": (
            Part("norm_1", "norm"),
            Part("attention", "attention"),
            Tensor("dropout_1", "B T C"),
            Tensor("residual_1", "B T C"),
            Part("norm_2", "norm"),
            Part("feed_forward", "feed_forward"),
            Tensor("dropout_2", "B T C"),
            Tensor("residual_2", "B T C"),
        ),
    },
    "norm": {
        "layer_norm": (Weight("weight", "C", "ones"), Weight("bias", "C", "zeros"), Tensor("", "B T C")),
        "rms_norm": (Weight("weight", "C", "ones"), Tensor("", "B T C")),
    },
    "attention": {
        "multi_head": (
            *_linear("query_key_value", "(H+2K)·D", "C"),
            Tensor("query", "B H T D"),
            Tensor("key", "B K T D"),
            Tensor("value", "B K T D"),
            Tensor("scores", "B H T S"),
            Tensor("probabilities", "B H T S"),
            Tensor("probabilities_dropout", "B H T S"),
            Tensor("heads", "B H T D"),
            *_linear("output", "C", "H·D", "residual"),
            Tensor("output", "B T C"),
        ),
    },
    "feed_forward": {
        "two_layers": (
            *_linear("up", "F", "C"),
            Tensor("up", "B T F"),
            Part("activation", "activation"),
            *_linear("down", "C", "F", "residual"),
            Tensor("down", "B T C"),
        ),
    },
    "activation": {
        "relu": (Tensor("", "B T F"),),
        "gelu_tanh": (Tensor("", "B T F"),),
    },
    "output": {
        "tied": (Tensor("logits", "B T V"),),
        "untied": (Weight("output.weight", "V C", "normal"), Tensor("logits", "B T V")),
    },
}


def choices(config: "ModelConfig") -> dict[str, str]:
    """What the configuration puts into each slot."""
    return {
        "model": "gpt",
        "position": config.position,
        "block": "pre_norm",
        "norm": config.norm,
        "attention": "multi_head",
        "feed_forward": "two_layers",
        "activation": config.activation,
        "output": "tied" if config.tie_embeddings else "untied",
    }


def weight_roles(slot: str, choice: str) -> list[str]:
    """The names of a component's own weights, a bias that may be absent included."""
    return [row.name for row in COMPONENTS[slot][choice] if isinstance(row, Weight)]


@lru_cache(maxsize=2)
def rows(config: "ModelConfig") -> dict[str, Tensor | Weight]:
    """Every weight and traced tensor of the model by its dotted name, in dataflow order; not to be changed."""
    chosen = choices(config)

    def expand(slot: str, prefix: str):
        for row in COMPONENTS[slot][chosen[slot]]:
            name = ".".join(filter(None, (prefix, row.name)))
            if isinstance(row, Part):
                for place in (
                    [f"{name}.{layer}" for layer in range(config.n_layer)] if row.each_layer else [name]
                ):
                    yield from expand(row.slot, place)
            elif config.bias or row.name.rpartition(".")[2] != "bias":
                yield name, row

    return dict(expand("model", ""))


def weight_rows(config: "ModelConfig") -> dict[str, Weight]:
    """Every weight of the model by its dotted name, in dataflow order."""
    return {name: row for name, row in rows(config).items() if isinstance(row, Weight)}


def letters(config: "ModelConfig", name: str) -> tuple[str, ...]:
    """The dimensions of a weight or traced tensor: "blocks.3.attention.scores" -> ("B", "H", "T", "S").

    Raises ConfigError for a name that the model does not have.
    """
    if name not in rows(config):
        raise ConfigError(f"the model has no weight or tensor called {name!r}")
    return tuple(rows(config)[name].letters.split())


def sizes(config: "ModelConfig", B: int = 1, T: int = 1, S: int | None = None) -> dict[str, int]:
    """How large each dimension of the table is; S is T unless given: more with a key/value cache."""
    H, K, D = config.n_head, config.n_kv_head, config.head_size
    return {
        "B": B, "T": T, "S": S or T, "P": config.context_length, "L": config.n_layer, "V": config.vocab_size,
        "C": config.d_model, "F": config.d_ff, "H": H, "K": K, "D": D, "H·D": H * D, "(H+2K)·D": (H + 2 * K) * D,
    }  # fmt: skip


def shape(config: "ModelConfig", name: str, B: int = 1, T: int = 1, S: int | None = None) -> tuple[int, ...]:
    """The shape of a weight or traced tensor; raises ConfigError like `letters`."""
    size = sizes(config, B, T, S)
    return tuple(size[letter] for letter in letters(config, name))


def traced_numbers(config: "ModelConfig", B: int, T: int) -> int:
    """How many numbers a traced forward pass records."""
    size = sizes(config, B, T)
    tensors = [row for row in rows(config).values() if isinstance(row, Tensor)]
    return sum(prod(size[letter] for letter in row.letters.split()) for row in tensors)
