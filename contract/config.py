"""The model's configuration: everything that changes the function computed stands here.

Dimension letters, used in every shape comment of the project:

    B  batch            sequences processed together
    T  time             tokens of a sequence, at most `context_length`
    C  channels         `d_model`, the width of the residual stream
    H  heads            `n_head`
    K  key/value heads  `n_kv_head`, which divides H
    D  head size        `head_size`, C / H unless given
    F  feed-forward     `d_ff`, the hidden width of the feed-forward layer
    V  vocabulary       `vocab_size`
    L  layers           `n_layer`
"""

from dataclasses import MISSING, asdict, dataclass, fields
from os import PathLike

from contract.components import COMPONENTS
from contract.errors import ConfigError, UserError
from contract.schema import read_json

# Bounds of what is built before anything of a file proves that its numbers are meant.
MAX_LAYERS = 10_000
MAX_SINUSOIDS = 1 << 28


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A pre-layer-norm GPT: embedding, L blocks of attention and feed-forward, final norm, output.

    vocab_size: V, number of token ids
    context_length: the most tokens that the model can see at once
    n_layer, n_head, d_model, d_ff: L, H, C, F
    head_size: D, an integer once constructed; None means C / H, and then H must divide C
    n_kv_head: K, an integer once constructed; None means H, which is all that the twins compute so far
    activation: "relu" (Vaswani et al. 2017, section 3.3) or "gelu_tanh" (GPT-2's GELU)
    position: "sinusoidal" (fixed; Vaswani et al. 2017, section 3.5) or "learned" (GPT-2)
    norm: "layer_norm" (Ba et al. 2016)
    bias: whether linear layers and norms add a bias; the output projection never does
    tie_embeddings: whether the output projection is the token embedding (Press & Wolf 2017)
    norm_eps: added to the variance inside the root of each norm
    dropout: probability of zeroing, after embedding, softmax, attention output and feed-forward

    A copy by `dataclasses.replace` keeps every field that it does not name: to change d_model or n_head, pass
    head_size=None and n_kv_head=None too.

    Raises ConfigError naming the field, what was found and what fits.
    """

    vocab_size: int
    context_length: int
    n_layer: int
    n_head: int
    d_model: int
    d_ff: int
    activation: str
    position: str
    bias: bool = True
    tie_embeddings: bool = True
    norm_eps: float = 1e-5
    dropout: float = 0.0
    head_size: int | None = None
    n_kv_head: int | None = None
    norm: str = "layer_norm"

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "n_layer", "n_head", "d_model", "d_ff"):
            _require_positive_integer(name, getattr(self, name))
        self._fill_in_heads()
        if self.n_layer > MAX_LAYERS:
            raise ConfigError(f"n_layer must be at most {MAX_LAYERS:,}, got {self.n_layer:,}")
        if self.position == "sinusoidal" and self.d_model % 2:
            raise ConfigError(
                f"sinusoidal positions need an even d_model (sine and cosine pairs), got {self.d_model}"
            )
        if self.position == "sinusoidal" and self.context_length * self.d_model > MAX_SINUSOIDS:
            raise ConfigError(
                f"sinusoidal positions for context_length {self.context_length:,} and d_model {self.d_model:,} are a "
                f"table of more than {MAX_SINUSOIDS:,} numbers; choose a shorter context"
            )
        for slot in ("activation", "position", "norm"):
            _require_choice(slot, getattr(self, slot), tuple(COMPONENTS[slot]))
        for name in ("bias", "tie_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if not _is_number(self.norm_eps) or not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps must be between 0 and 1, both excluded, got {self.norm_eps!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")

    def _fill_in_heads(self):
        """Give `head_size` and `n_kv_head` their defaults, so that they are always integers, and check them."""
        if self.head_size is None:
            if self.d_model % self.n_head:
                raise ConfigError(
                    f"d_model {self.d_model} does not divide into n_head {self.n_head} heads; "
                    "choose a d_model that is a multiple of n_head"
                )
            object.__setattr__(self, "head_size", self.d_model // self.n_head)  # the dataclass is frozen
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        for name in ("head_size", "n_kv_head"):
            _require_positive_integer(name, getattr(self, name))
        if self.n_head % self.n_kv_head:
            raise ConfigError(
                f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}; each key/value head serves "
                "the same number of query heads"
            )
        if self.n_kv_head != self.n_head:
            raise ConfigError(
                f"n_kv_head must equal n_head {self.n_head}, got {self.n_kv_head}; grouped queries are not supported"
            )

    def to_dict(self) -> dict:
        """The fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """The inverse of `to_dict`. A missing field takes its default, so that files from before it still open.

        Raises ConfigError for an unknown field, or a missing one that has no default.
        """
        known = {field.name: field.default for field in fields(cls)}
        required = {name for name, default in known.items() if default is MISSING}
        for problem, names in (("unknown", values.keys() - known), ("missing", required - values.keys())):
            if names:
                raise ConfigError(f"model configuration with {problem} field {', '.join(sorted(names))}")
        return cls(**values)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_positive_integer(name: str, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


def _require_choice(name: str, value, choices: tuple[str, ...]):
    if value in ("gelu", "gelu_erf") and name == "activation":
        raise ConfigError(
            f"activation {value!r} is the exact-erf GELU, a different function from GPT-2's tanh form; "
            "choose 'gelu_tanh' or 'relu'"
        )
    if value not in choices:
        raise ConfigError(f"unknown {name} {value!r}; choose {' or '.join(map(repr, choices))}")


def _gpt2_shape(n_layer: int, n_head: int, d_model: int) -> dict:
    """A size as published by Radford et al. 2019 (table 2): GELU, learned positions, context 1024."""
    return {
        "context_length": 1024,
        "n_layer": n_layer,
        "n_head": n_head,
        "d_model": d_model,
        "d_ff": 4 * d_model,
        "activation": "gelu_tanh",
        "position": "learned",
    }


PRESETS: dict[str, dict] = {
    "tense": {
        "context_length": 32,
        "n_layer": 3,
        "n_head": 4,
        "d_model": 96,
        "d_ff": 384,
        "activation": "relu",
        "position": "sinusoidal",
    },
    "nano": {**_gpt2_shape(4, 4, 128), "context_length": 64},
    "gpt2": _gpt2_shape(12, 12, 768),
    "gpt2-medium": _gpt2_shape(24, 16, 1024),
    "gpt2-large": _gpt2_shape(36, 20, 1280),
    "gpt2-xl": _gpt2_shape(48, 25, 1600),
}


def preset(name: str, *, vocab_size: int, **overrides) -> ModelConfig:
    """The configuration called `name`, with `overrides` put over its fields.

    An overridden `d_model` without a `d_ff` keeps the feed-forward layer at four times the width.
    Raises ConfigError for an unknown name or an impossible combination.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    if "d_model" in overrides and "d_ff" not in overrides:
        overrides["d_ff"] = 4 * overrides["d_model"]
    return ModelConfig(vocab_size=vocab_size, **{**PRESETS[name], **overrides})


def read_config(path: str | PathLike, **overrides) -> dict:
    """The fields of the configuration in a JSON file, with `overrides` put over them; vocab_size may be missing.

    Raises OSError if the file cannot be read, UserError if it is not JSON, ConfigError for an impossible configuration.
    """
    try:
        values = read_json(path) | overrides
    except ValueError as error:
        raise UserError(
            f"{path} is not a JSON object ({error}); give the configuration's fields by name"
        ) from None
    ModelConfig.from_dict({"vocab_size": 1} | values)
    return values
