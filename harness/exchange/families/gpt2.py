"""GPT-2 as Hugging Face publishes it: what its tensors and its configuration's fields are called there.

Everything here is a translation that import and export both read; the files are their business.
"""

from contextlib import suppress
from dataclasses import fields, replace

import numpy as np

from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.schema import shortened
from contract.weights import Weights, weight_table
from harness.exchange.families.fields import Fields, check_architecture, exact_gelu, not_expressed
from harness.exchange.families.place import Place
from harness.exchange.hub import CONFIG
from numpy_llm.positions import sinusoidal_positions

model_type, title = "gpt2", "GPT-2"
prefix = "transformer."  # before every name but the output's; absent in files of the bare GPT2Model
output = "lm_head.weight"
layers_field = "n_layer"
VOCAB_SIZE = 50257  # of GPT-2's own vocabulary
OWN_CONFIG = "twin_gpt"  # the field of config.json in which an export keeps the ModelConfig it was made from


# Our names to theirs. `{}` is the layer's number; a weight or a bias follows.
_TABLE = {
    "token_embedding": Place(("wte",)),
    "position_embedding": Place(("wpe",)),
    "blocks.{}.norm_1": Place(("h.{}.ln_1",)),
    "blocks.{}.attention.query_key_value": Place(("h.{}.attn.c_attn",), True),
    "blocks.{}.attention.output": Place(("h.{}.attn.c_proj",), True),
    "blocks.{}.norm_2": Place(("h.{}.ln_2",)),
    "blocks.{}.feed_forward.up": Place(("h.{}.mlp.c_fc",), True),
    "blocks.{}.feed_forward.down": Place(("h.{}.mlp.c_proj",), True),
    "final_norm": Place(("ln_f",)),
    "output": Place(("lm_head",)),
}


def published_places(config: ModelConfig) -> dict[str, Place]:
    """The place of each weight of `config` in a published file."""
    places = {}
    for name in weight_table(config):
        module, _, kind = name.rpartition(".")
        layer = module.split(".")[1] if module.startswith("blocks.") else None
        row = _TABLE[module if layer is None else module.replace(layer, "{}", 1)]
        published = row.names[0].format(layer)
        places[name] = Place((f"{published}.{kind}",), row.transposed and kind == "weight")
    return places


def is_buffer(name: str) -> bool:
    """Whether a tensor is the causal mask that older releases stored beside each layer's weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


# --- configuration ---

# Their fields by ours, with GPT2Config's defaults for those that a file omits.
_FIELDS = {
    "vocab_size": ("vocab_size", VOCAB_SIZE),
    "n_positions": ("context_length", 1024),
    "n_embd": ("d_model", 768),
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "n_inner": ("d_ff", None),
    "activation_function": ("activation", "gelu_new"),
    "embd_pdrop": ("dropout", 0.1),
    "attn_pdrop": ("dropout", 0.1),
    "resid_pdrop": ("dropout", 0.1),
    "layer_norm_epsilon": ("norm_eps", 1e-5),
    "tie_word_embeddings": ("tie_embeddings", True),
}
_SYNONYMS = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}
_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")

# Fields that compute another function, with the only value that does not.
_FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "is_causal": True,
    "pruned_heads": {},
    "quantization_config": None,
}
# `reorder_and_upcast_attn` says where half precision is widened, and here nothing is half; `n_ctx` is the old name of
# the size of the masks in the file.
_READ = ("activation_function", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "n_ctx")
_ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model")
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def config_from_published(published: dict, dropout: float | None = None, note=None) -> ModelConfig:
    """The configuration that a published `config.json` describes.

    dropout: for later training, in place of the file's three rates; 0 if they differ
    note: called with a line for what the user should know
    Raises UserError naming a field that is impossible or computes another function.
    """
    _check_function(published)
    values = _read_values(published)
    if dropout is None:
        dropout = _common_dropout(values, note)
    ours = {name: values[theirs] for theirs, (name, _) in _FIELDS.items()}
    ours |= {"activation": _ACTIVATIONS[ours["activation"]], "dropout": dropout}
    try:
        return ModelConfig(**ours, position="learned", bias=True)
    except ConfigError as error:
        raise UserError(f"{CONFIG}: {error}") from None


def _check_function(fields: dict):
    """Refuse a model that is not GPT-2, or not quite."""
    for name, wanted in _FIXED.items():
        found = fields.get(name, None if name == "model_type" else wanted)
        if found != wanted or type(found) is not type(wanted):
            raise UserError(
                f"{CONFIG}: {name} is {shortened(found)}, another function than GPT-2's ({shortened(wanted)}), "
                "which is not computed here"
            )
    check_architecture(fields, title, _ARCHITECTURES)
    left = Fields(fields, title)
    for name in (*_FIXED, *_READ, *_FIELDS, *_SYNONYMS.values()):
        left.take(name)
    left.refuse_rest()
    if (scaled := fields.get("scale_attn_by_inverse_layer_idx", False)) not in (True, False, None):
        raise UserError(
            f"{CONFIG}: scale_attn_by_inverse_layer_idx is {shortened(scaled)}, wanted true or false"
        )
    activation = fields.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise UserError(
            f"{CONFIG}: activation_function is {shortened(activation)}{exact_gelu(activation)}; this project computes "
            f"{', '.join(_ACTIVATIONS)}"
        )


def _read_values(fields: dict) -> dict:
    """The values of `_FIELDS`, the sizes among them whole numbers."""
    values = {
        name: fields.get(name, fields.get(_SYNONYMS.get(name), default))
        for name, (_, default) in _FIELDS.items()
    }
    for name, synonym in _SYNONYMS.items():
        if synonym in fields and fields[synonym] != values[name]:
            raise UserError(
                f"{CONFIG}: {name} is {shortened(values[name])} but {synonym} {shortened(fields[synonym])}"
            )
    for name in _SIZES:
        if name == "n_inner" and values[name] is None:
            values[name] = 4 * values["n_embd"]
        if type(values[name]) is not int or values[name] < 1:
            raise UserError(
                f"{CONFIG}: {name} must be a whole number of at least 1, got {shortened(values[name])}"
            )
    return values


def _common_dropout(values: dict, note):
    """The one rate of all three places; 0 if they have no common one."""
    rates = [values[name] for name in _DROPOUTS]
    rates = [float(rate) if type(rate) is int and abs(rate) < 2**53 else rate for rate in rates]
    if len(set(map(repr, rates))) > 1:
        found = ", ".join(f"{name} {shortened(values[name])}" for name in _DROPOUTS)
        if note:
            note(
                f"{CONFIG} has three different dropout rates, {found}, and this project one for all places; taking 0, "
                "choose another with --dropout when you train it"
            )
        return 0.0
    return rates[0]


def published_config(config: ModelConfig, dtype: str) -> dict:
    """The fields of a published `config.json` for weights that were written in `published_terms(config)`.

    dtype: of the weights
    Raises UserError for a model that GPT-2's files cannot express.
    """
    published_terms(config)  # refuses what has no field
    theirs = {name: getattr(config, ours) for name, (ours, _) in _FIELDS.items()}
    activation = next(name for name, ours in _ACTIVATIONS.items() if ours == config.activation)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **theirs | {"activation_function": activation},
        "dtype": dtype,
        OWN_CONFIG: config.to_dict(),
    }


def published_terms(config: ModelConfig) -> ModelConfig:
    """The same function in the terms of GPT-2's files: positions as weights, and biases, if only zeros.

    Raises UserError naming the first field that GPT-2's files cannot express.
    """
    said = {name for name, _ in _FIELDS.values()} | {"bias"}
    allowed = {field.name: (field.default,) for field in fields(ModelConfig) if field.name not in said}
    allowed |= {
        "activation": _ACTIVATIONS.values(),
        "position": ("learned", "sinusoidal"),
        "head_size": (config.d_model / config.n_head,),
        "n_kv_head": (config.n_head,),
        "query_key_value_bias": (config.bias,),
    }
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            raise not_expressed(title, name, getattr(config, name))
    return replace(config, position="learned", bias=True, query_key_value_bias=True)


def finish(published: dict, config: ModelConfig, weights: Weights, note) -> tuple[ModelConfig, Weights]:
    """The model with what else the fields say of it: scores scaled by layer, and the configuration of an export."""
    if published.get("scale_attn_by_inverse_layer_idx"):
        rows = config.n_head * config.head_size
        for layer in range(config.n_layer):
            for kind in ("weight", "bias"):
                weights[f"blocks.{layer}.attention.query_key_value.{kind}"][:rows] /= layer + 1
        note(
            "scale_attn_by_inverse_layer_idx: the queries of layer n are divided by n + 1, as their scores were"
        )
    return _restore(published.get(OWN_CONFIG), config, weights, note)


def _restore(own: object, config: ModelConfig, weights: Weights, note) -> tuple[ModelConfig, Weights]:
    """The model that an export of this project was made from, but for positions and biases trained since."""
    if own is None:
        return config, weights
    wanted = None
    with suppress(UserError, TypeError, AttributeError):
        own = replace(ModelConfig.from_dict(own), dropout=config.dropout)
        wanted = own if published_terms(own) == config else None
    if wanted is None:
        note(f"{OWN_CONFIG} in {CONFIG} does not fit its other fields, which hold")
        return config, weights
    if wanted.position == "sinusoidal":
        table = sinusoidal_positions(wanted.context_length, wanted.d_model, weights.flat.dtype)
        # Machines differ in a sine's last digit; a step of training changes far more.
        if not np.allclose(weights["position_embedding.weight"], table, rtol=0, atol=1e-6):
            note(
                "the positions have changed since the export from fixed sinusoids, so they are learned ones now"
            )
            wanted = replace(wanted, position="learned")
    if not wanted.bias and any(value.any() for name, value in weights.items() if name.endswith(".bias")):
        note("the biases have changed since the export from zeros, so the model has biases now")
        wanted = replace(wanted, bias=True, query_key_value_bias=None)
    if wanted == config:
        return config, weights
    restored = Weights.zeros(wanted, weights.flat.dtype)
    for name, view in restored.items():
        view[...] = weights[name]
    return wanted, restored
