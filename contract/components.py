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
        stream, "embedding" for the tokens', "low_rank" for A of a low-rank pair; see `contract.weights.weight_table`
    where: the configuration's field that must be true for the weight to be there; "" always
    adapts: of a low-rank pair the projection that `lora_targets` must name for the weight to be there; "" of others
    """

    name: str
    letters: str
    init: str
    linear: bool = False
    where: str = ""
    adapts: str = ""


class Part(NamedTuple):
    """A component in a slot; an empty name adds its rows without a prefix, `each_layer` repeats it under numbers.

    over: the letters of what the component works on; its rows say "…" for them and "N" for the last one
    """

    name: str
    slot: str
    each_layer: bool = False
    over: str = ""


def _projection(name: str, rows: str, columns: str, init: str = "normal", where: str = "bias"):
    """A linear layer of a block, and the low-rank pair that may adapt it."""
    return (
        Weight(f"{name}.weight", f"{rows} {columns}", init, linear=True),
        Weight(f"{name}.bias", rows, "zeros", linear=True, where=where),
        Weight(f"{name}.lora_a", f"R {columns}", "low_rank", linear=True, adapts=name),
        Weight(f"{name}.lora_b", f"{rows} R", "zeros", linear=True, adapts=name),
    )


_STREAM, _HIDDEN = "B T C", "B T F"


def _branch(place: int, slot: str, pre: bool, post: bool) -> tuple:
    """A branch of a block with the norms that stand before and after it."""
    return (
        *([Part(f"norm_{place}", "norm", over=_STREAM)] if pre else []),
        Part(slot, slot),
        *([Part(f"post_norm_{place}", "norm", over=_STREAM)] if post else []),
        Tensor(f"dropout_{place}", _STREAM),
        Tensor(f"residual_{place}", _STREAM),
    )


def _block(pre: bool, post: bool) -> tuple:
    return *_branch(1, "attention", pre, post), *_branch(2, "feed_forward", pre, post)


COMPONENTS: dict[str, dict[str, tuple[Tensor | Weight | Part, ...]]] = {
    "model": {
        "gpt": (
            Weight("token_embedding.weight", "V C", "embedding"),
            Tensor("token_embedding", _STREAM),
            Part("", "embedding_scale"),
            Part("", "position"),
            Tensor("embedding_dropout", _STREAM),
            Part("blocks", "block", each_layer=True),
            Part("final_norm", "norm", over=_STREAM),
            Part("", "output"),
            Part("", "logit_cap"),
            Tensor("loss", ""),
        ),
    },
    "embedding_scale": {"none": (), "scaled": (Tensor("scaled_embedding", _STREAM),)},
    "position": {
        "sinusoidal": (Tensor("embedding", _STREAM),),
        "learned": (Weight("position_embedding.weight", "P C", "normal"), Tensor("embedding", _STREAM)),
        "rotary": (),
    },
    "block": {
        "pre_norm": _block(pre=True, post=False),
        "sandwich": _block(pre=True, post=True),
        "post_norm": _block(pre=False, post=True),
    },
    "norm": {
        "layer_norm": (
            Weight("weight", "N", "ones"),
            Weight("bias", "N", "zeros", where="bias"),
            Tensor("", "…"),
        ),
        "rms_norm": (Weight("weight", "N", "ones"), Tensor("", "…")),
        "rms_norm_plus_one": (Weight("weight", "N", "zeros"), Tensor("", "…")),
    },
    "attention": {
        "multi_head": (
            *_projection("query_key_value", "(H+2K)·D", "C", where="query_key_value_bias"),
            Tensor("query", "B H T D"),
            Tensor("key", "B K T D"),
            Tensor("value", "B K T D"),
            Part("", "query_key_norm"),
            Part("", "rotation"),
            Tensor("scores", "B H T S"),
            Part("", "score_cap"),
            Tensor("probabilities", "B H T S"),
            Tensor("probabilities_dropout", "B H T S"),
            Tensor("heads", "B H T D"),
            *_projection("output", "C", "H·D", "residual"),
            Tensor("output", _STREAM),
        ),
    },
    "query_key_norm": {
        "none": (),
        "head": (Part("query_norm", "norm", over="B H T D"), Part("key_norm", "norm", over="B K T D")),
    },
    "rotation": {
        "none": (),
        "half_split": (Tensor("rotated_query", "B H T D"), Tensor("rotated_key", "B K T D")),
    },
    "score_cap": {"none": (), "soft": (Tensor("capped_scores", "B H T S"),)},
    "feed_forward": {
        "two_layers": (
            *_projection("up", "F", "C"),
            Tensor("up", _HIDDEN),
            Part("activation", "activation"),
            *_projection("down", "C", "F", "residual"),
            Tensor("down", _STREAM),
        ),
        "gated": (
            *_projection("gate", "F", "C"),
            Tensor("gate", _HIDDEN),
            Part("activation", "activation"),
            *_projection("up", "F", "C"),
            Tensor("up", _HIDDEN),
            Tensor("gated", _HIDDEN),
            *_projection("down", "C", "F", "residual"),
            Tensor("down", _STREAM),
        ),
    },
    "activation": {
        "relu": (Tensor("", _HIDDEN),),
        "gelu_tanh": (Tensor("", _HIDDEN),),
        "silu": (Tensor("", _HIDDEN),),
    },
    "output": {
        "tied": (),
        "untied": (Weight("output.weight", "V C", "normal"),),
    },
    "logit_cap": {
        "none": (Tensor("logits", "B T V"),),
        "soft": (Tensor("uncapped_logits", "B T V"), Tensor("logits", "B T V")),
    },
}


def choices(config: "ModelConfig") -> dict[str, str]:
    """What the configuration puts into each slot."""
    return {
        "model": "gpt",
        "embedding_scale": "none" if config.embedding_scale == 1 else "scaled",
        "position": config.position,
        "block": config.block,
        "norm": config.norm,
        "attention": "multi_head",
        "query_key_norm": config.query_key_norm,
        "rotation": "half_split" if config.rotary else "none",
        "score_cap": "soft" if config.score_cap else "none",
        "feed_forward": config.feed_forward,
        "activation": config.activation,
        "output": "tied" if config.tie_embeddings else "untied",
        "logit_cap": "soft" if config.logit_cap else "none",
    }


def _has(config: "ModelConfig", row: Weight) -> bool:
    return (not row.where or getattr(config, row.where)) and (
        not row.adapts or row.adapts in (config.lora_targets or ())
    )


def projections(config: "ModelConfig") -> tuple[str, ...]:
    """The linear layers of a block, which low-rank pairs may adapt."""
    chosen = choices(config)
    weights = [row for slot in ("attention", "feed_forward") for row in COMPONENTS[slot][chosen[slot]]]
    return tuple(dict.fromkeys(row.adapts for row in weights if isinstance(row, Weight) and row.adapts))


def weight_roles(slot: str, choice: str) -> list[str]:
    """The names of a component's own weights, a bias that may be absent included."""
    return [row.name for row in COMPONENTS[slot][choice] if isinstance(row, Weight)]


@lru_cache(maxsize=2)
def rows(config: "ModelConfig") -> dict[str, Tensor | Weight]:
    """Every weight and traced tensor of the model by its dotted name, in dataflow order; not to be changed."""
    chosen = choices(config)

    def expand(slot: str, prefix: str, over: str = ""):
        for row in COMPONENTS[slot][chosen[slot]]:
            name = ".".join(filter(None, (prefix, row.name)))
            if isinstance(row, Part):
                places = [f"{name}.{layer}" for layer in range(config.n_layer)] if row.each_layer else [name]
                for place in places:
                    yield from expand(row.slot, place, row.over)
            elif isinstance(row, Tensor) or _has(config, row):
                letters = over if row.letters == "…" else over[-1] if row.letters == "N" else row.letters
                yield name, row._replace(letters=letters)

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
        "C": config.d_model, "F": config.d_ff, "R": config.lora_rank or 0, "H": H, "K": K, "D": D, "H·D": H * D,
        "(H+2K)·D": (H + 2 * K) * D,
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
