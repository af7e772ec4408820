"""The fields of a published `config.json`: each is used, known to change nothing, or refused by name."""

from contract.checks import MAX_WHOLE
from contract.config import MAX_LAYERS
from contract.errors import UserError
from contract.schema import shortened
from harness.exchange.hub import CONFIG

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu",
}  # fmt: skip

# What says how a model is made, loaded, classified with, trained or sampled from: the function computed is the same.
# `_sliding_window_pattern` stands beside `layer_types`, which say it; `is_llama_config` is nanotron's, in SmolLM2.
_HARMLESS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path
    _sliding_window_pattern architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens
    bos_token_id cache_implementation chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder
    is_llama_config keys_to_ignore_at_inference label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values rep_pen repetition_penalty
    return_dict return_dict_in_generate sep_token_id summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class
    top_k top_p torch_dtype torchscript transformers.js_config transformers_version twin_gpt typical_p unsloth_fixed
    unsloth_version use_bfloat16 use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())


class Fields:
    """The fields of a file, which are taken one after the other; `refuse_rest` then names what nobody took."""

    def __init__(self, published: dict, title: str):
        self._left, self._title = dict(published), title

    def take(self, name: str, default=None):
        return self._left.pop(name, default)

    def whole(self, name: str, default: int | None, most: int = MAX_WHOLE) -> int:
        """A number of things. Raises UserError unless it is a whole number from 1 to `most`."""
        value = self.take(name, default)
        if type(value) is not int or not 1 <= value <= most:
            to = "2^63 - 1" if most == MAX_WHOLE else f"{most:,}"
            raise UserError(f"{CONFIG}: {name} must be a whole number from 1 to {to}, got {shortened(value)}")
        return value

    def activation(self, name: str, default: str) -> str:
        value = self.take(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise UserError(f"{CONFIG}: {name} is {shortened(value)}{exact_gelu(value)}; {_computed()}")
        return ACTIVATIONS[value]

    def layers(self, n_layer: int, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """The layer pattern that `layer_types` gives; `otherwise` where it is absent."""
        kinds = self.take("layer_types")
        if kinds is None:
            return shortest(otherwise)
        known = {"full_attention": "full", "sliding_attention": "sliding"}
        if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in known for kind in kinds):
            raise UserError(
                f"{CONFIG}: layer_types is {shortened(kinds)}; a layer can be {' or '.join(known)}"
            )
        if len(kinds) != n_layer:
            raise UserError(f"{CONFIG}: layer_types has {len(kinds)} entries for {n_layer} layers")
        return shortest(tuple(known[kind] for kind in kinds))

    def refuse_rest(self):
        """Raise UserError for a field that nobody took, unless it changes nothing: null, false or empty."""
        for name, value in self._left.items():
            nothing = (True,) if name == "is_causal" else (None, False, {}, [])  # transformers masks by it
            if name not in HARMLESS and value not in nothing:
                raise UserError(
                    f"{CONFIG}: {name} is {shortened(value)}, which is not known to leave {self._title}'s function as "
                    "it is; remove the field if it does"
                )


def exact_gelu(name) -> str:
    return " (the exact-erf GELU, a different function from the tanh form)" * (
        name in ("gelu", "gelu_python")
    )


def _computed() -> str:
    return f"this project computes {', '.join(ACTIVATIONS)}"


def count_layers(fields: Fields, name: str, default: int) -> int:
    return fields.whole(name, default, MAX_LAYERS)


def shortest(pattern: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest pattern that gives the same layers when repeated."""
    for length in range(1, len(pattern)):
        if pattern[length:] == pattern[:-length]:
            return pattern[:length]
    return pattern


def check_architecture(published: dict, title: str, names: tuple[str, ...]):
    """Refuse what is no language model, such as a classifier."""
    found = published.get("architectures") or [names[0]]
    if not isinstance(found, list) or any(name not in names for name in found):
        raise UserError(
            f"{CONFIG}: architectures is {shortened(found)}; only a language model can be imported: "
            f"{' or '.join(names)}"
        )


def not_expressed(title: str, name: str, value) -> UserError:
    return UserError(f"{title}'s files cannot express {name} {value!r}; choose --format npz or torch")
