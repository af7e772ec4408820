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
    R  rank             `lora_rank`, of the low-rank pairs of a model that has them
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from os import PathLike
from typing import NamedTuple

from contract.checks import MAX_WHOLE
from contract.components import COMPONENTS, projections
from contract.errors import ConfigError, UserError
from contract.rotary import Rotary
from contract.schema import read_json, shortened

# Bounds of what is built before anything of a file proves that its numbers are meant.
MAX_LAYERS = 10_000
MAX_SINUSOIDS = 1 << 28
MIN_FACTOR, MAX_FACTOR = 1e-30, 1e30  # of caps and scales, which must stay above 0 and finite in float32


class Layer(NamedTuple):
    """What may differ from layer to layer.

    window: W, how many tokens a query sees, its own included; None for all before it
    rotary: what turns queries and keys, None for another kind of position
    """

    window: int | None = None
    rotary: Rotary | None = None


PLAIN_LAYER = Layer()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder: embedding, L blocks of attention and feed-forward, final norm, output.

    vocab_size: V, number of token ids
    context_length: the most tokens that the model can see at once
    n_layer, n_head, d_model, d_ff: L, H, C, F
    head_size: D, an integer once constructed; None means C / H, and then H must divide C
    n_kv_head: K, an integer once constructed; None means H
    activation: "relu" (Vaswani et al. 2017, section 3.3), "gelu_tanh" (GPT-2's GELU) or "silu" (Llama)
    position: "sinusoidal" (fixed; Vaswani et al. 2017, section 3.5), "learned" (GPT-2) or "rotary" (Su et al. 2021)
    norm: "layer_norm" (Ba et al. 2016), "rms_norm" (Zhang & Sennrich 2019), or "rms_norm_plus_one", which scales by
        1 + weight (Gemma)
    bias: whether linear layers and norms add a bias; the output projection never does
    query_key_value_bias: the same for the projection of query, key and value alone; None means `bias`
    tie_embeddings: whether the output projection is the token embedding (Press & Wolf 2017)
    norm_eps: added to the variance or mean square inside the root of each norm
    dropout: probability of zeroing, after embedding, softmax, attention output and feed-forward
    block: where norms stand: "pre_norm" (before each branch), "post_norm" (after it, before it is added) or "sandwich"
        (both)
    feed_forward: "two_layers", or "gated": activation(gate) · up (Shazeer 2020)
    query_key_norm: "none", or "head": `norm` over each head of query and key, before they are turned
    attention_scale: what scores are multiplied by; None means 1 / √D
    score_cap, logit_cap: cap of a soft cap cap · tanh(x / cap) on scores and logits, None for none (Gemma 2)
    embedding_scale: what token embeddings are multiplied by as they enter
    window: W, how many tokens a query of a sliding layer sees, its own included
    layer_pattern: "full" or "sliding" for the first layers, repeated for the others
    rotary: theta and scaling of rotary positions
    local_rotary: the same for sliding layers, None for `rotary`
    lora_rank: R of low-rank pairs beside the projections of every block, x Wᵀ + b + alpha / R · (x Aᵀ) Bᵀ; None for no
        pairs (Hu et al. 2021, section 4.1)
    lora_alpha: a number once constructed with a rank; None means 2 R
    lora_targets: the projections that have a pair, in the model's order once constructed; None means all of a block's

    A copy by `dataclasses.replace` keeps every field that it does not name: to change d_model or n_head, pass
    head_size=None and n_kv_head=None too, to change n_layer use `with_layers`.

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
    query_key_value_bias: bool | None = None
    block: str = "pre_norm"
    feed_forward: str = "two_layers"
    query_key_norm: str = "none"
    attention_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    window: int | None = None
    layer_pattern: tuple[str, ...] = ("full",)
    rotary: Rotary | None = None
    local_rotary: Rotary | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] | None = None

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "n_layer", "n_head", "d_model", "d_ff"):
            _require_positive_integer(name, getattr(self, name))
        if self.n_layer > MAX_LAYERS:
            raise ConfigError(f"n_layer must be at most {MAX_LAYERS:,}, got {self.n_layer:,}")
        self._fill_in_heads()
        for slot in ("activation", "position", "norm", "block", "feed_forward", "query_key_norm"):
            _require_choice(slot, getattr(self, slot), tuple(COMPONENTS[slot]))
        self._check_numbers()
        self._check_positions()
        self._check_layers()
        self._check_lora()

    def _set(self, name: str, value):
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def _fill_in_heads(self):
        """Give `head_size` and `n_kv_head` their defaults, so that they are always integers, and check them."""
        if self.head_size is None:
            if self.d_model % self.n_head:
                raise ConfigError(
                    f"d_model {self.d_model} does not divide into n_head {self.n_head} heads; "
                    "choose a d_model that is a multiple of n_head, or set head_size"
                )
            self._set("head_size", self.d_model // self.n_head)
        if self.n_kv_head is None:
            self._set("n_kv_head", self.n_head)
        for name in ("head_size", "n_kv_head"):
            _require_positive_integer(name, getattr(self, name))
        if self.n_head % self.n_kv_head:
            raise ConfigError(
                f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}; each key/value head serves "
                "the same number of query heads"
            )

    def _check_numbers(self):
        if self.query_key_value_bias is None:
            self._set("query_key_value_bias", self.bias)
        for name in ("bias", "tie_embeddings", "query_key_value_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if not _is_number(self.norm_eps) or not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps must be between 0 and 1, both excluded, got {self.norm_eps!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        for name in ("attention_scale", "score_cap", "logit_cap", "embedding_scale"):
            value = getattr(self, name)
            if value is None and name != "embedding_scale":
                continue
            if not _is_number(value) or not MIN_FACTOR < value < MAX_FACTOR:
                raise ConfigError(
                    f"{name} must be a number between {MIN_FACTOR} and {MAX_FACTOR}, got {shortened(value)}"
                )

    def _check_positions(self):
        for name in ("rotary", "local_rotary"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                self._set(name, _rotary(name, value))
            elif value is not None and not isinstance(value, Rotary):
                raise ConfigError(
                    f'{name} must be an object such as {{"theta": 10000}}, got {shortened(value)}'
                )
        if self.position == "rotary":
            if self.rotary is None:
                self._set("rotary", Rotary())
            if self.head_size % 2:
                raise ConfigError(
                    f"rotary positions need an even head_size (channels turn in pairs), got {self.head_size}"
                )
        elif self.rotary or self.local_rotary:
            name = "rotary" if self.rotary else "local_rotary"
            raise ConfigError(f"{name} is set, but position is {self.position!r}; set position to 'rotary'")
        if self.position != "sinusoidal":
            return
        if self.d_model % 2:
            raise ConfigError(
                f"sinusoidal positions need an even d_model (sine and cosine pairs), got {self.d_model}"
            )
        if self.context_length * self.d_model > MAX_SINUSOIDS:
            raise ConfigError(
                f"sinusoidal positions for context_length {self.context_length:,} and d_model {self.d_model:,} are a "
                f"table of more than {MAX_SINUSOIDS:,} numbers; choose a shorter context"
            )

    def _check_layers(self):
        pattern = self.layer_pattern
        if isinstance(pattern, list):
            self._set("layer_pattern", pattern := tuple(pattern))
        fits = isinstance(pattern, tuple) and pattern and all(kind in ("full", "sliding") for kind in pattern)
        if not fits:
            found = list(pattern) if isinstance(pattern, tuple) else pattern
            raise ConfigError(f"layer_pattern must be a list of 'full' and 'sliding', got {shortened(found)}")
        if len(pattern) > self.n_layer:
            raise ConfigError(
                f"layer_pattern has {len(pattern)} entries, but the model has n_layer {self.n_layer}; "
                "give at most one per layer"
            )
        if self.window is not None:
            _require_positive_integer("window", self.window)
        if (self.window is not None) != ("sliding" in pattern):
            raise ConfigError(
                f"window {self.window} does not fit layer_pattern {list(pattern)}: sliding layers need a window, "
                "and a window needs sliding layers"
            )
        if self.local_rotary and "sliding" not in pattern:
            raise ConfigError(f"local_rotary is set, but layer_pattern {list(pattern)} has no sliding layers")

    def _check_lora(self):
        """Give pairs their defaults, and check them."""
        rank, targets, known = self.lora_rank, self.lora_targets, projections(self)
        if isinstance(targets, list):
            self._set("lora_targets", targets := tuple(targets))
        names = isinstance(targets, tuple) and targets and all(target in known for target in targets)
        if targets is not None and not names:
            found = list(targets) if isinstance(targets, tuple) else targets
            raise ConfigError(f"lora_targets must be a list of {', '.join(known)}, got {shortened(found)}")
        alpha = self.lora_alpha
        if alpha is not None and (not _is_number(alpha) or not MIN_FACTOR < alpha < MAX_FACTOR):
            raise ConfigError(
                f"lora_alpha must be a number between {MIN_FACTOR} and {MAX_FACTOR}, got {shortened(alpha)}"
            )
        if rank is None:
            if targets or alpha is not None:
                name = "lora_targets" if targets else "lora_alpha"
                raise ConfigError(f"{name} is set, but lora_rank is not; set it, to 8 for instance")
            return
        _require_positive_integer("lora_rank", rank)
        if rank > self.d_model:
            raise ConfigError(
                f"lora_rank must be at most d_model, {self.d_model}, from where on a pair is any matrix, got {rank}"
            )
        self._set("lora_alpha", 2 * rank if alpha is None else alpha)
        self._set("lora_targets", tuple(name for name in known if not targets or name in targets))

    @property
    def lora_scale(self) -> float:
        """What the product of a low-rank pair is multiplied by."""
        return self.lora_alpha / self.lora_rank

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale

    def layer(self, place: int) -> Layer:
        """What is particular to the layer at this place, from 0 to L - 1."""
        if self.layer_pattern[place % len(self.layer_pattern)] == "full":
            return Layer(None, self.rotary)
        return Layer(self.window, self.local_rotary or self.rotary)

    def with_layers(self, n_layer: int) -> "ModelConfig":
        """The same model with another number of layers."""
        pattern = self.layer_pattern[:n_layer]
        sliding = "sliding" in pattern
        return replace(
            self,
            n_layer=n_layer,
            layer_pattern=pattern,
            window=self.window if sliding else None,
            local_rotary=self.local_rotary if sliding else None,
        )

    def to_dict(self) -> dict:
        """The fields by name, ready for JSON."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

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


def _rotary(name: str, values: Mapping) -> Rotary:
    known = [field.name for field in fields(Rotary)]
    if unknown := values.keys() - known:
        raise ConfigError(
            f"{name} with unknown field {', '.join(sorted(unknown))}; its fields are {', '.join(known)}"
        )
    try:
        return Rotary(**values)
    except ConfigError as error:
        raise ConfigError(f"{name}.{error}") from None


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_positive_integer(name: str, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {shortened(value)}")
    if value > MAX_WHOLE:
        raise ConfigError(f"{name} must be below 2^63, got {shortened(value)}")


def _require_choice(name: str, value, choices: tuple[str, ...]):
    if value in ("gelu", "gelu_erf") and name == "activation":
        raise ConfigError(
            f"activation {value!r} is the exact-erf GELU, a different function from GPT-2's tanh form; "
            "choose 'gelu_tanh'"
        )
    if value not in choices:
        raise ConfigError(f"unknown {name} {shortened(value)}; choose {' or '.join(map(repr, choices))}")


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
