"""What the families after GPT-2 share: RMSNorm, rotary positions, a gated feed-forward layer, separate projections."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.rotary import Rotary
from contract.weights import Weights, weight_table
from harness.exchange.families.fields import (
    ACTIVATIONS,
    Fields,
    check_architecture,
    count_layers,
    not_expressed,
)
from harness.exchange.families.place import Place
from harness.exchange.families.rotary import take_rotary, written_rotary
from harness.exchange.hub import CONFIG

_NAMES = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "head_size": "head_dim",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "context_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "attention_dropout",
    "window": "sliding_window",
    "attention_scale": "query_pre_attn_scalar",
    "score_cap": "attn_logit_softcapping",
    "logit_cap": "final_logit_softcapping",
}


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A family, by what sets it apart.

    defaults: of its class in `transformers`, by field; None for the number of key/value heads: as many as query heads;
        None for the head size: C // H
    ours: fields of ModelConfig that all its models have
    read: takes what else the family says from the fields, given the sizes by our names; returns our fields
    write: the inverse: our configuration to their fields
    whole_heads: whether H must divide C
    """

    model_type: str
    title: str
    class_name: str
    defaults: dict
    ours: dict = field(default_factory=dict)
    read: Callable[[Fields, dict], dict]
    write: Callable[[ModelConfig], dict]
    whole_heads: bool = False
    activation_field: str = "hidden_act"
    prefix = "model."
    output = "lm_head.weight"
    layers_field = "num_hidden_layers"

    def config_from_published(self, published: dict, dropout: float | None = None, note=None) -> ModelConfig:
        """The configuration that a published `config.json` describes.

        dropout: for later training, in place of the file's rate
        Raises UserError naming a field that is impossible, unknown or computes another function.
        """
        check_architecture(
            published, self.title, (f"{self.class_name}ForCausalLM", f"{self.class_name}Model")
        )
        left, default = Fields(published, self.title), self.defaults
        sizes = {"n_layer": count_layers(left, "num_hidden_layers", default["num_hidden_layers"])}
        for name in ("vocab_size", "n_head", "d_model", "d_ff", "context_length"):
            sizes[name] = left.whole(_NAMES[name], default[_NAMES[name]])
        rate, head_size = left.take("attention_dropout", 0.0), left.take("head_dim", default["head_dim"])
        values = sizes | {
            "n_kv_head": left.take("num_key_value_heads", default["num_key_value_heads"]),
            "head_size": sizes["d_model"] // sizes["n_head"] if head_size is None else head_size,
            "norm_eps": left.take("rms_norm_eps", 1e-6),
            "tie_embeddings": left.take("tie_word_embeddings", default["tie_word_embeddings"]),
            "activation": left.activation(self.activation_field, default.get(self.activation_field, "silu")),
            "dropout": (0.0 if rate is None else rate) if dropout is None else dropout,
        }
        if self.whole_heads and sizes["d_model"] % sizes["n_head"]:
            raise UserError(
                f"{CONFIG}: hidden_size {sizes['d_model']} is not a multiple of num_attention_heads "
                f"{sizes['n_head']}, as {self.title}'s must be"
            )
        values |= self.ours | self.read(left, values)
        if "rotary" not in values:
            values["rotary"] = take_rotary(left, sizes["context_length"])
        left.refuse_rest()
        try:
            return ModelConfig(**{"bias": False, "norm": "rms_norm"} | _COMMON | values)
        except ConfigError as error:
            name, _, rest = str(error).partition(" ")
            raise UserError(f"{CONFIG}: {_NAMES.get(name, name)} {rest}") from None

    def published_config(self, config: ModelConfig, dtype: str) -> dict:
        """The fields of a published `config.json`. Raises UserError for a model that the family cannot express."""
        self.published_terms(config)
        return self._fields(config) | {"dtype": dtype}

    def _fields(self, config: ModelConfig) -> dict:
        named = (
            ours for ours in _NAMES if ours not in ("window", "attention_scale", "score_cap", "logit_cap")
        )
        activation = next((name for name, ours in ACTIVATIONS.items() if ours == config.activation), None)
        return {
            "model_type": self.model_type,
            "architectures": [f"{self.class_name}ForCausalLM"],
            **{_NAMES[ours]: getattr(config, ours) for ours in named},
            self.activation_field: activation,
            "rope_parameters": written_rotary(config.rotary or Rotary()),
            **self.write(config),
        }

    def published_terms(self, config: ModelConfig) -> ModelConfig:
        """The same configuration. Raises UserError naming the first field that the family's files cannot express."""
        try:
            found = self.config_from_published(self._fields(config))
        except UserError as error:
            raise UserError(
                f"{self.title}'s files cannot express this model ({error}); choose --format npz or torch"
            ) from None
        for name in [each.name for each in fields(ModelConfig)]:
            read = "score_scale" if name == "attention_scale" else name  # None and 1 / √D are the same
            if getattr(found, read) != getattr(config, read):
                raise not_expressed(self.title, name, getattr(config, name))
        return config

    def published_places(self, config: ModelConfig) -> dict[str, Place]:
        """The place of each weight of `config` in a published file."""
        sandwich = config.block == "sandwich"
        layer = _LAYER | {
            # One name for two norms: before the feed-forward layer, and in a sandwich behind attention.
            "norm_2.weight": (f"{'pre_feedforward' if sandwich else 'post_attention'}_layernorm.weight",),
        }
        places = {}
        for name in weight_table(config):
            _, _, inside = name.partition("blocks.")
            number, _, role = inside.partition(".")
            names = [f"layers.{number}.{theirs}" for theirs in layer[role]] if inside else _OUTSIDE[name]
            places[name] = Place(tuple(names))
        return places

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor is of frequencies, which older releases stored beside each layer's weights."""
        return name.endswith("rotary_emb.inv_freq")

    def finish(self, published: dict, config: ModelConfig, weights: Weights, note):
        """What else the fields say of the model; here nothing."""
        return config, weights


_SIZES = ("vocab_size", "d_model", "d_ff", "n_layer", "n_head", "n_kv_head", "head_size", "context_length")
_COMMON = {"position": "rotary", "feed_forward": "gated"}
_LAYER = {
    "norm_1.weight": ("input_layernorm.weight",),
    **{
        f"attention.query_key_value.{kind}": tuple(f"self_attn.{role}_proj.{kind}" for role in "qkv")
        for kind in ("weight", "bias")
    },
    "attention.query_norm.weight": ("self_attn.q_norm.weight",),
    "attention.key_norm.weight": ("self_attn.k_norm.weight",),
    "attention.output.weight": ("self_attn.o_proj.weight",),
    "attention.output.bias": ("self_attn.o_proj.bias",),
    "post_norm_1.weight": ("post_attention_layernorm.weight",),
    **{
        f"feed_forward.{role}.{kind}": (f"mlp.{role}_proj.{kind}",)
        for role in ("gate", "up", "down")
        for kind in ("weight", "bias")
    },
    "post_norm_2.weight": ("post_feedforward_layernorm.weight",),
}
_OUTSIDE = {
    "token_embedding.weight": ("embed_tokens.weight",),
    "final_norm.weight": ("norm.weight",),
    "output.weight": ("lm_head.weight",),
}


def sizes_of(row: str) -> dict:
    """Defaults of a class: V, C, F, L, H, K, D and the context length, a dash for None."""
    numbers = (None if word == "-" else int(word) for word in row.split())
    return {_NAMES[name]: number for name, number in zip(_SIZES, numbers, strict=True)}


def windows(pattern: tuple[str, ...], window) -> dict:
    """Our fields of the layers' windows."""
    sliding = "sliding" in pattern
    if sliding and window is None:
        raise UserError(f"{CONFIG}: sliding_window is null, but there are sliding layers")
    return {"layer_pattern": pattern, "window": window if sliding else None}


def layer_types(config: ModelConfig) -> list[str]:
    """The kind of each layer, as published."""
    pattern = config.layer_pattern
    return [f"{pattern[place % len(pattern)]}_attention" for place in range(config.n_layer)]
